"""How fast Graftwork trains beside the plain TRL script: ``python -m benchmarks.learning.training_speed``.

Both on the embedded base, the same rows in batches of the same size, one after another in processes of their own; the
first step, in which memory is touched for the first time, does not count. ``anchored`` is a job's default, which holds
on to the base; ``graftwork`` does what the plain script does. Ours are the first steps of a run of ordinary length.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

ORDINARY: Final = 240
"""Steps of a run: of 480 rows in batches of 8, four times."""

_TEXT = (
    "card payment transfer account balance refund pending top up limit exchange rate cash machine declined statement "
    "identity verify address phone app travel fee charge twice weekend salary friend abroad currency order arrived"
)
_WORDS = _TEXT.split()


def rows(num: int) -> list[dict[str, Any]]:
    """Questions of a bank's customers, of 12 to 24 words, each with a label for its answer."""
    drawn = random.Random(0)
    questions = (" ".join(drawn.choices(_WORDS, k=drawn.randint(12, 24))) for _ in range(num))
    return [
        {
            "prompt": [{"role": "user", "content": f"{question}?"}],
            "completion": [{"role": "assistant", "content": f"{drawn.choice(_WORDS)}_{drawn.choice(_WORDS)}"}],
        }
        for question in questions
    ]


def ours(asked: dict[str, Any]) -> list[tuple[int, float]]:
    """Run the same training as the peer with Graftwork's trainer."""
    from graftwork.adapters.base import prepare
    from graftwork.training.config import TrainConfig
    from graftwork.training.run import trainer
    from graftwork.training.run.plan import plan_run
    from graftwork.training.run.progress import TrainingStep

    passed: list[tuple[int, float]] = []

    def clock(step: TrainingStep) -> None:
        if step.loss is not None:
            passed.append((step.num_tokens, step.seconds))
        if len(passed) == asked["num_steps"]:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "rows.jsonl")
        data.write_text(
            "".join(json.dumps({"messages": row["prompt"] + row["completion"]}) + "\n" for row in asked["rows"]),
            encoding="utf-8",
        )
        base = prepare(asked["base"], Path(folder), lambda title, share: None)
        config = TrainConfig(
            batch_size=asked["batch_size"],
            validation=0.0,
            anchor=asked["anchor"],
            epochs=max(ORDINARY, asked["num_steps"]) * asked["batch_size"] / len(asked["rows"]),
        )
        run = plan_run(name="bench", data=data, base=base, config=config)
        out = Path(folder, "out")
        out.mkdir()
        with contextlib.suppress(_Enough):
            trainer.train(base, run.rows, (), run.config, out, clock)
    return passed


class _Enough(Exception):
    """Raised to end a run after the measured steps."""


def main() -> None:
    """Run both trainers, and print their speeds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.training_speed", description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("~/.graftwork"), help="where the embedded base is kept")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--ours", nargs=2, metavar=("ASKED", "TOLD"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ours:
        asked, told = map(Path, given.ours)
        told.write_text(json.dumps(ours(json.loads(asked.read_text(encoding="utf-8")))), encoding="utf-8")
        return
    from graftwork.adapters.base import prepare
    from graftwork.training.config import TrainConfig

    base = prepare(None, given.home, lambda title, share: None)
    of_a_job = TrainConfig.start("sft", continuing=False).anchor
    speeds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder, "asked.json"), Path(folder, "told.json")
        same = {
            "base": base.path,
            "rows": rows(given.steps * given.batch_size),
            "batch_size": given.batch_size,
            "num_steps": given.steps,
        }
        for name, anchor, command in (
            ("anchored", of_a_job, [__file__, "--ours"]),
            ("graftwork", 0.0, [__file__, "--ours"]),
            ("plain TRL", 0.0, [str(Path(__file__).with_name("trl_script.py"))]),
        ):
            asked.write_text(json.dumps({**same, "anchor": anchor}), encoding="utf-8")
            subprocess.run(
                [sys.executable, "-P", *command, str(asked), str(told)],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            first, *_, last = json.loads(told.read_text(encoding="utf-8"))
            speeds[name] = (last[0] - first[0]) / (last[1] - first[1])
            print(f"{name:10} {speeds[name]:8.0f} tokens/s", flush=True)
    for name in ("graftwork", "anchored"):
        print(f"{name:10} {speeds[name] / speeds['plain TRL']:8.2f} times as fast")


if __name__ == "__main__":
    main()
