"""``python -m graftwork.adapters.base.scores``: the likeliest tokens of a base after the beginnings of a text.

They are what another engine that claims to hold the same base is compared with. The base is loaded once, in a process
of its own, and what it said is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from graftwork.adapters.base.atomic_files import write_atomically
from graftwork.adapters.base.info import BaseInfo
from graftwork.adapters.errors import ConfigurationError

#: Of a parameter, loaded as float32, and a half more for what the computation takes.
_BYTES_A_PARAMETER: Final = 6

#: How many tokens are scored after each beginning.
NUM_TOKENS: Final = 5

Scores = list[dict[str, float]]
"""After each beginning, the log-probabilities of tokens, by their ids as JSON has them."""


def base_scores(info: BaseInfo, text: Sequence[int], lengths: Sequence[int], kept: Path) -> Scores | None:
    """The likeliest tokens after beginnings of a text, computed unless they are kept.

    Args:
        info: The base.
        text: Token ids.
        lengths: Of the beginnings, in tokens.
        kept: A file in which they are kept for the next time.

    Returns:
        Computed in float32; ``None`` if this machine's memory cannot hold the base.

    Raises:
        ConfigurationError: The base cannot be loaded.
    """
    if not kept.is_file():
        if info.num_parameters * _BYTES_A_PARAMETER > psutil.virtual_memory().available:
            return None
        command = [sys.executable, "-m", "graftwork.adapters.base.scores"]
        question = json.dumps({"base": info.to_json(), "text": list(text), "lengths": list(lengths)})
        done = subprocess.run(command, input=question, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise ConfigurationError("The base could not be loaded; the message is above.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, done.stdout)
    scores: Scores = json.loads(kept.read_text())
    return scores


def main() -> None:
    """Load the base that standard input names, and write its scores to standard output."""
    import torch

    from graftwork.adapters.base.loading import load_model

    question = json.load(sys.stdin)
    model = load_model(BaseInfo.from_json(question["base"]), dtype="float32", device="cpu")
    with torch.inference_mode():
        logprobs = model(torch.tensor([question["text"]])).logits[0].log_softmax(dim=-1)
    best = [logprobs[length - 1].topk(NUM_TOKENS) for length in question["lengths"]]
    scores = [dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)) for top in best]
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
