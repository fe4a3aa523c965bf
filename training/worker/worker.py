"""The training worker: claims jobs, runs each in a process of its own, reports its progress, publishes its version."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import GraftworkError, Unavailable
from graftwork.adapters.feedback.lineage import Lineage, jobs_behind
from graftwork.adapters.learning import data_sets
from graftwork.adapters.learning.files import Files
from graftwork.adapters.learning.graders.reinforcement import is_graded
from graftwork.adapters.learning.job import FEEDBACK_FILE, Claim, ClaimLost, Job, NewJobEvent
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.split_ledger import SplitLedger
from graftwork.adapters.names import split_model
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.registry import Registry, Version, reward_models
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.registry.bucket import ArtifactBucket
from graftwork.adapters.storage import database_id
from graftwork.adapters.storage.database import DATABASE_FILE, Database
from graftwork.adapters.storage.durable import DISK_FULL, is_disk_full, write_durably
from graftwork.adapters.storage.objects import ObjectStore
from graftwork.clients.errors import GraftworkClientError
from graftwork.training.run import folder as folder_module
from graftwork.training.run.folder import PARENTS_FOLDER, RESULT_FILE
from graftwork.training.worker import erasing, launch
from graftwork.training.worker import events as relay
from graftwork.training.worker import intake as intake_module
from graftwork.training.worker.delivery import Delivery, PushDeferred, PushRefused
from graftwork.training.worker.folders import JobFolders
from graftwork.training.worker.heartbeat import Heartbeat
from graftwork.training.worker.job.spec import JobSpec
from graftwork.training.worker.process import KEY_VARIABLE, RUN_COMMAND, RunProcess
from graftwork.training.worker.throttle import Throttle

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 0.5
"""Time between two steps of the worker."""

RELAY_SECONDS: Final = 0.5
"""Time between two reports of a run's progress."""

BUSY_STEP_SECONDS: Final = 0.1
"""Time between two steps while a run is throttled."""

SWEEP_SECONDS: Final = 600.0
"""Time between two clean-ups of the folders of ended jobs."""

ERASE_SECONDS: Final = 10.0
"""Time between two checks for pending erasures."""

PUSH_AGAIN_SECONDS: Final = 2.0
"""Time before a deferred push is tried again."""

MAX_BROKEN_PUSHES: Final = 10
"""Number of pushes that fail with an internal error of the server before the job fails."""

SERVER_PHASES: Final = frozenset({"evaluate", "gates"})
"""Phases in which the run itself sends requests to the server; it is not paused for them."""

HYPERPARAMETER_NAMES: Final = {"n_epochs": "num_epochs"}
"""Names of hyperparameters in a run, by their names in the API, where the two differ."""


@dataclass(frozen=True, kw_only=True)
class TrainingWorkerConfig:
    """The configuration of a training worker.

    Attributes:
        home: the home of the server.
        database: the URL of its database; None for the file in its home.
        base: the base that it serves.
        artifacts: the bucket of its adapters and files; None if all of them are in the home.
        url: its address.
        key: its API key, if it requires one.
        command: the command that carries out a run; the folder is appended to it.
        nice: increment of the niceness of runs, 0 to 19.
        threads: number of CPU threads of runs; 0 for the default of the libraries.
        share: share of the time in which a run continues while the server is busy; see `Throttle`.
        lease_seconds: duration of a claim. After a crash other workers can claim the job when it has expired.
        stop_seconds: time in which a run must stop before it is killed.
        allow_python_graders: whether graders may be Python programs.
    """

    home: Path
    base: BaseInfo
    artifacts: str | None = None
    url: str
    database: str | None = field(default=None, repr=False)  # it may hold a password
    key: str | None = None
    command: Sequence[str] = RUN_COMMAND
    nice: int = 19
    threads: int = 0
    share: float = 0.5
    lease_seconds: float = 30.0
    stop_seconds: float = 10.0
    allow_python_graders: bool = False


@dataclass(kw_only=True)
class CurrentJob:
    """The current job.

    Attributes:
        claim: the claim on it.
        folder: the folder of its run.
        process: its run; None if the run had ended before the worker started.
        relayed_bytes: byte offset in the progress file up to which progress was reported.
        progress: the reported progress.
        push_at: earliest time of the next push, in seconds of the monotonic clock; 0 before the first.
        broken_pushes: number of pushes that failed with an internal error of the server.
        relay_at: time of the next report, in seconds of the monotonic clock.
    """

    claim: Claim
    folder: Path
    process: RunProcess | None
    relayed_bytes: int
    progress: dict[str, Any]
    push_at: float = 0.0
    broken_pushes: int = 0
    relay_at: float = 0.0

    @property
    def id(self) -> str:
        """The id of the job."""
        return self.claim.job.id


class TrainingWorker:
    """The training worker of a home. It runs one job at a time, and checks the files of another one meanwhile.

    Attributes:
        config: its configuration.
        stopping: set to stop the worker.
        throttle: decides when the run pauses.
        busy: whether the server is serving requests.
    """

    def __init__(self, config: TrainingWorkerConfig) -> None:
        self.config = config
        self.stopping = threading.Event()
        self.throttle = Throttle(share=config.share)
        self.busy = False
        self._database = Database(config.database or config.home / DATABASE_FILE)
        self._jobs = Jobs(self._database)
        objects = None if config.artifacts is None else ObjectStore(config.artifacts)
        self._bucket = None if objects is None else ArtifactBucket(objects)
        self._files = Files(self._database, config.home / "files", objects=objects)
        self._registry = Registry(self._database)
        self._store = ArtifactStore(config.home / "artifacts", limits=AdapterLimits())
        self._folders = JobFolders(config.home, self._database)
        self._ledger = SplitLedger(self._database)
        self._delivery = Delivery(
            url=config.url,
            key=config.key,
            files=self._files,
            lineage=Lineage(self._database),
            ledger=self._ledger,
        )
        # There is one worker per home: once it holds the lock, it may release the claims of its predecessor.
        self._owner = f"{os.uname().nodename}:{config.home.resolve()}"
        self._heartbeat = Heartbeat(self._jobs, config.lease_seconds)
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="check")
        self._checking: tuple[Claim, Future[None]] | None = None
        self._current: CurrentJob | None = None
        self._erase_at = 0.0
        self._sweep_at = 0.0

    def run(self) -> None:
        """Work until ``stopping`` is set.

        Raises:
            ConfigurationError: if another worker runs for this home, or the home belongs to another database.
        """
        with self._folders.locked():
            database_id.claim_home(self.config.home, self._database)
            self._jobs.release_owner(self._owner)
            threading.Thread(target=self._heartbeat.beat, args=(self.stopping,), name="heartbeat", daemon=True).start()
            log.info("the training worker %d waits for jobs", os.getpid())
            while not self.stopping.is_set():
                try:
                    pause = self.step()
                except Unavailable as error:
                    log.warning("the training worker cannot go on now; it tries again: %s", error)
                    pause = 5.0
                except Exception:
                    # An error of the database or the disk; errors of a job end the job.
                    log.exception("the training worker failed at a step; it goes on")
                    pause = 5.0
                self.stopping.wait(pause)
            self._stop()

    def step(self) -> float:
        """Do what is to be done at the moment, and return the time until the next step in seconds."""
        now = time.monotonic()
        self._check_files()
        self._drop_if_lost()
        self._start_next_job()
        self._supervise_current_job(now)
        self._clean_up(now)
        return BUSY_STEP_SECONDS if self._current is not None and self.throttle.busy_at > now - 5 else IDLE_SECONDS

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
        with self._give_back_on_error(claim), self._fail_job_on_error(claim):
            folder = self._folders.of(job)
            if job.training_file == FEEDBACK_FILE:
                intake_module.write_feedback(self._database, job.name, folder / folder_module.FEEDBACK_FILE)
            data, validation = self._data(job)
            graded = is_graded(job.hyperparameters)
            if data_sets.is_reference(job.training_file):
                events, answers = intake_module.check_data_set(data[0])
            else:
                events, answers = intake_module.check_files(data, "training_file", graded=graded)
            if validation:
                events += intake_module.check_files(validation, "validation_file", graded=graded)[0]
            if answers:
                write_durably(folder / folder_module.ANSWERS_FILE, json.dumps(sorted(answers)))
            self._jobs.mark_validated(claim, events)

    def _data(self, job: Job) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        def path(id: str) -> Path:
            if data_sets.is_reference(id):
                return data_sets.find(self.config.home, id)
            return self._files.fetch(self._files.get(id))

        feedback = self._folders.of(job) / folder_module.FEEDBACK_FILE
        data = feedback if job.training_file == FEEDBACK_FILE else path(job.training_file)
        return (data,), () if job.validation_file is None else (path(job.validation_file),)

    # -- the run -----------------------------------------------------------------------------------------------------

    def _start_next_job(self) -> None:
        if self._current is not None:
            return
        claim = self._jobs.claim(self._owner, "queued", seconds=self.config.lease_seconds)
        if claim is None:
            return
        self._heartbeat.hold(claim)
        job, process = claim.job, None
        with self._give_back_on_error(claim), self._fail_job_on_error(claim):
            folder = self._folders.of(job)
            if not (folder / RESULT_FILE).exists():
                self._write_sides(job, folder)
                self._spec(job).write(folder)
                process = self._start(folder)
            self._current = CurrentJob(
                claim=claim,
                folder=folder,
                process=process,
                relayed_bytes=job.relayed_bytes,
                progress=dict(job.progress),
            )
            log.info("%s: attempt %d for %s", job.id, job.attempts, job.name)

    def _write_sides(self, job: Job, folder: Path) -> None:
        """Write down on which sides questions are, for the run. One that is started again keeps what it began with."""
        path = folder / folder_module.SIDES_FILE
        if not path.exists():
            parents = [split_model(job.parent)[0]] if job.parent else []
            write_durably(path, json.dumps(self._ledger.sides(job.name, *parents)))

    def _start(self, folder: Path) -> RunProcess:
        config = self.config
        return RunProcess(folder, config.command, key=config.key, nice=config.nice, threads=config.threads)

    def _spec(self, job: Job) -> JobSpec:
        data, validation = self._data(job)
        parent_name, number = split_model(job.parent) if job.parent else (None, None)
        folder = None
        ancestors: tuple[str, ...] = ()
        if parent_name is not None and number is not None:
            parent = self._registry.version(parent_name, int(number))
            folder, ancestors = self._adapter(job, parent), jobs_behind(self._registry, parent)
        return JobSpec(
            job_id=job.id,
            name=job.name,
            base=self.config.base,
            parent=None if number is None else int(number),
            parent_name=parent_name,
            parent_folder=folder,
            ancestors=ancestors,
            method=job.method,
            hyperparameters={
                HYPERPARAMETER_NAMES.get(name, name): value for name, value in job.hyperparameters.items()
            },
            reward_models={
                version.id: self._adapter(job, version)
                for version in reward_models.named(job.hyperparameters.get("rewards", ()), self._registry)
            },
            data=data,
            validation=validation,
            seed=job.seed,
            metadata=job.metadata,
            server_url=self.config.url,
            key_variable=KEY_VARIABLE,
            allow_python_graders=self.config.allow_python_graders,
        )

    def _adapter(self, job: Job, version: Version) -> Path:
        """The folder of a version. From a bucket it is fetched for the job: the server removes what it fetched."""
        if self._bucket is None:
            return self._store.path(version.digest)
        fetched = ArtifactStore(self._folders.of(job) / PARENTS_FOLDER, limits=self._store.limits)
        return self._bucket.download(version.digest, fetched)

    def _supervise_current_job(self, now: float) -> None:
        if self._current is not None:
            try:
                self._supervise_run(self._current, now)
            except ClaimLost:
                self._drop()

    def _supervise_run(self, current: CurrentJob, now: float) -> None:
        process = current.process
        if process is not None:
            self.throttle.record(self.busy, now)
            process.pause(self.throttle.should_pause(now) and current.progress.get("phase") not in SERVER_PHASES)
        ended = process is None or process.exit_code is not None
        if ended or now >= current.relay_at:
            self._relay(current)
            current.relay_at = now + RELAY_SECONDS
        if not ended:
            return
        if (current.folder / RESULT_FILE).exists():
            if now >= current.push_at:
                self._finish(current)
            return
        assert process is not None
        if process.exit_code == launch.EXIT_FOLDER_BUSY:
            self._requeue(current, "The run of another worker still ends.", forgiven=True)
        else:
            self._requeue(current, process.describe_exit(), forgiven=False)

    def _relay(self, current: CurrentJob) -> None:
        while True:
            update = relay.read_progress(current.folder, current.relayed_bytes, current.progress)
            if update.end == current.relayed_bytes:
                return
            self._jobs.report(
                current.claim,
                update.events,
                checkpoints=update.checkpoints,
                progress=update.progress,
                relayed_bytes=update.end,
            )
            current.relayed_bytes = update.end
            current.progress |= update.progress

    # -- after the run -----------------------------------------------------------------------------------------------

    def _finish(self, current: CurrentJob) -> None:
        claim, job = current.claim, current.claim.job
        with self._fail_job_on_error(claim):
            result = json.loads((current.folder / RESULT_FILE).read_text(encoding="utf-8"))
            if result["status"] != "succeeded":
                error = result["error"]
                self._jobs.fail(claim, code=error["code"], message=error["message"], param=error.get("param"))
            else:
                self._jobs.publish(claim)
                try:
                    version, events = self._delivery.push(job, current.folder, result)
                except PushDeferred as reason:
                    self._push_later(current, reason)
                    return
                result_files, warnings = self._delivery.keep_results(job, current.folder)
                self._jobs.succeed(
                    claim,
                    version,
                    events=[*events, *warnings],
                    metrics=result.get("metrics") or {},
                    trained_tokens=result.get("trained_tokens"),
                    result_files=result_files,
                )
                log.info("%s: %s", job.id, version)
        self._done(current)

    def _push_later(self, current: CurrentJob, reason: PushDeferred) -> None:
        """Schedule the next push. There is no limit while the server is unavailable, but there is one for internal
        errors.

        Raises:
            PushRefused: after `MAX_BROKEN_PUSHES` internal errors.
        """
        log.warning("%s has finished, but its version cannot be pushed yet: %s", current.id, reason)
        current.broken_pushes += reason.broken
        if current.broken_pushes >= MAX_BROKEN_PUSHES:
            raise PushRefused(f"The server failed at the version {MAX_BROKEN_PUSHES} times; the last time: {reason}")
        if not current.push_at:
            message = f"The run has ended well; its version waits for the server: {reason}"
            self._jobs.report(current.claim, [NewJobEvent(message=message, level="warn")])
        current.push_at = time.monotonic() + PUSH_AGAIN_SECONDS

    @contextlib.contextmanager
    def _fail_job_on_error(self, claim: Claim) -> Iterator[None]:
        """Fail the job for an error in the block, unless the claim is lost or the database is busy."""
        try:
            try:
                yield
            except ClaimLost:
                raise
            except GraftworkError as error:
                if isinstance(error, Unavailable) and error.code != DISK_FULL:
                    raise  # the database is busy, which must not fail the job
                self._fail(claim, error.code or "failed", error.message, error.param)
            except GraftworkClientError as error:
                self._fail(claim, "push_refused", str(error))
            except OSError as error:
                code = DISK_FULL if is_disk_full(error) else "io_error"
                self._fail(claim, code, f"{error.strerror or error}: {error.filename or claim.job.id}")
        except ClaimLost as lost:
            log.info("%s", lost)
            self._heartbeat.let_go(claim)

    @contextlib.contextmanager
    def _give_back_on_error(self, claim: Claim) -> Iterator[None]:
        """Return the job to the queue for an error in the block, which is the database's or the worker's own. If not
        even that can be written, the claim expires: it must not be renewed for a job that nobody works on.
        """
        try:
            yield
        except Exception as error:
            self._heartbeat.let_go(claim)
            busy = isinstance(error, Unavailable | DBAPIError)
            reason = "The server's database was busy" if busy else f"The worker failed ({type(error).__name__})"
            with contextlib.suppress(ClaimLost, Unavailable, DBAPIError):
                self._jobs.release(claim, f"{reason}; the job is tried again.", forgiven=busy)
            raise

    def _fail(self, claim: Claim, code: str, message: str, param: str | None = None) -> None:
        log.warning("%s failed: %s", claim.job.id, message)
        self._heartbeat.let_go(claim)
        self._jobs.fail(claim, code=code, message=message, param=param)

    def _requeue(self, current: CurrentJob, reason: str, *, forgiven: bool) -> None:
        log.warning("%s: %s", current.id, reason)
        self._jobs.release(current.claim, reason, forgiven=forgiven)
        self._done(current)

    def _done(self, current: CurrentJob) -> None:
        self._heartbeat.let_go(current.claim)
        self._current = None
        self._tidy(current.id)

    def _drop_if_lost(self) -> None:
        if self._current is not None and self._heartbeat.has_lost(self._current.claim):
            self._drop()

    def _drop(self) -> None:
        """Kill the run of a job that was cancelled or claimed by another worker. Nothing is reported."""
        assert self._current is not None
        current = self._current
        log.info("%s was cancelled, or is another worker's by now: its run ends", current.id)
        if current.process is not None:
            current.process.end(0)
        self._done(current)

    def _stop(self) -> None:
        """Stop the current run and return its job to the queue, from which it will be resumed."""
        current = self._current
        if current is not None:
            with self._fail_job_on_error(current.claim):
                if current.process is not None:
                    current.process.end(self.config.stop_seconds)
                    self._relay(current)
                self._jobs.release(current.claim, "The server stops; the job goes on when it is back.", forgiven=True)
        if self._checking is not None:
            claim, future = self._checking
            if future.cancel() or not future.done():
                with self._fail_job_on_error(claim):
                    self._jobs.release(claim, "The server stops; the job goes on when it is back.", forgiven=True)
        self._checker.shutdown(wait=False, cancel_futures=True)

    # -- clean-up ----------------------------------------------------------------------------------------------------

    def _clean_up(self, now: float) -> None:
        if now >= self._erase_at:
            self._erase_at = now + ERASE_SECONDS
            erasing.erase_pending(self._database, self.config.home)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self._sweep()

    def _sweep(self) -> None:
        self._files.remove_strays()
        for id in self._folders.ids():
            try:
                self._tidy(id)
            except Exception:
                # For example a job that is not in the database. The other folders must be tidied nevertheless.
                log.exception("the folder of %s cannot be tidied, and stays as it is", id)

    def _tidy(self, id: str) -> None:
        job = self._jobs.get(id)
        if job.ended:
            self._end_trials(id)
            self._folders.tidy(job)

    def _end_trials(self, id: str) -> None:
        """Retire the temporary versions of an evaluation that was killed."""
        for version in self._registry.trials():
            if version.metadata.get("job") == id:
                self._registry.retire(version.name, version.number, actor="worker", reason=f"{id} has ended")
