"""The schema's history, one numbered file a step: append-only, as databases in the field have run the earlier ones.

A migration repeats its tables in full instead of importing them: the code moves on, what a migration did does not.
"""
