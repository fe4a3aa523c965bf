"""Rows repaired, masked and compared for near duplicates."""
