"""Grammars that answers are held to: made of what requests ask for, compiled beside the loop, applied as masks."""
