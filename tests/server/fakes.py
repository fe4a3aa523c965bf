"""A server without an engine: the real registry, store, keys and routes, over a base without weights."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from safetensors.numpy import load, save

from graftwork.adapters.access.audit import AuditLog
from graftwork.adapters.access.keys import Keys
from graftwork.adapters.access.usage import UsageLedger
from graftwork.adapters.base import BaseInfo, ModuleShape
from graftwork.adapters.batches.batches import Batches
from graftwork.adapters.errors import InvalidAdapter, Unavailable
from graftwork.adapters.experiments.exposures import Exposures
from graftwork.adapters.experiments.guard import ExperimentGuard
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.learning.files import Files
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds.policies import LearningPolicies
from graftwork.adapters.learning.rounds.rounds import Rounds
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.adapters.registry import Registry
from graftwork.adapters.registry.adapter_limits import AdapterLimiting
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.registry.bucket import ArtifactBucket
from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.storage.objects import ObjectStore
from graftwork.adapters.storage.spool import Spool
from graftwork.adapters.webhooks.webhooks import Webhooks
from graftwork.server.background.graders import GraderTrials
from graftwork.server.generation.artifact_cache import ArtifactCache
from graftwork.server.generation.limiter import Limiter
from graftwork.server.http import edge
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.routes import add_routes, router
from graftwork.server.http.services import Records, Services
from graftwork.server.observability.metrics import Metrics
from graftwork.server.transport.engine import EngineInput, EngineState, EngineStream
from tests.server.documented import DocumentedAnswers

ADMIN_KEY = "the-first-key-of-all"
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")
LIMITS = AdapterLimits(max_adapter_bytes=64 << 10, max_config_bytes=16 << 10, max_tokenizer_bytes=64 << 10, max_rank=16)


@dataclass(frozen=True)
class Placement:
    tier: str
    load_ms: float | None = None


@dataclass(frozen=True)
class Stats:
    running: int = 2
    waiting: int = 1
    memory_bytes: int = 1000
    cache_tokens_used: int = 64
    retained_tokens: int = 100
    num_prompt_tokens: int = 40
    num_cached_tokens: int = 30
    num_steps: int = 10
    num_preemptions: int = 0
    num_loads: int = 3
    num_evictions: int = 1


@dataclass
class StandInEngine:
    """Tries adapters by looking whether their files are where the engine would look."""

    store: ArtifactStore
    state: EngineState = "ready"
    num_restarts: int = 0
    max_open: int = 8
    adapters: dict[str, Placement] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)
    ensured: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    may_know: bool = False
    refuse: bool = False
    untaken: set[str] = field(default_factory=set)
    measured: Stats = field(default_factory=Stats)

    async def start(self, api_process: int, /) -> None: ...

    async def stop(self) -> None: ...

    @property
    def base_card(self) -> Mapping[str, Any]:
        return {"quantize": "int8", "dtype": "bfloat16", "device": "cpu", "memory_bytes": 1000}

    @property
    def max_choices(self) -> int:
        return self.max_open

    def num_open(self) -> int:
        return 0

    def num_background(self) -> int:
        return 0

    def open(
        self,
        inputs: Sequence[EngineInput],
        /,
        *,
        adapter: str | None,
        cache_salt: str = "",
        background: bool = False,
        tenant: str = "",
        weight: float = 1.0,
    ) -> EngineStream:
        raise AssertionError("nobody asks this engine for an answer")

    def cancel(self, stream: EngineStream, choice: int | None = None, /) -> None:
        raise AssertionError("nothing is open")

    def takes(self, spec: AdapterSpec, /) -> None:
        if spec.digest in self.untaken:
            raise InvalidAdapter("this engine serves no adapter of this kind", code="unsupported")

    async def ensure(self, digest: str, /) -> None:
        if self.state != "ready":
            raise Unavailable("there is no engine")
        self.ensured.append(digest)

    async def release(self, digest: str, /) -> None:
        if self.may_know:
            raise Unavailable("it may still know the adapter")
        self.released.append(digest)

    async def canary(self, digest: str, /) -> None:
        assert sorted(file.name for file in self.store.path(digest).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        self.tried.append(digest)
        if self.refuse:
            raise InvalidAdapter("the adapter changes no answer: train it first", code="inert_adapter")

    async def residency(self) -> Mapping[str, Placement]:
        return self.adapters

    async def stats(self) -> Stats:
        if self.state != "ready":
            raise Unavailable("there is no engine")
        return self.measured


@dataclass
class World:
    """A server, and where its things are."""

    app: FastAPI
    services: Services
    engine: StandInEngine
    keys: Keys
    home: Path

    def state(self) -> tuple[Any, ...]:
        """All that a refused request must not change."""
        adapters = self.services.registry.adapters(limit=100)
        events = [list(self.services.registry.history(adapter.name, limit=100)) for adapter in adapters]
        artifacts = sorted(path.name for path in self.services.store.root.iterdir() if path.name != "staging")
        return list(adapters), events, artifacts, sorted((self.services.store.root / "staging").iterdir())


def make_world(
    home: Path,
    *,
    admin_key: str | None = None,
    open_to_loopback: bool = True,
    migrated: bool = True,
    url: str | None = None,
    artifacts: str | None = None,
    cache_bytes: int = 1 << 30,
) -> World:
    """A world on ``home``; ``migrated=False``: on the database that is there; ``url``: on one that homes share;
    ``artifacts``: with a bucket.
    """
    base = BaseInfo(
        id="tiny-base",
        path=str(home / "base"),
        digest="sha256:" + "b" * 64,
        architecture="LlamaForCausalLM",
        dtype="float32",
        num_parameters=128,
        vocab_size=256,
        max_positions=64,
        num_layers=1,
        hidden_size=8,
        eos_token_ids=(0,),
        modules={name: ModuleShape(kind="linear", shape=(8, 8), bias=False) for name in MODULES},
        tied=(),
    )
    if migrated and url is None:
        shutil.copy(_migrated(), home / "graftwork.db")
    database = Database(url or home / "graftwork.db")
    if url is not None:
        migrate(database)
    spool = None if url is None else Spool(home / "spool.db", max_bytes=1 << 20)
    keys = Keys(database, admin_key=admin_key)
    store = ArtifactStore(home / "artifacts", limits=LIMITS)
    engine = StandInEngine(store)
    objects = None if artifacts is None else ObjectStore(artifacts)
    cache = None
    if objects is not None:
        cache = ArtifactCache(store, ArtifactBucket(objects), engine, max_bytes=cache_bytes, preparing_seconds=0)
    registry, metrics, jobs = Registry(database, guard=ExperimentGuard()), Metrics(), Jobs(database)
    experiments = Experiments(database, registry)
    adapter_limits = AdapterLimiting(database, registry)
    services = Services(
        base=base,
        database=database,
        registry=registry,
        store=store,
        artifact_cache=cache,
        keys=keys,
        authenticator=Authenticator(keys, open_to_loopback=open_to_loopback),
        engine=engine,
        metrics=metrics,
        records=Records.of(database, registry, metrics, base_id=base.id, retention_days=90, spool=spool),
        experiments=experiments,
        exposures=Exposures(database),
        files=Files(database, home / "files", max_bytes=1 << 20, objects=objects),
        batches=Batches(database),
        jobs=jobs,
        learning=LearningPolicies(database, registry, jobs, base_id=base.id),
        rounds=Rounds(database, registry, jobs, experiments, base_digest=base.digest),
        webhooks=Webhooks(database),
        audit_log=AuditLog(database),
        adapter_limits=adapter_limits,
        limiter=Limiter(UsageLedger(database), keys.limits_of, adapter_limits.limits_of),
        grader_trials=GraderTrials(url="http://127.0.0.1:1", key="none"),
        limits=LIMITS,
        home=home,
        allowed_roots=(home / "shared",),
    )
    app = FastAPI(openapi_url=None)
    add_routes(app, router(services))
    app.add_middleware(DocumentedAnswers)
    edge.install(app, services.metrics, services.audit_log)
    return World(app, services, engine, keys, home)


@functools.cache
def _migrated() -> Path:
    """An empty database, made once: migrating takes longer than most tests."""
    database = Database(Path(tempfile.mkdtemp(prefix="graftwork-tests-")) / "empty.db")
    atexit.register(shutil.rmtree, Path(str(database)).parent, ignore_errors=True)
    migrate(database)
    database.close()
    return Path(str(database))


def adapter_files(seed: int = 0, *, rank: int = 2, config: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """A LoRA on one module of the stand-in base, other numbers for every seed."""
    numbers = np.random.default_rng(seed)
    name = f"base_model.model.{MODULES[0]}"
    tensors = {
        f"{name}.lora_A.weight": numbers.normal(size=(rank, 8)).astype(np.float32),
        f"{name}.lora_B.weight": numbers.normal(size=(8, rank)).astype(np.float32),
    }
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"], **(config or {})}
    return {"adapter_config.json": json.dumps(fields).encode(), "adapter_model.safetensors": save(tensors)}


def reward_model_files(seed: int = 0) -> dict[str, bytes]:
    """The same with a scalar head."""
    files = adapter_files(seed, config={"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]})
    head = np.random.default_rng(seed).normal(size=(1, 8)).astype(np.float32)
    tensors = {**load(files["adapter_model.safetensors"]), "base_model.model.score.weight": head}
    return {**files, "adapter_model.safetensors": save(tensors)}


def write_adapter(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for name, content in adapter_files(seed).items():
        (folder / name).write_bytes(content)
    return folder


def form(files: Mapping[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """What a client's ``files=`` takes."""
    return [("files", (name, content)) for name, content in files.items()]
