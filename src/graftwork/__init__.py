"""Graftwork: one quantized base model in memory, many LoRA adapters grafted onto it, live.

The rooms, and who may import whom (a test holds it)::

    clients ──HTTP──▶ server ──▶ adapters ◀── training

This file knows the version and nothing else, so that importing the package costs nothing.
"""

__version__ = "0.1.0"
