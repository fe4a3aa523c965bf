"""PEFT's adapter folders: read, checked in full, and described by a spec."""
