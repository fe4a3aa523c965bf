"""vLLM's servers as engines, unchanged: over HTTP, with token ids in and out, and adapters by their digests."""
