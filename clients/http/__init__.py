"""The HTTP layer of the clients: descriptions of calls, retries, streams, and JSON to dataclasses."""
