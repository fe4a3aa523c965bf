"""The ``graftwork`` command line: commands that call a server over HTTP, with output for people and for scripts.

Commands that are no clients, ``serve`` and ``train``, are added by
``graftwork.__main__``. Modules are imported so that ``--help`` loads neither httpx nor rich's tables.
"""
