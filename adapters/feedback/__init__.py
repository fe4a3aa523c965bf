"""Logged interactions, feedback on them, how long they are stored, and which versions were trained on them."""
