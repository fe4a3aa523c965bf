"""A run that keeps the contract of training.jobspec and learns nothing: steps, checkpoints, an adapter, a result.

What it ends in depends on every step having been done once, so that a step left out or done twice by going on from a
checkpoint would show. ``metadata`` of the job says what goes wrong: ``crash_at`` a step, ``fail``, ``hang``; and what
the gates say: ``gates``, ``pass``, ``refuse`` or ``inconclusive``. ``step_seconds``: how long each step takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from graftwork.training.run.folder import ADAPTER_FOLDER, CHECKPOINTS_FOLDER, PROGRESS_FILE, RESULT_FILE, SIDES_FILE
from graftwork.training.worker.job.spec import JobSpec

STEP_SECONDS = 0.02
CHECKPOINT_EVERY = 5


def main(folder: Path) -> int:
    spec = JobSpec.read(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if spec.metadata.get("fail"):
        return end(
            folder, {"status": "failed", "error": {"code": "nan_loss", "message": "It diverged.", "param": None}}
        )
    total = int(spec.hyperparameters["batch_size"])  # whatever: it is a number
    step, state = newest(folder)
    say(folder, phase="train", message=f"From step {step}.")
    if step:  # the run that saved it may have been killed before it said so
        say(folder, checkpoint=step)
    while step < total:
        step += 1
        state = hashlib.sha256(f"{state}{step}{spec.seed}".encode()).hexdigest()
        time.sleep(float(spec.metadata.get("step_seconds", STEP_SECONDS)))
        if str(step) == spec.metadata.get("crash_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        say(folder, step=step, total=total, loss=10 / step, learning_rate=1e-3, eta_seconds=(total - step) * 0.02)
        if step % CHECKPOINT_EVERY == 0 and "no_checkpoints" not in spec.metadata:
            checkpoint(folder, step, state)
        if spec.metadata.get("hang"):
            time.sleep(600)
    if side := spec.metadata.get("side"):  # of the one question that there is, unless it is known
        sides = json.loads((folder / SIDES_FILE).read_text())
        (folder / SIDES_FILE).write_text(json.dumps({"0" * 16: side, **sides}))
    write_adapter(folder / ADAPTER_FOLDER, spec, int(state[:8], 16))
    result = {
        "status": "succeeded",
        "adapter": str(folder / ADAPTER_FOLDER),
        "metrics": {"loss": 10 / total},
        "trained_tokens": 100 * total,
        "data_digest": "sha256:" + hashlib.sha256(b"".join(path.read_bytes() for path in spec.data)).hexdigest(),
        "card": {"method": spec.method, "seed": spec.seed, **judged(spec)},
    }
    return end(folder, result)


def judged(spec: JobSpec) -> dict[str, Any]:
    if (said := spec.metadata.get("gates")) is None:
        return {}
    refusals = ["accuracy fell by 0.100, and at most 0.02 is allowed"] if said == "refuse" else []
    doubts = ["12 held-out rows, and fewer than 20 let nothing pass"] if said == "inconclusive" else []
    return {"gates": {"outcome": said, "passed": said == "pass", "refusals": refusals, "doubts": doubts}}


def newest(folder: Path) -> tuple[int, str]:
    found = [int(path.name.removeprefix("step-")) for path in (folder / CHECKPOINTS_FOLDER).glob("step-*")]
    if not found:
        return 0, ""
    return max(found), (folder / CHECKPOINTS_FOLDER / f"step-{max(found)}" / "state").read_text()


def checkpoint(folder: Path, step: int, state: str) -> None:
    partial, final = folder / "partial", folder / CHECKPOINTS_FOLDER / f"step-{step}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / "state").write_text(state)
    final.parent.mkdir(exist_ok=True)
    partial.rename(final)
    say(folder, checkpoint=step)


def write_adapter(folder: Path, spec: JobSpec, seed: int) -> None:
    """A LoRA on the first module of the base."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    module = next(iter(spec.base.modules))
    width_out, width_in = spec.base.modules[module].shape
    numbers = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.{module}.lora_A.weight": numbers.normal(size=(2, width_in)).astype(np.float32),
        f"base_model.model.{module}.lora_B.weight": numbers.normal(size=(width_out, 2)).astype(np.float32),
    }
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module.rpartition(".")[2]]}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    (folder / "adapter_model.safetensors").write_bytes(save(tensors))


def say(folder: Path, **line: Any) -> None:
    with (folder / PROGRESS_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def end(folder: Path, result: dict[str, Any]) -> int:
    partial = folder / "result.partial"
    partial.write_text(json.dumps(result))
    partial.replace(folder / RESULT_FILE)
    return 0 if result["status"] == "succeeded" else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
