"""Prometheus metrics, and the traffic of each version."""
