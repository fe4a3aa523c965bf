"""The plain TRL script that Graftwork's training is held against: as TRL's and PEFT's own pages show it.

For speed with their defaults; for what is learned with what anybody would set: the same rate, batches and passes, no
activation checkpointing on a base that fits, batches of rows of like lengths.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REHEARSED = 4
"""Number of steps that are measured to find the time of a step; the first does not count."""

ASKED_AT_ONCE = 32


def train(
    base: str, rows: Sequence[dict[str, Any]], *, batch_size: int, num_steps: int, **settings: Any
) -> tuple[Any, list[tuple[int, float]]]:
    """Train a rank-16 adapter on rows with ``prompt`` and ``completion`` messages. ``settings`` are those of SFTConfig.

    Returns:
        The trainer, and after each step the tokens processed so far and the time in seconds of a monotonic clock.
    """
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
                print(f"step {state.global_step} of {state.max_steps}, loss {logs.get('loss')}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16"),
            args=trl.SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                max_steps=num_steps,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),  # TRL refuses to start otherwise
                **{"learning_rate": 5e-4, **settings},
            ),
            train_dataset=datasets.Dataset.from_list(list(rows)),
            processing_class=transformers.AutoTokenizer.from_pretrained(base),
            peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        trainer.train()
    return trainer, passed


def answers(model: Any, base: str, questions: Sequence[list[dict[str, str]]], *, max_tokens: int) -> list[str]:
    """Generate a greedy answer to each conversation."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(base, padding_side="left")
    model.eval()
    said: list[str] = []
    for start in range(0, len(questions), ASKED_AT_ONCE):
        asked = tokenizer.apply_chat_template(
            list(questions[start : start + ASKED_AT_ONCE]),
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
        with torch.no_grad():
            out = model.generate(**asked, max_new_tokens=max_tokens, do_sample=False)
        said += tokenizer.batch_decode(out[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"asked {len(said)} of {len(questions)}", flush=True)
    return said


def learn(asked: dict[str, Any]) -> dict[str, Any]:
    """Train for as many epochs as fit into the given time, at most ``epochs``; then answer the questions."""
    base, rows, batch_size = asked["base"], asked["rows"], asked["batch_size"]
    settings: dict[str, Any] = {
        "learning_rate": asked["learning_rate"],
        "activation_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
        "lr_scheduler_type": "cosine",
    }
    trainer, rehearsed = train(base, rows, batch_size=batch_size, num_steps=REHEARSED, **settings)
    # By tokens, since the longest rows come first.
    speed = (rehearsed[-1][0] - rehearsed[0][0]) / (rehearsed[-1][1] - rehearsed[0][1])
    passes = min(asked["epochs"], asked["seconds"] * speed / sum(map(len, trainer.train_dataset["input_ids"])))
    num_steps = max(int(passes * len(rows) / batch_size), 1)
    trainer, passed = train(
        base, rows, batch_size=batch_size, num_steps=num_steps, warmup_steps=int(0.03 * num_steps), **settings
    )
    return {
        "num_steps": num_steps,
        "seconds": trainer.state.log_history[-1]["train_runtime"],
        "tokens": passed[-1][0],
        "answers": answers(trainer.model, base, asked["questions"], max_tokens=asked["max_tokens"]),
    }


def main(asked_file: str, told_file: str) -> None:
    """Read the request from a JSON file, carry it out, and write the result to another one."""
    asked = json.loads(Path(asked_file).read_text(encoding="utf-8"))
    told: Any
    if "questions" in asked:
        told = learn(asked)
    else:
        _, told = train(asked["base"], asked["rows"], batch_size=asked["batch_size"], num_steps=asked["num_steps"])
    Path(told_file).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
