"""Runs in PEFT's own environment: batches in as JSON lines, times out as JSON lines. Imports nothing of Graftwork.

``python peft_worker.py BASE DEVICE NAME=FOLDER…`` says ``{}`` when it is ready. A batch is ``{"rows": [{"messages",
"adapter"}], "max_tokens"}``; its answer is ``{"tokens", "stamps"}``: seconds from the batch's arrival to each step's
tokens.
"""

# mypy: ignore-errors
# (torch, transformers and PEFT here are those of another environment)

from __future__ import annotations

import json
import os
import sys
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer


class Stamps(BaseStreamer):
    """Records the time of each step, in seconds since ``began``. The first call has the prompts."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.prompts_seen = False
        self.seconds: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Record the time of a step's tokens."""
        if self.prompts_seen:
            self.seconds.append(time.perf_counter() - self.began)
        self.prompts_seen = True

    def end(self) -> None:
        """Do nothing."""


def main(base: str, device: str, adapters: dict[str, str]) -> None:
    """Load the base and the adapters, then answer batches from standard input until its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is for the log
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device).eval()
    for name, folder in adapters.items():
        if isinstance(model, PeftModel):
            model.load_adapter(folder, name, autocast_adapter_dtype=False)
        else:
            model = PeftModel.from_pretrained(model, folder, name, autocast_adapter_dtype=False)
    model.eval()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        rows, count = asked["rows"], asked["max_tokens"]
        texts = [tokenizer.apply_chat_template(r["messages"], tokenize=False, add_generation_prompt=True) for r in rows]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
        names = [row["adapter"] or "__base__" for row in rows]
        mixed = {"adapter_names": names} if isinstance(model, PeftModel) else {}
        stamps = Stamps(began)
        with torch.inference_mode():
            model.generate(
                **inputs, **mixed, max_new_tokens=count, min_new_tokens=count, do_sample=False, streamer=stamps
            )
        print(
            json.dumps({"tokens": len(stamps.seconds) * len(rows), "stamps": stamps.seconds}), file=answers, flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], dict(pair.split("=", 1) for pair in sys.argv[3:]))
