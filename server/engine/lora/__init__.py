"""Adapters on their way to the device: fetched, packed, cached, and kept in the bank."""
