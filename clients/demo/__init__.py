"""``graftwork demo``: the whole loop, from a few rows to a promoted second version, on given data.

It only uses the HTTP API and ``graftwork`` commands. The result of its experiment is not predetermined.
"""
