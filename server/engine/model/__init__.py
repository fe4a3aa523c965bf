"""A causal language model prepared for adapters: traced, its layers replaced, its weights quantized."""
