"""From sources to a data set: read, repaired, cleaned, split, told about, kept under a name.

::

    lines → formats → row ─┐
    feedback ──────────────┤ pipeline: repair → private → duplicates → splits → report ─▶ store
                           └────────────────────────────────────────────────▶ tokens
"""
