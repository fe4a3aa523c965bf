"""Implementations of ``Forward``: torch for every model, and our own kernels on CPUs and on CUDA."""
