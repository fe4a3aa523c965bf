"""Answers to the generation routes, as bodies and as streams."""
