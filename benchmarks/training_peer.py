"""The plain TRL script that Graftwork's training is held against: what TRL's and PEFT's own pages show, with their
defaults, on the same rows.

Knows nothing of Graftwork.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def train(base: str, rows: Sequence[dict[str, Any]], *, batch_size: int, num_steps: int) -> list[tuple[int, float]]:
    """Train a rank-16 adapter on rows with ``prompt`` and ``completion`` messages; after each step, the tokens read so
    far and the seconds since the run began."""
    import datasets
    import peft
    import torch
    import transformers
    import trl

    passed: list[tuple[int, float]] = []

    class Clock(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "num_tokens" in logs:
                passed.append((int(logs["num_tokens"]), time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder:
        trl.SFTTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16"),
            args=trl.SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                learning_rate=5e-4,
                max_steps=num_steps,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),  # TRL refuses to start otherwise
            ),
            train_dataset=datasets.Dataset.from_list(list(rows)),
            processing_class=transformers.AutoTokenizer.from_pretrained(base),
            peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        ).train()
    return passed


if __name__ == "__main__":
    import sys

    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    steps = train(asked["base"], asked["rows"], batch_size=asked["batch_size"], num_steps=asked["num_steps"])
    Path(sys.argv[2]).write_text(json.dumps(steps), encoding="utf-8")
