"""Serving speed beside peers, working sets of adapters, perplexity."""
