"""The JSON objects of responses, one module per noun: OpenAPI documents them, and mypy checks the ``show`` functions.

They are ``TypedDict``s: a response is the plain dictionary that its route makes, which is neither copied nor validated.
"""
