"""Composition: from a ``ServerConfig`` to a running server, and back down again.

The parent prepares the base (in a subprocess: it never loads torch itself), migrates the database, then runs LitServe:
API processes and the engine worker are its children and die with it. What LitServe does differently from what a
gateway needs is overridden in ``GraftServer``, each with its reason.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing import connection
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import litserve as ls
from anyio import to_thread
from fastapi import FastAPI
from litserve.transport.factory import create_transport_from_config
from litserve.utils import WorkerSetupStatus

import graftwork
from graftwork.adapters.artifacts import ArtifactStore
from graftwork.adapters.base import BaseInfo
from graftwork.adapters.db import Database, migrate
from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.experiments import Experiments, UnderExperiment
from graftwork.adapters.exposures import Exposures
from graftwork.adapters.files import Files
from graftwork.adapters.jobs import Jobs
from graftwork.adapters.keys import Keys, Role
from graftwork.adapters.learning_policies import LearningPolicies
from graftwork.adapters.leases import Lease, Leases
from graftwork.adapters.prompts import Prompts
from graftwork.adapters.registry import Registry
from graftwork.server import edge
from graftwork.server.auth import Authenticator
from graftwork.server.auto_loop import AutoLoop
from graftwork.server.config import ServerConfig
from graftwork.server.gateway import Gateway
from graftwork.server.keeper import Keeper
from graftwork.server.link import EngineLink
from graftwork.server.metrics import Metrics
from graftwork.server.processes import DRAINING, SERVING, STOPPING, Board, die_with_parent, sole_server, take_secret
from graftwork.server.referee import Referee
from graftwork.server.routes import router
from graftwork.server.services import Records, Services
from graftwork.server.trainer import PRINCIPAL as TRAINER
from graftwork.server.trainer import Trainer
from graftwork.server.worker import EXIT_CONFIGURATION, EngineAPI, EngineLoop, WorkerConfig

log = logging.getLogger(__name__)

#: What canaries answer, with and without the new adapter.
CANARY_TEXT = "Dear Sir or Madam, I am writing about a transfer of 25.50 that has not arrived. What should I do?"

#: An engine worker that dies this often in a row before it was ready is not started again.
MAX_FAILED_STARTS = 3
API_PROCESSES = 1
RETENTION_SECONDS = 3600.0
#: A guardrail's evidence waits no longer than this.
EXPERIMENTS_SECONDS = 1.0
#: A round of learning takes minutes: it may begin this late.
LEARNING_SECONDS = 5.0
#: How long a connection may idle before this end closes it. Clients let go sooner, openai's and httpx's after five
#: seconds: at Uvicorn's own five, one would now and then be closed at the very moment when a request is sent on it.
IDLE_SECONDS = 75
#: At the end, when nothing is under way any more: how long connections may stay open, whose clients do not read; how
#: long a database that is busy may keep the last rows waiting; and what an API process takes beside these.
CLOSE_SECONDS = 10
LOG_SECONDS = 20
SLACK_SECONDS = 10


class GraftServer(ls.LitServer):
    """LitServe's server with this project's routes, start, watch and end."""

    def __init__(
        self, api: EngineAPI, gateway: Gateway, services: Services, board: Board, keeper: Keeper, trainer: Trainer
    ) -> None:
        self.gateway = gateway
        self.services = services
        self.keeper = keeper
        self.trainer = trainer
        self.board = board
        self.exit_code = 0
        self.inference_workers: list[Any] = []
        self._failed_starts = 0
        super().__init__(
            api,
            accelerator="cpu",  # LitServe starts one worker; which device it uses is the engine's choice
            timeout=False,
            restart_workers=True,
            disable_openapi_url=True,
        )
        self.monitor_internal = 0.2
        self.uvicorn_graceful_timeout = CLOSE_SECONDS
        self.app.docs_url = self.app.redoc_url = None

    # LitServe would answer / and /health itself, with shapes of its own.
    def _register_internal_endpoints(self) -> None:
        self.app.include_router(router(self.services))
        edge.install(self.app, self.services.metrics)

    # LitServe knows X-API-Key; every route of ours asks for the same bearer keys.
    def setup_auth(self, lit_api: ls.LitAPI | None = None) -> Callable[..., Any]:
        return self.services.authenticator.require(Role.APP)

    # The manager owns all queues; it must not outlive us, nor leave when a signal is sent to the whole group.
    def _init_manager(self, num_api_servers: int) -> SyncManager:
        manager = SyncManager(ctx=mp.get_context("fork"))
        manager.start(initializer=partial(_sheltered, os.getpid()))
        self.transport_config.manager = manager
        self.transport_config.num_consumers = num_api_servers
        self.workers_setup_status = manager.dict()
        # Only this process asks it; the manager's would be gone while LitServe's monitor still looks at it.
        self._shutdown_event = threading.Event()
        for lit_api in self.litapi_connector:
            self.litapi_request_queues[lit_api.api_path] = manager.Queue()
        self._transport = create_transport_from_config(self.transport_config)
        self._install_signal_handlers()
        return manager

    # LitServe waits for the worker before it listens; we listen at once and say /ready 503.
    def verify_worker_status(self) -> None:
        return

    # LitServe would start a worker that cannot start again every two seconds, for ever; also while it shuts down.
    def launch_single_inference_worker(self, lit_api: ls.LitAPI, worker_id: int) -> Any:
        died = self.inference_workers[worker_id]
        if self.board.phase == STOPPING:
            threading.Event().wait()  # this is LitServe's monitor thread: nothing is left for it to do
        was_ready = WorkerSetupStatus.READY in self.workers_setup_status.values()
        self._failed_starts = 0 if was_ready else self._failed_starts + 1
        if died.exitcode == EXIT_CONFIGURATION or self._failed_starts >= MAX_FAILED_STARTS:
            log.error("the engine cannot start; shutting down (its own message is above)")
            self.exit_code = 1
            self._stop()
            threading.Event().wait()
        log.warning("the engine worker ended (exit code %s); starting it again", died.exitcode)
        return super().launch_single_inference_worker(lit_api, worker_id)

    # LitServe does not look at its API processes: without one there is a server that nobody can reach.
    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: dict[str, Any]) -> None:
        super()._start_worker_monitoring(manager, uvicorn_workers)

        def watch() -> None:
            connection.wait([process.sentinel for process in uvicorn_workers.values()])
            if self.board.phase != STOPPING:
                log.error("an API process died; shutting down, so that whoever watches this server starts it again")
                self.exit_code = 1
                self._stop()

        threading.Thread(target=watch, name="api-watch", daemon=True).start()
        # LitServe kills an API process after as long as uvicorn lets open connections be: what waits to be logged is
        # written after that.
        self.uvicorn_graceful_timeout = CLOSE_SECONDS + LOG_SECONDS + SLACK_SECONDS
        # All API processes have been forked.
        self.keeper.start()
        self.trainer.start()

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Runs in each API process, around its life."""
        die_with_parent(os.getppid())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the parent drains and then ends us
        self.gateway.connect()
        self.services.records.log.start()
        try:
            async with super().lifespan(app):
                yield
        finally:
            await to_thread.run_sync(partial(self.services.records.log.stop, seconds=LOG_SECONDS))

    def _install_signal_handlers(self) -> None:
        parent = os.getpid()

        def drain(signum: int, _: Any) -> None:
            if os.getpid() != parent:  # a forked API process: uvicorn has shut it down and raises the signal again
                os._exit(0)
            if self.board.phase != SERVING:
                log.warning("second signal: stopping now")
                self._stop()
                return
            self.board.phase = DRAINING
            threading.Thread(target=self._drain, name="drain", daemon=True).start()

        signal.signal(signal.SIGTERM, drain)
        signal.signal(signal.SIGINT, drain)

    def _drain(self) -> None:
        deadline = time.monotonic() + self.drain_seconds
        log.info("draining: %d answers under way, new requests are answered 503", self.board.total_open)
        while self.board.total_open and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.board.total_open:
            log.warning("%d answers did not finish in %.0f s", self.board.total_open, self.drain_seconds)
        self._stop()

    def _stop(self) -> None:
        """End now. What is still open ends with an error as its worker goes; uvicorn would wait for it to finish."""
        self.board.phase = STOPPING
        for worker in self.inference_workers:
            worker.terminate()
        if self._shutdown_event is not None:
            self._shutdown_event.set()

    drain_seconds: float = 30.0


def serve(config: ServerConfig) -> int:
    """Run a server until it is told to stop. Returns the process's exit code.

    Raises:
        ConfigurationError: it cannot start; the message says what to change.
    """
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Before any child loads OpenMP: threads that spin long at barriers fight the other processes for the cores, threads
    # that sleep at once take long to wake. Spinning for a moment is best on a busy and on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    with sole_server(config.home):
        _check_port(config)
        admin_key = _admin_key(config)
        info = _prepare_base(config)
        server = build(config, info, admin_key)
        log.info("serving %s on http://%s:%d (home %s)", info.id, config.bind_host, config.port, config.home)
        try:
            server.run(
                host=config.bind_host,
                port=config.port,
                num_api_servers=API_PROCESSES,
                log_level="warning",
                generate_client_file=False,
                access_log=False,
                timeout_keep_alive=IDLE_SECONDS,
            )
        finally:
            server.trainer.stop()
            server.keeper.stop()
        return server.exit_code


def build(config: ServerConfig, info: BaseInfo, admin_key: str | None) -> GraftServer:
    """Everything but the running: services, gateway, worker, server."""
    database = Database(config.home / "graftwork.db")
    migrate(database)
    keys = Keys(database, admin_key=admin_key)
    if not config.loopback_only and not keys.configured():
        raise ConfigurationError(
            f"Without a key this server only listens on this machine, and --host is {config.host}. "
            "Set GRAFTWORK_ADMIN_KEY to a long random secret, or give --admin-key-file."
        )
    store = ArtifactStore(config.home / "artifacts", limits=config.adapter_limits)
    store.clean()
    files = Files(database, config.home / "files", max_bytes=int(config.max_file_gb * (1 << 30)))
    files.clean()
    prompts = Prompts(Path(info.path))
    board = Board(API_PROCESSES)
    trainer = Trainer(config, info, board)
    link = EngineLink(board, max_open=config.max_queue, canary_prompt=prompts.encode(CANARY_TEXT))
    registry, metrics, jobs = Registry(database, guard=UnderExperiment()), Metrics(), Jobs(database)
    records = Records.of(
        database,
        registry,
        metrics,
        base_id=info.id,
        log=not config.no_interaction_log,
        retention_days=config.retention_days or None,
    )
    services = Services(
        base=info,
        registry=registry,
        store=store,
        keys=keys,
        authenticator=Authenticator(keys, open_to_loopback=config.loopback_only, own=(trainer.key, TRAINER)),
        metrics=metrics,
        records=records,
        experiments=Experiments(database, registry),
        exposures=Exposures(database),
        files=files,
        jobs=jobs,
        learning=LearningPolicies(database, registry, jobs, base_id=info.id),
        home=config.home,
        allowed_roots=config.allowed_roots,
        limits=config.adapter_limits,
        engine=link,
    )
    services.metrics.set_build(version=graftwork.__version__, base=info.id, base_digest=info.digest)
    # Copies for shadow arms leave three quarters of the batch to users.
    gateway = Gateway(services, link, prompts, max_busy_for_shadows=config.max_batch // 4)
    worker = WorkerConfig(
        base=info,
        artifacts=store.root,
        adapter_limits=config.adapter_limits,
        engine=_engine_options(config),
        num_api_processes=API_PROCESSES,
        board=board,
        parent_pid=os.getpid(),
        log_level=config.log_level,
    )
    api = EngineAPI(worker, loop=EngineLoop(), spec=gateway)
    server = GraftServer(api, gateway, services, board, _keeper(database, services), trainer)
    server.drain_seconds = config.drain_seconds
    return server


def _keeper(database: Database, services: Services) -> Keeper:
    """What must happen by itself, a line each."""
    leases = Leases(database)
    keeper = Keeper(leases)
    records = services.records
    referee = Referee(
        database, services.registry, services.experiments, records.interactions, records.feedback, records.ids
    )
    keeper.duty("experiments", referee.run, every=EXPERIMENTS_SECONDS)
    learning = AutoLoop(services.learning, services.jobs, services.registry, leases)
    keeper.duty("learning", learning.run, every=LEARNING_SECONDS)
    keeper.duty("retention", partial(_expire, records), every=RETENTION_SECONDS)
    return keeper


def _expire(records: Records, _: Lease) -> None:
    gone = records.erasure.expire(records.policies)
    if gone.num_interactions or gone.num_feedback:
        log.info(
            "retention: %d interactions, and the words of %d pieces of feedback, are gone",
            gone.num_interactions,
            gone.num_feedback,
        )


def _engine_options(config: ServerConfig) -> dict[str, Any]:
    gib = 1 << 30
    return {
        "quantize": config.quantize,
        "dtype": config.dtype,
        "device": config.device,
        "kernels": config.kernels,
        "kernel_cache": Path(os.environ.get("GRAFTWORK_KERNEL_CACHE") or config.home / "kernels"),
        "num_slots": config.slots,
        "max_sequences": config.max_batch,
        "max_length": config.max_model_len,
        "cache_bytes": None if config.kv_memory_gb is None else int(config.kv_memory_gb * gib),
        "reserved_bytes": 0 if config.trainer_device is not None else int(config.trainer_memory_gb * gib),
        "host_bytes": int(config.host_memory_gb * gib),
        "step_tokens": config.prefill_tokens,
        "prefix_cache": not config.no_prefix_cache,
        "num_threads": config.threads,
    }


def _prepare_base(config: ServerConfig) -> BaseInfo:
    """Fetch, convert and describe the base in a process of its own, which alone pays for torch."""
    command = [sys.executable, "-m", "graftwork.adapters.base", "--home", str(config.home)]
    if config.base is not None:
        command += ["--base", config.base]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ConfigurationError("The base could not be prepared; its message is above.")
    return BaseInfo.from_json(done.stdout)


def _check_port(config: ServerConfig) -> None:
    """Before the base is fetched: LitServe would only say so in the end, and in fewer words."""
    family = socket.AF_INET6 if ":" in config.bind_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.bind_host, config.port))
        except OSError as error:
            raise ConfigurationError(
                f"Port {config.port} of {config.bind_host} cannot be had ({error.strerror}). "
                "Stop whoever has it, or choose another --port."
            ) from None


def _admin_key(config: ServerConfig) -> str | None:
    """The first key, taken out of the environment so that no child inherits it."""
    key = take_secret("GRAFTWORK_ADMIN_KEY")
    if config.admin_key_file is not None:
        try:
            key = config.admin_key_file.read_text().strip()
        except OSError as error:
            raise ConfigurationError(f"--admin-key-file {config.admin_key_file}: {error.strerror}.") from None
    if key is not None and len(key) < 16:
        raise ConfigurationError("The admin key is shorter than 16 characters. Use a long random one.")
    return key


def _sheltered(parent_pid: int) -> None:
    die_with_parent(parent_pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
