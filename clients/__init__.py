"""The typed Python client of the HTTP API, sync and async, and the ``graftwork`` command line built on it.

::

    cli ──▶ client, async_client ──▶ endpoints ──▶ types ──▶ wire
                     │                   │
                     └──────▶ transport, streams

It works with a server on another machine, and needs no other packages than httpx, typer and rich.
"""
