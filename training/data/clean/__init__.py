"""Cleaning of rows: repair of text, masking of private data, near-duplicate detection."""
