"""Commands for learning: ``graftwork jobs``, ``graftwork rounds``, and what ``graftwork train --watch`` does."""
