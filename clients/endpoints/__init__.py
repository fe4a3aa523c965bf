"""Every call the server knows, each written once: its method, path, body and how its answer is read. A noun, a file.

A call is a description and does nothing; ``Client`` and ``AsyncClient`` carry the same ones out, and take their
methods' signatures and docstrings from here.
"""
