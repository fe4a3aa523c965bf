"""Load on an OpenAI-style server, and the named workloads."""
