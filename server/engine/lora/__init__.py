"""Adapters from the store to the device: fetched, packed, cached, and copied to the bank."""
