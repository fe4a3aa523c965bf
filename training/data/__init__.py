"""From sources to a data set: read, repaired, cleaned, split, told about, kept under a name.

::

    lines → formats → row ─┐
    feedback ──────────────┤ pipeline: repair → private → duplicates → splits → report ─▶ store
                           └────────────────────────────────────────────────▶ tokens

Knows nothing of torch, TRL, the server or the base's weights.
"""
