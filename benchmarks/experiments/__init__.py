"""Simulated experiments: how often the statistics are wrong, how long they take, and what they cost a request."""
