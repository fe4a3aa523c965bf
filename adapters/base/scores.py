"""``python -m graftwork.adapters.base.scores``: the log-probabilities that a base gives the tokens of a text.

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


def base_scores(info: BaseInfo, prompt: Sequence[int], kept: Path) -> list[float] | None:
    """The scores of a prompt, computed unless they are kept.

    Args:
        info: The base.
        prompt: Token ids.
        kept: A file in which they are kept for the next time.

    Returns:
        Log-probabilities from the second token on, in float32; ``None`` if this machine's memory cannot hold the base.

    Raises:
        ConfigurationError: The base cannot be loaded.
    """
    if not kept.is_file():
        if info.num_parameters * _BYTES_A_PARAMETER > psutil.virtual_memory().available:
            return None
        command = [sys.executable, "-m", "graftwork.adapters.base.scores"]
        question = json.dumps({"base": info.to_json(), "prompt": list(prompt)})
        done = subprocess.run(command, input=question, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise ConfigurationError("The base could not be loaded; the message is above.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, done.stdout)
    scores: list[float] = json.loads(kept.read_text())
    return scores


def main() -> None:
    """Load the base that standard input names, and write its scores of the prompt to standard output."""
    import torch

    from graftwork.adapters.base.loading import load_model

    question = json.load(sys.stdin)
    model = load_model(BaseInfo.from_json(question["base"]), dtype="float32", device="cpu")
    prompt = torch.tensor([question["prompt"]])
    with torch.inference_mode():
        logprobs = model(prompt).logits[0, :-1].log_softmax(dim=-1)
    print(json.dumps(logprobs.gather(1, prompt[0, 1:, None])[:, 0].tolist()))


if __name__ == "__main__":
    main()
