"""Graders: how good an answer is, as data that comes over HTTP."""
