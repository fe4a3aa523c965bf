"""PEFT's adapter folders: read, checked completely, and described by a spec."""
