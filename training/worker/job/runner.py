"""The run of a job: reads ``job.json``, trains, writes ``progress.jsonl``, and results in ``adapter/`` and
``result.json``. After SIGTERM or a kill it resumes from its newest checkpoint, and results in the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.learning.job import CONTROL_KEY
from graftwork.adapters.names import check_name
from graftwork.adapters.storage.durable import DISK_FULL, is_disk_full, write_durably
from graftwork.clients.client import Client
from graftwork.training.run.execution import execute
from graftwork.training.run.folder import (
    ADAPTER_FOLDER,
    CHECKPOINTS_FOLDER,
    PARTS_FILE,
    PROGRESS_FILE,
    REPORT_FILE,
    RESULT_FILE,
    TRIALS_FOLDER,
    WORDINGS_FILE,
)
from graftwork.training.run.plan import TrainingRun
from graftwork.training.run.progress import TrainingStep
from graftwork.training.worker.job.plan import compared_version, parent_id, plan_job
from graftwork.training.worker.job.spec import JobSpec, ProgressLine

TERMINATED: Final = 128 + signal.SIGTERM


class JobRunner:
    """Carries out the run in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked_to_end = threading.Event()
        self._stepping = False
        self._phase = "data"

    def run(self) -> int:
        """Carry out the run, and write its result. Must be called from the main thread, as it handles SIGTERM.

        Returns:
            The exit code: 0 if the run succeeded (now or before), 1 if it failed, `TERMINATED` if it was stopped.
        """
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if (self._folder / RESULT_FILE).is_file():
            return (
                0
                if json.loads((self._folder / RESULT_FILE).read_text(encoding="utf-8"))["status"] == "succeeded"
                else 1
            )
        from graftwork.training.run.checkpoints import RunStopped

        try:
            result = self._train(JobSpec.read(self._folder))
        except RunStopped:
            self._say("Asked to end: the newest checkpoint is whole.")
            return TERMINATED
        except GraftworkError as error:
            return self._fail(error.code or "failed", error.message, error.param)
        except OSError as error:
            if not is_disk_full(error):
                traceback.print_exc()
                return self._fail("internal_error", f"{type(error).__name__}: {error}")
            return self._fail(DISK_FULL, "The disk is full: make room where jobs are kept, and submit the job again.")
        except Exception as error:  # the worker waits for a result in any case
            traceback.print_exc()
            return self._fail("internal_error", f"{type(error).__name__}: {error}")
        self._write_result(result)
        for weights in (CHECKPOINTS_FOLDER, TRIALS_FOLDER):
            shutil.rmtree(self._folder / weights, ignore_errors=True)
        (self._folder / WORDINGS_FILE).unlink(missing_ok=True)
        return 0

    # --- the run ----------------------------------------------------------------------------------------------------

    def _train(self, spec: JobSpec) -> dict[str, Any]:
        check_name(spec.name, base_id=spec.base.id)
        self._enter("data", "Reading the data.")
        run = plan_job(spec, self._folder, self._say)
        for remark in run.remarks:
            self._say(remark)
        from graftwork.training.run import checkpoints, estimate

        self._say(
            f"{run.config.method}: {len(run.rows):,} rows to learn from ({run.num_replayed:,} of older rounds), "
            f"{len(run.validation):,} held out, continuing {parent_id(run)}. {run.reason}".strip()
        )
        run = self._fit_memory(run)
        self._say(str(estimate.estimate_run(run.base, run.rows, run.config)))
        adapter = self._folder / ADAPTER_FOLDER
        for leftover in (adapter, *self._folder.glob(f".{ADAPTER_FOLDER}.partial-*")):
            # Of an attempt that was killed: without a result it was not published.
            shutil.rmtree(leftover, ignore_errors=True)
        self._enter("model", "Loading the base.")
        keeping = checkpoints.Checkpointing(
            folder=self._folder / CHECKPOINTS_FOLDER,
            on_checkpoint=lambda step: self._append({"checkpoint": step, "step": step}),
            should_stop=self._asked_to_end.is_set,
        )
        run_name = f"{spec.name} {spec.job_id}"
        if run.config.search:
            from graftwork.training.run.search import search

            card = search(run, adapter, self._on_step, keeping, place=self._folder, run_name=run_name, say=self._say)
        else:
            with _client(spec) as client:
                card = execute(run, adapter, self._on_step, keeping, run_name=run_name, client=client)
        judgement = self._judge(spec, run, adapter)
        return {
            "status": "succeeded",
            "adapter": str(adapter),
            "metrics": card.metrics.to_json(),
            "trained_tokens": card.metrics.num_tokens,
            "data_digest": card.data_digest,
            "card": {**card.to_json(), **judgement, **({"control": True} if CONTROL_KEY in spec.metadata else {})},
        }

    def _fit_memory(self, run: TrainingRun) -> TrainingRun:
        """Reduce the micro-batch size to fit into memory. A resumed run keeps the size that it began with, since
        another one would change the bits of the result."""
        from graftwork.training.run import estimate

        path, wanted = self._folder / PARTS_FILE, run.config.micro_batch_tokens
        if not path.exists():
            write_durably(
                path,
                json.dumps({"micro_batch_tokens": estimate.fitting_micro_batch_tokens(run.base, run.rows, run.config)}),
            )
        tokens = json.loads(path.read_bytes())["micro_batch_tokens"]
        if tokens < wanted:
            self._say(f"Memory is short: {tokens:,} tokens at a time instead of {wanted:,}.")
        return dataclasses.replace(run, config=dataclasses.replace(run.config, micro_batch_tokens=tokens))

    def _judge(self, spec: JobSpec, run: TrainingRun, adapter: Path) -> dict[str, Any]:
        """Evaluate the candidate on the server, and return the result for the model card; empty without a server."""
        if spec.server_url is None:
            return {}
        from graftwork.training.evaluation import judge, report

        self._enter("evaluate", f"Trying it on {len(run.held_out):,} held-out rows, beside what it would replace.")
        with _client(spec) as client:
            assert client is not None
            judgement = judge.judge_candidate(
                client,
                adapter,
                run.held_out,
                base=run.base,
                parent=compared_version(spec, run),
                replay=run.held_out_older,
                final=run.final,
                seed=spec.seed,
                job=spec.job_id,
                grader=judge.JudgingGrader.of(run.config),
            )
        self._phase = "gates"
        if judgement.evaluation is None or judgement.verdict is None:
            self._append({"message": f"Not judged: {judgement.not_measured_because}.", "level": "warn"})
            return judgement.to_json()
        for gate in judgement.verdict.gates:
            self._append({"message": f"Gate {gate.name}: {gate.message}.", "level": "info" if gate.passed else "warn"})
        page = report.render_page(spec.name, judgement.evaluation, judgement.verdict)
        (self._folder / REPORT_FILE).write_text(page, encoding="utf-8")
        return judgement.to_json()

    def _on_step(self, step: TrainingStep) -> None:
        self._stepping = True
        self._phase = "train"
        self._append(
            {
                "step": step.step,
                "total": step.num_steps,
                "loss": step.loss,
                "learning_rate": step.learning_rate,
                "validation_loss": step.validation_loss,
                "num_tokens": step.num_tokens,
                **({"reward": step.reward} if step.reward is not None else {}),
                **({"validation_reward": step.validation_reward} if step.validation_reward is not None else {}),
                **({"passed": step.passed} if step.passed is not None else {}),
                **({"validation_passed": step.validation_passed} if step.validation_passed is not None else {}),
                **({"grades": step.grades} if step.grades else {}),
                **({"validation_grades": step.validation_grades} if step.validation_grades else {}),
                "eta_seconds": step.seconds_left,
                **({"trial": step.trial, "trials": step.trials} if step.trials else {}),
            }
        )

    def _on_sigterm(self, number: int, frame: Any) -> None:
        if not self._stepping or self._asked_to_end.is_set():
            # There is no step to save yet; or this is the second signal.
            os._exit(TERMINATED)
        self._asked_to_end.set()

    # --- progress and result ----------------------------------------------------------------------------------------

    def _enter(self, phase: str, message: str) -> None:
        self._phase = phase
        self._say(message)

    def _say(self, message: str) -> None:
        self._append({"message": message, "level": "info"})

    def _append(self, line: ProgressLine) -> None:
        text = json.dumps({"phase": self._phase, **line}, ensure_ascii=False)
        with (self._folder / PROGRESS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def _fail(self, code: str, message: str, param: str | None = None) -> int:
        self._write_result({"status": "failed", "error": {"code": code, "message": message, "param": param}})
        return 1

    def _write_result(self, result: Mapping[str, Any]) -> None:
        write_durably(self._folder / RESULT_FILE, json.dumps(result, ensure_ascii=False, indent=1))


@contextmanager
def _client(spec: JobSpec) -> Iterator[Client | None]:
    """Yield a client of the job's server; None without one."""
    if spec.server_url is None:
        yield None
        return
    with Client(spec.server_url, os.environ.get(spec.key_variable)) as client:
        yield client
