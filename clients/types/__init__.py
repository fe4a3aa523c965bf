"""The server's answers as frozen dataclasses: field names as on the wire, times as aware ``datetime`` in UTC. One
module per noun, as in ``endpoints``."""
