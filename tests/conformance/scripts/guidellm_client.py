"""GuideLLM, as a command, with prompts from a file and the base's tokenizer from a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from features import API_KEY, MODEL, URL, feature, main

PROMPTS = ("What is the weather like in Paris?", "Count to five.")


def benchmark(request_format: str) -> None:
    """Ask the prompts one after another. Raises if the command fails, or an answer did."""
    with tempfile.TemporaryDirectory() as name:
        prompts, report = Path(name, "prompts.jsonl"), Path(name, "report.json")
        prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
        server = f"kind=openai_http,target={URL},model={MODEL},api_key={API_KEY},request_format={request_format}"
        command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
        command += ["--backend", f"{server},max_tokens=8", "--profile", "kind=synchronous"]
        command += ["--constraint", f"kind=max_requests,count={len(PROMPTS)}"]
        command += ["--tokenizer", f"kind=huggingface_auto,model={os.environ['CONFORMANCE_TOKENIZER']}"]
        command += ["--data", f"kind=json_file,path={prompts}", "--output", f"kind=json,path={report}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        (result,) = json.loads(report.read_text())["benchmarks"]
        errors = [request["info"]["error"] for request in result["requests"]["errored"]]
        assert not errors, errors[0]
        assert result["metrics"]["request_totals"]["successful"] == len(PROMPTS)


@feature("streaming")
def streaming() -> None:
    benchmark("/v1/chat/completions")


@feature("completions")
def completions() -> None:
    benchmark("/v1/completions")


@feature("responses: streaming")
def responses() -> None:
    benchmark("/v1/responses")


if __name__ == "__main__":
    main()
