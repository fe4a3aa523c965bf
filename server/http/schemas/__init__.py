"""The JSON objects that routes answer with, one module per noun: what OpenAPI documents and what ``show`` functions are
checked against. They are ``TypedDict``: an answer is the plain dictionary that its route makes, nothing is copied or
validated as it is sent.
"""
