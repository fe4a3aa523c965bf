"""From sources to a data set: rows are read, repaired, cleaned, split, summarised in a report, and stored by name.

::

    lines → formats → row ─┐
    feedback ──────────────┤ pipeline: repair → private → duplicates → splits → report ─▶ store
                           └────────────────────────────────────────────────▶ tokens
"""
