"""The CUDA backend: the same computation as on a CPU, by Triton kernels and CUDA graphs.

The adapters' GEMMs and attention are Triton kernels, a step's index tensors are copied to the device at once, and steps
in which every sequence decodes are replayed as CUDA graphs. ``loading.build`` chooses this backend by the device.
What has run on a GPU and what has not is in docs/gpu.md.
"""
