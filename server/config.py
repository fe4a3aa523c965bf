"""All settings of ``graftwork serve``: built once, passed down, printable.

Every field is a flag (``--max-batch``) and an environment variable (``GRAFTWORK_MAX_BATCH``). Secrets are not fields.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.feedback.policies import MAX_RETENTION_DAYS
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.storage.database import DATABASE_FILE, database_url

#: How ``--engine`` begins where vLLM computes.
_VLLM = "vllm="


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The settings of a server.

    Attributes:
        base: A hub id or a folder; ``None`` is the embedded SmolLM2-135M-Instruct.
        quantize: ``auto``, ``nf4``, ``int8`` or ``none``.
        dtype: Of activations and cache: ``auto``, ``bfloat16`` or ``float32``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        devices: In its place: those of several engine workers.
        workers: Engine workers, each with the base and a bank of its own; ``None``: one for each of ``devices``.
        kernels: ``auto``, ``native`` (built here once, for 8 bits on a CPU), ``triton`` (on CUDA) or ``torch``.
        engine: What computes: ``own``, this server's own worker, or ``vllm=http://host:port,…``, vLLM servers.
        engine_adapters: The home's folder of adapters, as vLLM's host sees it; ``None``: at the same place.
        engine_key_file: File with vLLM's ``--api-key``, for its owner alone.
        home: Where bases, adapters and the database are stored. One server a home.
        database: The URL of a PostgreSQL database, which servers may share; ``None``: a file in the home.
        artifacts: Where adapters, files and results are stored for all servers: ``s3://bucket/prefix``, ``gs://``,
            ``az://`` or ``file://``; ``None``: in the home alone.
        artifact_cache_gb: The most GiB of adapters that the home keeps of those in a bucket.
        host: Where to listen. Without a key only loopback is allowed.
        port: Where to listen, 1024 to 65535.
        slots: Rank-16 adapters that the bank holds on the device; a rank-64 adapter takes four.
        max_batch: Sequences that run at once.
        max_queue: Sequences that may be running or waiting in each engine worker; more are answered 429.
        batch_share: The part of ``max_batch`` up to which requests of batches fill the engine; 0: none are answered.
        max_model_len: Longest prompt and answer in tokens; ``None``: what the base was made for, at most 8192.
        kv_memory_gb: Size of the key-value cache in GiB; ``None``: a quarter of the memory, at most 4.
        host_memory_gb: Host memory in GiB for adapters that are ready for the device.
        prefill_tokens: Prompt tokens computed beside each decoding step; more is faster, fewer is smoother.
        share_prefix_cache: Keys share prefixes, and so can tell by the time what others have asked.
        no_prefix_cache: Compute every prompt from its start, whatever was computed before.
        threads: CPU threads of each engine worker; ``None``: torch's choice, or of several an equal share each.
        cors_origins: Sites whose pages may call this server from a browser, ``https://app.example``; ``*`` is any.
        allowed_roots: Folders below which adapters may be pushed by path.
        allow_private_webhooks: Webhooks may have addresses of this machine and its network.
        admin_key_file: File with the first key; ``GRAFTWORK_ADMIN_KEY`` does the same.
        no_interaction_log: Log no requests and answers, but where a policy of an adapter or a key says so.
        retention_days: How long they are stored where no policy says otherwise; 0 is for good.
        max_adapter_gb: The largest adapter, in GiB, that may be pushed.
        max_file_gb: The largest file, in GiB, that may be uploaded.
        no_trainer: Start no worker for training jobs: they wait in the queue until another one claims them.
        trainer_share: The fraction of the time that a training run may use while requests are being answered: 0 pauses
            it then, 1 never does; in between it is stopped and continued. It never pauses on an idle server.
        trainer_nice: The nice value of a training run, 0 to 19.
        trainer_threads: CPU threads of a training run; ``None``: torch's choice.
        trainer_device: Where runs compute: ``cpu``, or the number of a GPU; ``None``: where serving does.
        trainer_memory_gb: Memory of the GPU in GiB that the key-value cache leaves to runs, where both share one.
        allow_python_graders: Run graders that are Python programs, in processes without network and files.
        stall_seconds: An engine that makes no progress for so long is replaced.
        drain_seconds: How long SIGTERM waits for answers that are under way.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    base: str | None = None
    quantize: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    devices: tuple[str, ...] = ()
    workers: int | None = None
    kernels: str = "auto"
    engine: str = "own"
    engine_adapters: Path | None = None
    engine_key_file: Path | None = None
    home: Path = field(default_factory=lambda: Path.home() / ".graftwork")
    database: str | None = field(default=None, repr=False)  # it may hold a password
    artifacts: str | None = None
    artifact_cache_gb: float = 20.0
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 16
    max_batch: int = 32
    max_queue: int = 256
    batch_share: float = 0.25
    max_model_len: int | None = None
    kv_memory_gb: float | None = None
    host_memory_gb: float = 2.0
    prefill_tokens: int = 256
    share_prefix_cache: bool = False
    no_prefix_cache: bool = False
    threads: int | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_roots: tuple[Path, ...] = ()
    allow_private_webhooks: bool = False
    admin_key_file: Path | None = None
    no_interaction_log: bool = False
    retention_days: float = 90.0
    max_adapter_gb: float = 2.0
    max_file_gb: float = 0.5
    no_trainer: bool = False
    trainer_share: float = 0.5
    trainer_nice: int = 19
    trainer_threads: int | None = None
    trainer_device: str | None = None
    trainer_memory_gb: float = 0.0
    allow_python_graders: bool = False
    stall_seconds: float = 60.0
    drain_seconds: float = 30.0
    log_level: str = "info"

    def __post_init__(self) -> None:
        database_url(self.database_location)
        for name in ("slots", "max_batch", "max_queue", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"--{name.replace('_', '-')} must be at least 1.")
        for name in (
            "stall_seconds",
            "kv_memory_gb",
            "max_model_len",
            "threads",
            "trainer_threads",
            "max_file_gb",
            "artifact_cache_gb",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigurationError(f"--{name.replace('_', '-')} must be more than 0.")
        if self.workers is not None and self.workers < max(1, len(self.devices)):
            raise ConfigurationError("--workers must be at least 1, and no fewer than there are --devices.")
        if self.devices and self.device not in ("auto", *self.devices):
            raise ConfigurationError("Give --device or --devices, not both.")
        if not 0 <= self.batch_share <= 1:
            raise ConfigurationError("--batch-share is a share of --max-batch: 0 to 1.")
        if not 0 <= self.trainer_share <= 1:
            raise ConfigurationError("--trainer-share is a share of the time: 0 to 1.")
        if not 0 <= self.trainer_nice <= 19:
            raise ConfigurationError("--trainer-nice must be between 0 and 19.")
        if self.trainer_device is not None and self.trainer_device != "cpu" and not self.trainer_device.isdecimal():
            raise ConfigurationError("--trainer-device takes cpu, or the number of a card: 0, 1, …")
        if self.trainer_memory_gb < 0:
            raise ConfigurationError("--trainer-memory-gb must not be negative.")
        if not 0 <= self.retention_days <= MAX_RETENTION_DAYS:
            raise ConfigurationError(f"--retention-days takes 0 (for good) to {MAX_RETENTION_DAYS}.")
        if self.host not in ("127.0.0.1", "0.0.0.0", "::", "localhost"):
            raise ConfigurationError("--host takes 127.0.0.1 (this machine only), 0.0.0.0 or :: (every address).")
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@*\s,]+", origin, re.ASCII):
                raise ConfigurationError(
                    f"--cors-origin {origin}: give an origin as browsers send it, like https://app.example:8443, or *."
                )
        if not 1024 <= self.port <= 65535:
            raise ConfigurationError("--port must be between 1024 and 65535.")
        self._check_engine()

    def _check_engine(self) -> None:
        if self.engine != "own" and not self.engine.startswith(_VLLM):
            raise ConfigurationError("--engine takes own, or vllm=http://host:port and, after a comma, more addresses.")
        for url in self.engine_urls:
            try:
                parts = urlsplit(url)
                is_plain = parts.scheme in ("http", "https") and parts.hostname and parts.port is not None
            except ValueError:
                is_plain = False
            if not is_plain or url != f"{parts.scheme}://{parts.netloc}" or "@" in url:
                raise ConfigurationError(f"--engine {_VLLM}…: give addresses like http://host:port, and nothing more.")
        if len(set(self.engine_urls)) < len(self.engine_urls):
            raise ConfigurationError("--engine names a vLLM server twice.")

    @property
    def engine_urls(self) -> tuple[str, ...]:
        """The addresses of vLLM's servers; none with this server's own engine."""
        return () if self.engine == "own" else tuple(self.engine.removeprefix(_VLLM).split(","))

    @property
    def worker_devices(self) -> tuple[str, ...]:
        """The device of each engine worker: in turn, where there are more workers than devices."""
        devices = self.devices or (self.device,)
        return tuple(devices[number % len(devices)] for number in range(self.workers or len(devices)))

    @property
    def database_location(self) -> str | Path:
        """Where the database is: a URL, or a path."""
        return self.database or self.home / DATABASE_FILE

    @property
    def num_engines(self) -> int:
        """How many engines there may be at once."""
        return max(len(self.engine_urls), len(self.worker_devices))

    @property
    def bind_host(self) -> str:
        """The address to bind: ``host``, with ``localhost`` as an address."""
        return "127.0.0.1" if self.host == "localhost" else self.host

    @property
    def own_url(self) -> str:
        """The URL at which this machine reaches the server."""
        return f"http://[::1]:{self.port}" if ":" in self.bind_host else f"http://127.0.0.1:{self.port}"

    @property
    def loopback_only(self) -> bool:
        """Whether the server listens on this machine only."""
        return ipaddress.ip_address(self.bind_host).is_loopback

    @property
    def adapter_limits(self) -> AdapterLimits:
        """What adapters may be pushed: their size, and a rank that fits into the slots, at most 256.

        vLLM has no such slots, and says itself which ranks it takes.
        """
        max_rank = 256 if self.engine_urls else min(256, self.slots * 16)
        return AdapterLimits(max_adapter_bytes=int(self.max_adapter_gb * (1 << 30)), max_rank=max_rank)
