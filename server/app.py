"""Builds and runs a server from a ``ServerConfig``.

The main process prepares the base in a subprocess, migrates the database, builds the services and runs LitServe.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from graftwork.adapters.access.audit import AuditLog
from graftwork.adapters.access.keys import Keys
from graftwork.adapters.access.usage import UsageLedger
from graftwork.adapters.base import BaseInfo
from graftwork.adapters.batches.batches import Batches
from graftwork.adapters.errors import ConfigurationError, Unavailable
from graftwork.adapters.experiments.exposures import Exposures
from graftwork.adapters.experiments.guard import ExperimentGuard
from graftwork.adapters.experiments.routing import ModelRouter
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.learning.files import Files
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds.policies import LearningPolicies
from graftwork.adapters.learning.rounds.rounds import Rounds
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.adapters.registry import Registry
from graftwork.adapters.registry.adapter_limits import AdapterLimiting
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.registry.bucket import ArtifactBucket
from graftwork.adapters.storage import database_id
from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.storage.leases import Lease, Leases
from graftwork.adapters.storage.objects import ObjectStore
from graftwork.adapters.storage.spool import Spool
from graftwork.adapters.webhooks.webhooks import Webhooks
from graftwork.server.background.experiments import ExperimentController
from graftwork.server.background.graders import GraderTrials
from graftwork.server.background.keeper import Keeper
from graftwork.server.background.retention import expire
from graftwork.server.background.rounds import RoundScheduler
from graftwork.server.background.trainer import PRINCIPAL as TRAINER
from graftwork.server.background.trainer import TrainerProcess
from graftwork.server.background.webhooks import WebhookSender
from graftwork.server.config import ServerConfig
from graftwork.server.generation.accounting import Accounting
from graftwork.server.generation.artifact_cache import ArtifactCache
from graftwork.server.generation.batches.capacity import BatchCapacity
from graftwork.server.generation.batches.endpoints import AnsweringServices
from graftwork.server.generation.batches.run import BatchServices
from graftwork.server.generation.batches.runner import BatchRunner
from graftwork.server.generation.embeddings import EmbeddingService
from graftwork.server.generation.limiter import Limiter
from graftwork.server.generation.service import GenerationService
from graftwork.server.generation.tokenization import Tokenization
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.protocol import HttpProtocol
from graftwork.server.http.services import Records, Services
from graftwork.server.http.sessions import Sessions
from graftwork.server.litserver import GraftServer
from graftwork.server.observability.metrics import Metrics
from graftwork.server.processes import SharedState, home_lock, take_secret
from graftwork.server.transport.client import EngineClient
from graftwork.server.transport.engine import EngineProtocol
from graftwork.server.transport.pool import EnginePool, PoolMember
from graftwork.server.transport.seam import NoSpec
from graftwork.server.transport.vllm.connecting import vllm_engines
from graftwork.server.transport.worker import EngineAPI, LitEngineLoop, WorkerConfig
from graftwork.version import __version__

log = logging.getLogger(__name__)

#: The prompt of canaries, which are computed with and without a new adapter.
CANARY_TEXT = "Dear Sir or Madam, I am writing about a transfer of 25.50 that has not arrived. What should I do?"

API_PROCESSES = 1

#: Pauses between two runs of the keeper's duties.
RETENTION_SECONDS = 3600.0
EXPERIMENTS_SECONDS = 1.0  # a breached guardrail waits no longer than this
LEARNING_SECONDS = 5.0  # a round takes minutes and may begin this late
WEBHOOKS_SECONDS = 2.0

#: How long a connection may idle before the server closes it. Clients close theirs sooner, openai's and httpx's after
#: five seconds: at Uvicorn's default of five, one would now and then be closed just when a request is sent on it.
KEEP_ALIVE_SECONDS = 75


def serve(config: ServerConfig) -> int:
    """Run a server until SIGTERM or SIGINT.

    Returns:
        The exit code of the process.

    Raises:
        ConfigurationError: It cannot start; the message says what to change.
    """
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "httpx", "httpcore"):  # whose URLs may be secrets of webhooks
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for variable in ("GRAFTWORK_DATABASE", "GRAFTWORK_DATABASE_URL"):
        take_secret(variable)  # the configuration has it: children are given it where they need it
    # Before any child loads OpenMP: threads that spin long at barriers fight the other processes for the cores, threads
    # that sleep at once take long to wake. Spinning for a moment is best on a busy and on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.umask(0o077)  # of all processes: what is kept is for this user alone
    with home_lock(config.home):
        close_to_others(config.home)
        _check_port(config)
        _open_database(config)  # before the base is fetched, which takes minutes
        if config.artifacts is not None:
            _claim_bucket(ObjectStore(config.artifacts), config.home)
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
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                http=HttpProtocol,
            )
        finally:
            server.trainer.stop()
            server.keeper.stop()
        return server.exit_code


def _open_database(config: ServerConfig) -> Database:
    """The database, migrated, if the home belongs to it."""
    database = Database(config.database_location)
    migrate(database)
    database_id.claim_home(config.home, database)
    return database


def _claim_bucket(objects: ObjectStore, home: Path) -> None:
    """Check that the bucket belongs to the home's database; one that is away is checked before it is cleaned."""
    # In a process of its own: obstore's threads do not survive the fork of the API process.
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process, suppress(Unavailable):  # the log says so
        process.submit(database_id.claim_bucket, objects, home).result()


def close_to_others(home: Path) -> None:
    """Keep other users out of a home's folders, also of one that an older release or a restored backup left open."""
    for name in ("artifacts", "datasets", "files", "jobs"):
        if (home / name).is_dir():
            (home / name).chmod(0o700)


def build(config: ServerConfig, info: BaseInfo, admin_key: str | None) -> GraftServer:
    """Build services, gateway, engine worker and server, without starting them. Migrates the database.

    Args:
        config: The server's settings.
        info: The base, prepared.
        admin_key: The first key; ``None``: keys of the database only.

    Raises:
        ConfigurationError: The server would listen on other addresses than loopback without a key, or the home belongs
            to another database.
    """
    database = _open_database(config)
    keys = Keys(database, admin_key=admin_key)
    if not config.loopback_only and not keys.configured():
        raise ConfigurationError(
            f"Without a key this server only listens on this machine, and --host is {config.host}. "
            "Set GRAFTWORK_ADMIN_KEY to a long random secret, or give --admin-key-file."
        )
    store = ArtifactStore(config.home / "artifacts", limits=config.adapter_limits)
    store.clean()
    objects = None if config.artifacts is None else ObjectStore(config.artifacts)
    files = Files(database, config.home / "files", max_bytes=int(config.max_file_gb * (1 << 30)), objects=objects)
    files.clean()
    prompts = Prompts(Path(info.path))
    shared_state = SharedState(API_PROCESSES, config.num_engines)
    trainer = TrainerProcess(config, info, shared_state)
    workers = [
        _engine_worker(number, config, info, store, shared_state, prompts.encode(CANARY_TEXT))
        for number in range(len(config.worker_devices))
    ]
    members = [
        # Those on different devices are of different kinds: their kernels differ.
        PoolMember(str(number), client, kind=f"own, {config.worker_devices[number].partition(':')[0]}")
        for number, (_, client) in enumerate(workers)
    ]
    if config.engine_urls:
        engines = vllm_engines(
            config, info, prompts, shared_state, adapters=store.root, canary_prompt=prompts.encode(CANARY_TEXT)
        )
        members = [PoolMember(url, engine, kind="vllm") for url, engine in engines.items()]
    engine: EngineProtocol = EnginePool(members) if len(members) > 1 else members[0].engine
    artifact_cache = None
    if objects is not None:
        max_bytes = int(config.artifact_cache_gb * (1 << 30))
        artifact_cache = ArtifactCache(store, ArtifactBucket(objects), engine, max_bytes=max_bytes)
    registry, metrics, jobs = Registry(database, guard=ExperimentGuard()), Metrics(), Jobs(database)
    records = Records.of(
        database,
        registry,
        metrics,
        base_id=info.id,
        log=not config.no_interaction_log,
        retention_days=config.retention_days or None,
        spool=None if database.is_sqlite else Spool(config.home / "spool.db"),
    )
    experiments = Experiments(database, registry)
    adapter_limits = AdapterLimiting(database, registry)
    limiter = Limiter(UsageLedger(database), keys.limits_of, adapter_limits.limits_of)
    services = Services(
        base=info,
        database=database,
        registry=registry,
        store=store,
        artifact_cache=artifact_cache,
        keys=keys,
        authenticator=Authenticator(
            keys,
            open_to_loopback=config.loopback_only,
            own=(trainer.key, TRAINER),
            cors_origins=config.cors_origins,
            sessions=Sessions.of(database),
        ),
        metrics=metrics,
        records=records,
        experiments=experiments,
        exposures=Exposures(database),
        files=files,
        batches=Batches(database),
        jobs=jobs,
        learning=LearningPolicies(database, registry, jobs, base_id=info.id),
        rounds=Rounds(database, registry, jobs, experiments, base_digest=info.digest),
        webhooks=Webhooks(database, allow_private=config.allow_private_webhooks),
        limiter=limiter,
        audit_log=AuditLog(database),
        adapter_limits=adapter_limits,
        grader_trials=GraderTrials(url=config.own_url, key=trainer.key),
        home=config.home,
        allowed_roots=config.allowed_roots,
        allow_python_graders=config.allow_python_graders,
        cors_origins=config.cors_origins,
        limits=config.adapter_limits,
        engine=engine,
    )
    services.metrics.set_build(version=__version__, base=info.id, base_digest=info.digest)
    router = ModelRouter(info, registry, services.experiments)
    service = GenerationService(
        base=info,
        engine=engine,
        prompts=prompts,
        router=router,
        experiments=services.experiments,
        ids=records.ids,
        policies=records.policies,
        accounting=Accounting(info.id, metrics, services.traffic, records.log),
        metrics=metrics,
        artifacts=artifact_cache,
        limiter=limiter,
        shares_prefixes=config.share_prefix_cache,
        max_busy_for_shadows=config.max_batch * len(members) // 4,  # copies for shadow arms leave the rest to users
    )
    tokenization = Tokenization(info, engine, prompts, router)
    embedding_service = EmbeddingService(
        engine=engine,
        tokenization=tokenization,
        router=router,
        metrics=metrics,
        traffic=services.traffic,
        artifacts=artifact_cache,
        limiter=limiter,
        shares_prefixes=config.share_prefix_cache,
    )
    batches = BatchRunner(
        BatchServices(
            batches=services.batches,
            files=files,
            answering=AnsweringServices(service, embedding_service),
            capacity=BatchCapacity(engine, num_seats=config.max_batch * len(members), share=config.batch_share),
            metrics=metrics,
            find_principal=services.authenticator.find,
        ),
        Leases(database),
    )
    keeper = _keeper(database, services, objects)
    server = GraftServer(
        [api for api, _ in workers],
        engine,
        service,
        embedding_service,
        tokenization,
        batches,
        services,
        shared_state,
        keeper,
        trainer,
    )
    server.drain_seconds = config.drain_seconds
    server.starts_workers = not config.engine_urls
    return server


def _engine_worker(
    number: int,
    config: ServerConfig,
    info: BaseInfo,
    store: ArtifactStore,
    shared_state: SharedState,
    canary_prompt: Sequence[int],
) -> tuple[EngineAPI, EngineClient]:
    """One engine worker, not yet started, and the connection to it."""
    listeners = [_listen() for _ in range(API_PROCESSES)]
    worker = WorkerConfig(
        base=info,
        artifacts=store.root,
        adapter_limits=config.adapter_limits,
        engine=_engine_options(config, number),
        api_addresses=tuple(listener.getsockname().decode() for listener in listeners),
        shared_state=shared_state,
        number=number,
        parent_pid=os.getpid(),
        log_level=config.log_level,
    )
    client = EngineClient(
        shared_state,
        max_open=config.max_queue,
        canary_prompt=canary_prompt,
        stall_seconds=config.stall_seconds,
        listeners=listeners,
        engine=number,
    )
    return EngineAPI(worker, loop=LitEngineLoop(), spec=NoSpec(number)), client


def _listen() -> socket.socket:
    """The socket on which an API process accepts the engine worker: an abstract Unix socket, nothing on disk.

    Created before the API processes are forked and the worker is started, so that neither can be too early.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0graftwork-{secrets.token_hex(16)}")
    listener.listen()
    return listener


def _keeper(database: Database, services: Services, objects: ObjectStore | None) -> Keeper:
    """The keeper with all its duties."""
    leases = Leases(database)
    keeper = Keeper(leases)
    records = services.records
    controller = ExperimentController(
        database, services.registry, services.experiments, records.interactions, records.feedback, records.ids
    )
    keeper.add_duty("experiments", controller.run, every=EXPERIMENTS_SECONDS)
    learning = RoundScheduler(services.learning, services.rounds, leases)
    keeper.add_duty("learning", learning.run, every=LEARNING_SECONDS)
    sender = WebhookSender(services.webhooks, leases)
    keeper.add_duty("webhooks", sender.run, every=WEBHOOKS_SECONDS)
    keeper.add_duty("old deliveries", sender.clean, every=RETENTION_SECONDS)
    if objects is not None:
        clean_bucket = partial(_clean_bucket, services.files, objects, services.home)
        keeper.add_duty("stray objects", clean_bucket, every=RETENTION_SECONDS)
    keeper.add_duty("retention", partial(expire, records.erasure, records.policies), every=RETENTION_SECONDS)
    return keeper


def _clean_bucket(files: Files, objects: ObjectStore, home: Path, _: Lease) -> None:
    with suppress(Unavailable):  # the log says so
        database_id.claim_bucket(objects, home)  # it may have been away when the server started
        files.clean_bucket()


def _engine_options(config: ServerConfig, number: int) -> dict[str, Any]:
    gib = 1 << 30
    devices = config.worker_devices
    threads = config.threads
    if threads is None and len(devices) > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // len(devices))
    return {
        "quantize": config.quantize,
        "dtype": config.dtype,
        "device": devices[number],
        "kernels": config.kernels,
        "kernel_cache": Path(os.environ.get("GRAFTWORK_KERNEL_CACHE") or config.home / "kernels"),
        "num_slots": config.slots,
        "max_sequences": config.max_batch,
        "max_length": config.max_model_len,
        "cache_bytes": None if config.kv_memory_gb is None else int(config.kv_memory_gb * gib),
        "memory_share": 1 / devices.count(devices[number]),
        "reserved_bytes": 0 if config.trainer_device is not None else int(config.trainer_memory_gb * gib),
        "host_bytes": int(config.host_memory_gb * gib),
        "step_tokens": config.prefill_tokens,
        "prefix_cache": not config.no_prefix_cache,
        "num_threads": threads,
    }


def _prepare_base(config: ServerConfig) -> BaseInfo:
    """Fetch, convert and describe the base in a process of its own, so that this one never loads torch."""
    command = [sys.executable, "-m", "graftwork.adapters.base", "--home", str(config.home)]
    if config.base is not None:
        command += ["--base", config.base]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ConfigurationError("The base could not be prepared; its message is above.")
    return BaseInfo.from_json(done.stdout)


def _check_port(config: ServerConfig) -> None:
    """Check the port before the base is fetched: LitServe would only do so at the end, with a worse message."""
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
    """The first key, removed from the environment so that no child inherits it."""
    key = take_secret("GRAFTWORK_ADMIN_KEY")
    if config.admin_key_file is not None:
        try:
            key = config.admin_key_file.read_text().strip()
            mode = config.admin_key_file.stat().st_mode
        except OSError as error:
            raise ConfigurationError(f"--admin-key-file {config.admin_key_file}: {error.strerror}.") from None
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            log.warning(
                "--admin-key-file %s can be read by other users of this machine: chmod 600 it, and change the key",
                config.admin_key_file,
            )
    if key is not None and len(key) < 16:
        raise ConfigurationError("The admin key is shorter than 16 characters. Use a long random one.")
    return key
