"""EleutherAI's harness, as a command, with a task of its own and the base's tokenizer from a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from features import API_KEY, BASE_URL, MODEL, feature, main

ROWS = [
    {"question": "The capital of France is", "choices": ["Paris", "a spoon"], "answer": 0},
    {"question": "Two and two make", "choices": ["a house", "four"], "answer": 1},
]
CHOICE = """
task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
TEXT = """
task: own_text
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {max_gen_toks: 8, temperature: 0, until: ["\\n"]}
metric_list: [{metric: exact_match}]
"""


def evaluate(model: str, task: str, path: str, *options: str) -> None:
    """Run a task. Raises if the command fails or there is no result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        for kind, text in (("own_choice", CHOICE), ("own_text", TEXT)):
            (folder / f"{kind}.yaml").write_text(text.replace("ROWS", str(rows)))
        settings = {
            "base_url": f"{BASE_URL}/{path}",
            "model": MODEL,
            "tokenizer": os.environ["CONFORMANCE_TOKENIZER"],
            "num_concurrent": 1,
            "max_retries": 1,
        }
        command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", task]
        command += ["--model_args", ",".join(f"{key}={value}" for key, value in settings.items())]
        command += ["--include_path", name, "--output_path", str(folder / "results"), *options]
        environment = {**os.environ, "OPENAI_API_KEY": API_KEY, "HF_HOME": str(folder / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        (results,) = (folder / "results").rglob("results*.json")
        assert json.loads(results.read_text())["results"][task]


@feature("logprobs")
def logprobs() -> None:
    evaluate("local-completions", "own_choice", "completions")


@feature("completions")
def completions() -> None:
    evaluate("local-completions", "own_text", "completions")


@feature("chat")
def chat() -> None:
    evaluate("local-chat-completions", "own_text", "chat/completions", "--apply_chat_template")


if __name__ == "__main__":
    main()
