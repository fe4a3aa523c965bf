"""Request bodies of the generation routes."""
