"""The schema's history, one numbered file a step. Append-only: existing databases have run the earlier ones.

A migration repeats its tables in full instead of importing them: the code changes, what a migration did does not.
"""
