"""How calls are described and carried over HTTP: requests, retries, streams, JSON to dataclasses."""
