"""The commands ``graftwork train`` and ``graftwork data``."""
