"""In the place of the plain TRL script: ``python fake_trl.py ASKED TOLD`` learns nothing, and answers
every question with the label of the first row."""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    if asked["seconds"] == 0:
        sys.exit("there is no time")
    label = asked["rows"][0]["completion"][0]["content"]
    answers = [f" {label}\n" for _ in asked["questions"]]
    Path(sys.argv[2]).write_text(json.dumps({"num_steps": 7, "seconds": 1.5, "tokens": 99, "answers": answers}))
