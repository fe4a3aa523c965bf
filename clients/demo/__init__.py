"""``graftwork demo``: the whole loop, from a few rows to a promoted second version, on data that somebody names.

Asks over HTTP and runs ``graftwork`` commands, as anybody could. Nothing in here is scripted to win.
"""
