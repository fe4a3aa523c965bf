"""Logged interactions, feedback on them, how long they are kept, and what learned from them."""
