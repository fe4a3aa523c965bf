"""The engine's way on a CUDA card: the same maths as on a CPU by other means.

Adapters' GEMMs and attention are Triton kernels, a step's index tensors go to the card in one copy, and steps in which
every sequence decodes are replayed as CUDA graphs. ``loading.build`` chooses this way by the device.
What has run on a card and what has not is in docs/gpu.md.
"""
