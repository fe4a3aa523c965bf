"""The way in over HTTP: the typed Python client, sync and async, and the ``graftwork`` command line built on it.

::

    cli ──▶ client, async_client ──▶ endpoints ──▶ types ──▶ wire
                     │                   │
                     └──────▶ transport, streams

Knows only the wire: nothing here imports the server, the adapters or the training, so it works against a server on
another machine and could be installed alone. Nothing but httpx, typer and rich is needed.
"""
