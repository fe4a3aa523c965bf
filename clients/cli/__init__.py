"""The ``graftwork`` command line: commands that ask a server over HTTP, and how they speak to people and to scripts.

Commands that are no clients, ``serve`` and ``train``, are added by
``graftwork.__main__``. Modules are imported so that ``--help`` loads neither httpx nor rich's tables.
"""
