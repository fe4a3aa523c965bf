"""The training worker: claims jobs, has each carried out by a process of its own, tells what happens, publishes.

::

    claim ─▶ check the files ─▶ (queued) ─▶ claim ─▶ run, relay, pause for those who ask ─▶ push ─▶ name@n

Whatever is killed, and whenever: the run dies with the worker, the worker with the server. The next worker of the home
claims the job again and the run goes on from its newest whole checkpoint; a run that had finished is not run again, and
what had been pushed is pushed again, which is the same version. Nothing is published before a run has ended well.

`graftwork serve` starts one; ``python -m graftwork.training.worker --help`` says how to start one by hand, for a server
with ``--no-trainer``. Knows nothing of how training is done: that is ``graftwork.training.job``, the other process.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from graftwork.adapters import names
from graftwork.adapters.artifacts import ArtifactStore, Limits
from graftwork.adapters.base import BaseInfo
from graftwork.adapters.db import Database
from graftwork.adapters.descent import die_with_parent
from graftwork.adapters.durable import write_whole
from graftwork.adapters.errors import ConfigurationError, GraftworkError, Unavailable
from graftwork.adapters.files import Files
from graftwork.adapters.jobs import FEEDBACK, Claim, Job, Jobs, Lost, NewEvent
from graftwork.adapters.lineage import Lineage
from graftwork.adapters.names import split
from graftwork.adapters.registry import Registry
from graftwork.clients.client import Client
from graftwork.clients.errors import (
    ConflictError,
    GraftworkAPIError,
    GraftworkClientError,
    GraftworkConnectionError,
    OverloadedError,
    ServerError,
)
from graftwork.clients.types import PushedVersion
from graftwork.training import erasing, intake, launch, relay
from graftwork.training.jobspec import ADAPTER, CHECKPOINTS, REPORT, RESULT, TRIALS, JobSpec
from graftwork.training.pace import Pace

log = logging.getLogger(__name__)

RUN: Final = (sys.executable, "-m", "graftwork.training.job")
KEY_VARIABLE: Final = "GRAFTWORK_API_KEY"
LOG_FILE: Final = "run.log"

DISK_FULL: Final = "disk_full"

IDLE_SECONDS: Final = 0.5
RELAY_SECONDS: Final = 0.5
PACE_SECONDS: Final = 0.1
SWEEP_SECONDS: Final = 600.0
ERASE_SECONDS: Final = 10.0
PUSH_AGAIN_SECONDS: Final = 2.0

ASKING: Final = frozenset({"evaluate", "gates"})
"""Phases in which a run asks the server itself: it does not pause for its own requests."""

RENAMED: Final = {"n_epochs": "num_epochs"}
"""Hyperparameters whose name in the API is another one than in a run."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """
    Attributes:
        home: of the server. base: what it serves. url: where it listens. key: that it takes, if it asks for one.
        command: what carries out a run, before its folder.
        nice, threads: of a run; 0 threads is torch's choice. share: see `Pace`.
        lease_seconds: how long after its death a worker is missed by others that share the database.
        stop_seconds: how long a run may take to stop before it is killed.
    """

    home: Path
    base: BaseInfo
    url: str
    key: str | None = None
    command: Sequence[str] = RUN
    nice: int = 19
    threads: int = 0
    share: float = 0.5
    lease_seconds: float = 30.0
    stop_seconds: float = 10.0


class Process:
    """One run: a group of processes that starts, pauses, goes on and ends together."""

    def __init__(self, config: WorkerConfig, folder: Path) -> None:
        self.folder = folder
        self.paused = False
        environment = {**os.environ, **({KEY_VARIABLE: config.key} if config.key else {})}
        limits = (str(os.getpid()), str(config.nice), str(config.threads))
        with (folder / LOG_FILE).open("ab") as out:
            self._process = subprocess.Popen(
                (sys.executable, "-m", launch.__name__, str(folder), *limits, *config.command, str(folder)),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is not for it; what it starts is stopped with it
            )

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def pause(self, wanted: bool) -> None:
        if wanted != self.paused and self.exit_code is None:
            self._signal(signal.SIGSTOP if wanted else signal.SIGCONT)
            self.paused = wanted

    def end(self, seconds: float) -> None:
        """Ask it to stop, wait that long, kill it."""
        self.pause(False)
        if seconds:
            self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def how_it_ended(self) -> str:
        code = self._process.returncode
        if code >= 0:
            tail = (self.folder / LOG_FILE).read_text(errors="replace").strip().rpartition("\n")[2][-300:]
            return f"the run ended with exit code {code} and no result ({tail})."
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"the run was killed ({name}{hint})."

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@dataclass(kw_only=True)
class Current:
    """The job under way: its claim, its run while there is one, and what of it has been told."""

    claim: Claim
    folder: Path
    process: Process | None
    relayed: int
    progress: dict[str, Any]
    push_at: float = 0.0
    relay_at: float = 0.0

    @property
    def id(self) -> str:
        return self.claim.job.id


@dataclass
class Heartbeat:
    """Renews claims from a thread of its own: a push may take minutes."""

    jobs: Jobs
    seconds: float
    claims: dict[str, Claim] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def hold(self, claim: Claim) -> None:
        self.lost.discard(claim.job.id)
        self.claims[claim.job.id] = claim

    def let_go(self, claim: Claim) -> None:
        self.claims.pop(claim.job.id, None)

    def beat(self, stopping: threading.Event) -> None:
        while not stopping.wait(min(self.seconds / 3, 2.0)):
            for id, claim in list(self.claims.items()):
                try:
                    self.jobs.renew(claim, seconds=self.seconds)
                except Lost:
                    self.lost.add(id)
                except GraftworkError:
                    log.exception("the claim on %s cannot be renewed; trying again", id)


class Worker:
    """One worker of one home. ``step`` does what there is to do, and says how soon it wants to be asked again."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.stopping = threading.Event()
        self.pace = Pace(share=config.share)
        self.busy = False
        self._database = Database(config.home / "graftwork.db")
        self._jobs = Jobs(self._database)
        self._files = Files(self._database, config.home / "files")
        self._registry = Registry(self._database)
        self._store = ArtifactStore(config.home / "artifacts", limits=Limits())
        self._lineage = Lineage(self._database)
        self._folders = config.home / "jobs"
        self._folders.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One worker a home: whatever the last one had claimed is free when this one holds the home's lock.
        self._owner = f"{os.uname().nodename}:{config.home.resolve()}"
        self._heartbeat = Heartbeat(self._jobs, config.lease_seconds)
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="check")
        self._checking: tuple[Claim, Future[None]] | None = None
        self._current: Current | None = None
        self._erase_at = 0.0
        self._sweep_at = 0.0

    def run(self) -> None:
        """Work until ``stopping`` is set. Holds the home's lock meanwhile."""
        with self._sole_worker():
            self._jobs.disown(self._owner)
            threading.Thread(target=self._heartbeat.beat, args=(self.stopping,), name="heartbeat", daemon=True).start()
            log.info("the training worker %d waits for jobs", os.getpid())
            while not self.stopping.is_set():
                try:
                    pause = self.step()
                except Exception:
                    # The database, the disk: nothing of a job's own, whose problems end the job.
                    log.exception("the training worker failed at a step; it goes on")
                    pause = 5.0
                self.stopping.wait(pause)
            self._stop()

    def step(self) -> float:
        now = time.monotonic()
        self._check_files()
        if self._current is not None and self._current.id in self._heartbeat.lost:
            self._drop()
        if self._current is None:
            self._begin()
        if self._current is not None:
            try:
                self._go_on(self._current, now)
            except Lost:
                self._drop()
        if now >= self._erase_at:
            self._erase_at = now + ERASE_SECONDS
            erasing.carry_out(self._database, self.config.home)
        if now >= self._sweep_at:
            self._sweep()
            self._sweep_at = now + SWEEP_SECONDS
        return PACE_SECONDS if self._current is not None and self.pace.busy_at > now - 5 else IDLE_SECONDS

    # -- before the run ----------------------------------------------------------------------------------------------

    def _check_files(self) -> None:
        if self._checking is not None:
            claim, future = self._checking
            if not future.done():
                return
            self._checking = None
            self._heartbeat.let_go(claim)
            future.result()
        new = self._jobs.claim(self._owner, "validating_files", seconds=self.config.lease_seconds)
        if new is not None:
            self._heartbeat.hold(new)
            self._checking = new, self._checker.submit(self._check, new)

    def _check(self, claim: Claim) -> None:
        job = claim.job
        with self._given_back(claim), self._job_ends(claim):
            folder = self._folder(job)
            if job.training_file == FEEDBACK:
                intake.write_feedback(self._database, job.name, folder / intake.FEEDBACK_FILE)
            data, validation = self._data(job)
            events, answers = intake.check(data, "training_file")
            if validation:
                events += intake.check(validation, "validation_file")[0]
            if answers:
                write_whole(folder / intake.ANSWERS_FILE, json.dumps(sorted(answers)))
            self._jobs.validated(claim, events)

    def _data(self, job: Job) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        def path(id: str) -> Path:
            return self._files.path(self._files.get(id))

        feedback = self._folder(job) / intake.FEEDBACK_FILE
        data = feedback if job.training_file == FEEDBACK else path(job.training_file)
        return (data,), () if job.validation_file is None else (path(job.validation_file),)

    # -- the run -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        claim = self._jobs.claim(self._owner, "queued", seconds=self.config.lease_seconds)
        if claim is None:
            return
        self._heartbeat.hold(claim)
        job, process = claim.job, None
        with self._given_back(claim), self._job_ends(claim):
            folder = self._folder(job)
            if not (folder / RESULT).exists():
                self._spec(job).write(folder)
                process = Process(self.config, folder)
            self._current = Current(
                claim=claim, folder=folder, process=process, relayed=job.relayed_bytes, progress=dict(job.progress)
            )
            log.info("%s: attempt %d for %s", job.id, job.attempts, job.name)

    def _spec(self, job: Job) -> JobSpec:
        data, validation = self._data(job)
        parent_name, number = split(job.parent) if job.parent else (None, None)
        folder = None
        if parent_name is not None and number is not None:
            folder = self._store.path(self._registry.version(parent_name, int(number)).digest)
        return JobSpec(
            job_id=job.id,
            name=job.name,
            base=self.config.base,
            parent=None if number is None else int(number),
            parent_name=parent_name,
            parent_folder=folder,
            method=job.method,
            hyperparameters={RENAMED.get(name, name): value for name, value in job.hyperparameters.items()},
            data=data,
            validation=validation,
            seed=job.seed,
            metadata=job.metadata,
            server_url=self.config.url,
            key_variable=KEY_VARIABLE,
        )

    def _go_on(self, current: Current, now: float) -> None:
        process = current.process
        if process is not None:
            self.pace.saw(self.busy, now)
            process.pause(self.pace.paused(now) and current.progress.get("phase") not in ASKING)
        ended = process is None or process.exit_code is not None
        if ended or now >= current.relay_at:
            self._relay(current)
            current.relay_at = now + RELAY_SECONDS
        if not ended:
            return
        if (current.folder / RESULT).exists():
            if now >= current.push_at:
                self._finish(current)
            return
        assert process is not None
        if process.exit_code == launch.BUSY:
            self._let_go(current, "The run of another worker still ends.", forgiven=True)
        else:
            self._let_go(current, process.how_it_ended(), forgiven=False)

    def _relay(self, current: Current) -> None:
        while True:
            news = relay.read(current.folder, current.relayed, current.progress)
            if news.end == current.relayed:
                return
            self._jobs.report(
                current.claim,
                news.events,
                checkpoints=news.checkpoints,
                progress=news.progress,
                relayed_bytes=news.end,
            )
            current.relayed = news.end
            current.progress |= news.progress

    # -- after the run -----------------------------------------------------------------------------------------------

    def _finish(self, current: Current) -> None:
        claim, job = current.claim, current.claim.job
        with self._job_ends(claim):
            result = json.loads((current.folder / RESULT).read_text(encoding="utf-8"))
            if result["status"] != "succeeded":
                error = result["error"]
                self._jobs.fail(claim, code=error["code"], message=error["message"], param=error.get("param"))
            else:
                self._jobs.publish(claim)
                if (pushed := self._push(job, current.folder, result)) is None:
                    current.push_at = time.monotonic() + PUSH_AGAIN_SECONDS
                    return
                version, events = pushed
                self._jobs.succeed(
                    claim,
                    version,
                    events=events,
                    metrics=result.get("metrics") or {},
                    trained_tokens=result.get("trained_tokens"),
                    result_files=[self._keep_results(job, current.folder)],
                )
                log.info("%s: %s", job.id, version)
        self._done(current)

    def _push(self, job: Job, folder: Path, result: Mapping[str, Any]) -> tuple[str, list[NewEvent]] | None:
        """The version, which is the same however often it is pushed, and what became of the alias for candidates; None
        when the server cannot take it just now."""
        digest = result.get("data_digest")
        answers = folder / intake.ANSWERS_FILE
        if digest and answers.exists():
            # Before the version can be seen: whatever learned from somebody's words is on record.
            self._lineage.record(digest, json.loads(answers.read_bytes()))
        card = result.get("card") or {}
        parent_name, number = split(job.parent) if job.parent else (None, "0")
        try:
            with Client(self.config.url, self.config.key) as client:
                version = client.adapters.push(
                    job.name,
                    Path(result["adapter"]),
                    parent=int(number) if parent_name == job.name else None,
                    data_digest=digest,
                    metadata={**card, "job": job.id},
                )
                return version.id, _moved(client, version, card.get("gates"))
        except (GraftworkConnectionError, OverloadedError, ServerError) as error:
            log.warning("%s has finished, but its version cannot be pushed yet: %s", job.id, error)
            return None
        except GraftworkAPIError as error:
            raise Refused(str(error), code=error.code or "push_refused") from error

    def _keep_results(self, job: Job, folder: Path) -> str:
        with self._files.upload() as upload:
            upload.write(relay.results(folder))
            return self._files.keep(
                upload,
                filename="step_metrics.csv",
                purpose="fine-tune-results",
                key_id=job.key_id,
                id=f"file-{job.id.removeprefix('ftjob-')}",
            ).id

    @contextlib.contextmanager
    def _job_ends(self, claim: Claim) -> Iterator[None]:
        """What goes wrong with the job's own things ends the job, with the reason."""
        try:
            try:
                yield
            except Lost:
                raise
            except GraftworkError as error:
                if isinstance(error, Unavailable) and error.code != DISK_FULL:
                    raise  # the database is busy: that is no fault of the job's
                self._fail(claim, error.code or "failed", error.message, error.param)
            except GraftworkClientError as error:
                self._fail(claim, "push_refused", str(error))
            except OSError as error:
                code = DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else "io_error"
                self._fail(claim, code, f"{error.strerror or error}: {error.filename or claim.job.id}")
        except Lost as lost:
            log.info("%s", lost)
            self._heartbeat.let_go(claim)

    @contextlib.contextmanager
    def _given_back(self, claim: Claim) -> Iterator[None]:
        """What cannot be begun just now is begun later, by whoever claims it then."""
        try:
            yield
        except Unavailable:
            self._heartbeat.let_go(claim)
            with contextlib.suppress(Lost):
                self._jobs.let_go(claim, "The server's database was busy; the job is tried again.", forgiven=True)
            raise

    def _fail(self, claim: Claim, code: str, message: str, param: str | None = None) -> None:
        log.warning("%s failed: %s", claim.job.id, message)
        self._heartbeat.let_go(claim)
        self._jobs.fail(claim, code=code, message=message, param=param)

    def _let_go(self, current: Current, reason: str, *, forgiven: bool) -> None:
        log.warning("%s: %s", current.id, reason)
        self._jobs.let_go(current.claim, reason, forgiven=forgiven)
        self._done(current)

    def _done(self, current: Current) -> None:
        self._heartbeat.let_go(current.claim)
        self._current = None
        self._tidy(current.id)

    def _drop(self) -> None:
        """The job was cancelled, or is another's: its run ends, and nothing is written."""
        assert self._current is not None
        current = self._current
        log.info("%s was cancelled, or is another worker's by now: its run ends", current.id)
        if current.process is not None:
            current.process.end(0)
        self._done(current)

    def _stop(self) -> None:
        """The server stops. What runs is given back, to be gone on with."""
        current = self._current
        if current is not None:
            with self._job_ends(current.claim):
                if current.process is not None:
                    current.process.end(self.config.stop_seconds)
                    self._relay(current)
                self._jobs.let_go(current.claim, "The server stops; the job goes on when it is back.", forgiven=True)
        if self._checking is not None:
            claim, future = self._checking
            if future.cancel() or not future.done():
                with self._job_ends(claim):
                    self._jobs.let_go(claim, "The server stops; the job goes on when it is back.", forgiven=True)
        self._checker.shutdown(wait=False, cancel_futures=True)

    # -- folders -----------------------------------------------------------------------------------------------------

    def _folder(self, job: Job) -> Path:
        folder = self._folders / job.id
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def _sweep(self) -> None:
        for folder in self._folders.iterdir():
            if folder.is_dir():
                self._tidy(folder.name)

    def _tidy(self, id: str) -> None:
        """Of a job that has ended stays what tells of it, and the feedback that it learned from, as long as the log has
        it: later rounds learn it again. Weights go, and what nothing was learned from."""
        job = self._jobs.get(id)
        if not job.ended:
            return
        for name in (CHECKPOINTS, TRIALS, ADAPTER):
            shutil.rmtree(self._folders / id / name, ignore_errors=True)
        self._end_trials(id)
        (self._folders / id / intake.ANSWERS_FILE).unlink(missing_ok=True)
        if job.status == "succeeded":
            erasing.forget_in(self._database, self._folders / id)
            return
        for name in (intake.FEEDBACK_FILE, REPORT):
            (self._folders / id / name).unlink(missing_ok=True)

    def _end_trials(self, id: str) -> None:
        """Whatever a run was killed in the middle of trying is not called any more."""
        for version in self._registry.trials():
            if version.metadata.get("job") == id:
                self._registry.retire(version.name, version.number, actor="worker", reason=f"{id} has ended")

    @contextlib.contextmanager
    def _sole_worker(self) -> Iterator[None]:
        with (self._folders / "worker.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"Another training worker runs on {self.config.home}: one a home is enough."
                ) from None
            yield


def _moved(client: Client, version: PushedVersion, gates: Mapping[str, Any] | None) -> list[NewEvent]:
    """Point `names.CANDIDATE` at a version that passed all gates, and say so; or say why it stays where it is.
    ``gates`` are None for a version that nobody judged."""
    if gates is None:
        return []
    alias = f"{version.name}@{names.CANDIDATE}"
    if not gates["passed"]:
        why = "; ".join(gates["refusals"])
        return [NewEvent(message=f"{alias} stays where it is, the gates refuse: {why}.", level="warn")]
    try:
        client.adapters.promote(version.name, version.version, alias=names.CANDIDATE, reason="it passed all gates")
    except ConflictError as error:
        return [NewEvent(message=f"All gates are passed, and {alias} stays where it is: {error}", level="warn")]
    return [NewEvent(message=f"All gates are passed: {alias} is {version.id} now.")]


class Refused(GraftworkError):
    """The server took everything but this version."""

    default_code = "push_refused"


def follow(worker: Worker, line: BinaryIO) -> None:
    """Read what the server says: ``1`` while it answers somebody, ``0`` while not. Its end is the worker's."""
    while said := os.read(line.fileno(), 64):
        worker.busy = said.endswith(b"1")
    worker.stopping.set()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m graftwork.training.worker", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--home", type=Path, required=True, help="the server's home")
    parser.add_argument("--base", type=Path, required=True, help="what the server serves, as base.json in HOME/jobs")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server listens")
    parser.add_argument("--nice", type=int, default=19, help="of a run, 0 to 19")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a run; 0: torch's choice")
    parser.add_argument("--share", type=float, default=0.5, help="of the time that a run goes on beside requests")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--parent", type=int, help="the server's process: this one dies with it, and reads from it")
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if given.parent is not None:
        die_with_parent(given.parent)
    config = WorkerConfig(
        home=given.home,
        base=BaseInfo.from_json(given.base.read_text(encoding="utf-8")),
        url=given.url,
        key=os.environ.get(KEY_VARIABLE),
        nice=given.nice,
        threads=given.threads,
        share=given.share,
    )
    return serve(config, line=sys.stdin.buffer if given.parent is not None else None)


def serve(config: WorkerConfig, *, line: BinaryIO | None = None) -> int:
    """Work until SIGTERM, or until ``line`` ends. Returns the process's exit code."""
    worker = Worker(config)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the server drains and then ends us
    if line is not None:
        threading.Thread(target=follow, args=(worker, line), name="line", daemon=True).start()
    try:
        worker.run()
    except GraftworkError as error:
        log.error("%s", error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
