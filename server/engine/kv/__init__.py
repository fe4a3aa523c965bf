"""The key-value cache, and the prefixes in it that other sequences can use again."""
