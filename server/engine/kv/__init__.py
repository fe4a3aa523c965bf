"""The key-value cache, and which of it other sequences can use again."""
