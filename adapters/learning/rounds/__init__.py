"""Rounds of learning: when one begins, what it consists of, and how it goes from feedback to a decision."""
