"""The calls of the HTTP API: method, path, body, and how the response is read. One module per noun.

The functions only describe calls. `Client` and `AsyncClient` run them, and take the signatures and docstrings of their
methods from here.
"""
