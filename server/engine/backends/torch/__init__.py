"""The torch backend: computes every architecture and every adapter."""
