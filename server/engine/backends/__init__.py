"""Ways to compute a batch: torch for everything, own kernels on CPUs and on CUDA."""
