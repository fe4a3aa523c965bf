"""Perplexity of a text in the serving path: what ``--quantize`` costs in quality.

    python -m benchmarks.serving.perplexity LICENSE README.md examples/tickets.jsonl

Scores each file by ``echo`` and ``logprobs`` in pieces of a thousand or so tokens, and prints a line a file.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from graftwork import Client

#: Characters scored at once: about a thousand tokens of English.
PIECE = 4000


def perplexity(client: Client, model: str, text: str) -> tuple[float, int]:
    """Compute the perplexity per token of a text, and return it with the number of tokens."""
    total, count = 0.0, 0
    for start in range(0, len(text), PIECE):
        score = client.score(model, text[start : start + PIECE])
        total += score.total
        count += len(score.tokens) - 1
    return math.exp(-total / count), count


def main() -> None:
    """Print the perplexity of each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", help="adapter or base; default: the base")
    parser.add_argument("--characters", type=int, default=16000, help="of each file, at most")
    options = parser.parse_args()
    with Client() as client:
        model = options.model or next(iter(client.models())).id
        for file in options.files:
            value, count = perplexity(client, model, file.read_text()[: options.characters])
            print(f"{file.name}: {value:.3f} over {count} tokens, {model}")


if __name__ == "__main__":
    main()
