"""OpenAI's HTTP shapes without HTTP: request bodies in, JSON and server-sent events out."""
