"""The engine worker: LitServe starts the process, which loads the base and runs the engine's loop.

The loop takes messages, steps and sends frames. It blocks while there is nothing to compute, and no request can end it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import signal
import socket
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import litserve as ls
import psutil

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.collector import collector_paused
from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.peft_format.limits import AdapterLimits as AdapterLimits
from graftwork.server.processes import STOPPING, SharedState, die_with_parent, keep_freed_memory
from graftwork.server.transport.messages import (
    AdapterState,
    Cancel,
    EngineMessage,
    Frame,
    Generate,
    Hello,
    MessageBuffer,
    Stats,
    StatsRequest,
    decode_message,
    encode,
)

log = logging.getLogger(__name__)

#: Exit code of a worker that would fail again if it were restarted.
EXIT_CONFIGURATION = 78

#: The most bytes read from a connection at once.
_READ_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Everything that a worker needs to start, also after another one died.

    Attributes:
        base: The base, prepared.
        artifacts: Folder of published adapters.
        adapter_limits: What adapters may be loaded.
        engine: Arguments of ``EngineConfig``.
        api_addresses: Where each API process listens: abstract Unix sockets.
        shared_state: Counts the engine's starts; has the server's phase.
        number: Of this worker, from 0, among those of this server.
        parent_pid: The main process, with which the worker dies.
        log_level: As in ``ServerConfig``.
    """

    base: BaseInfo
    artifacts: Path
    adapter_limits: AdapterLimits
    engine: dict[str, Any]
    api_addresses: tuple[str, ...]
    shared_state: SharedState
    number: int
    parent_pid: int
    log_level: str


class EngineAPI(ls.LitAPI):
    """LitServe's interface to the engine: only ``setup`` is called."""

    def __init__(self, config: WorkerConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config

    def setup(self, device: str) -> None:
        """Load the base and build the engine.

        If that fails, the process ends: with ``EXIT_CONFIGURATION`` if a restart would
        """
        die_with_parent(self.config.parent_pid)
        keep_freed_memory()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        logging.basicConfig(
            level=self.config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        try:
            with collector_paused():
                self._build()
        except ConfigurationError as error:
            log.error("%s", error.message)
            os._exit(EXIT_CONFIGURATION)
        except Exception:  # LitServe would end this process without a message
            log.exception("the engine cannot start")
            os._exit(1)

    def _build(self) -> None:
        from graftwork.adapters.peft_format.folder import read_spec
        from graftwork.adapters.peft_format.spec import AdapterSpec
        from graftwork.server.engine.config import EngineConfig
        from graftwork.server.engine.engine import Engine
        from graftwork.server.engine.loading import build, load_grammar_tokenizer
        from graftwork.server.engine.lora import host_adapter
        from graftwork.server.engine.proposer import ForcedTokenProposer

        config = self.config
        runner, limits, card = build(config.base, EngineConfig(**config.engine))
        self.card = card

        @functools.lru_cache(maxsize=4096)  # a quarter of the time of reading an adapter again
        def spec_of(folder: Path) -> AdapterSpec:
            return read_spec(folder, config.base, config.adapter_limits)

        def fetch(digest: str) -> host_adapter.HostAdapter:
            folder = config.artifacts / digest.removeprefix("sha256:")
            return host_adapter.read_artifact(folder, digest, spec_of, config.adapter_limits, runner.bank.dtype)

        self.wake: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.engine = Engine(
            runner,
            limits,
            fetch,
            host_bytes=config.engine.get("host_bytes", 2 << 30),
            on_arrival=lambda: self.wake.put(None),
            grammar_tokenizer=load_grammar_tokenizer(config.base),
            proposer=ForcedTokenProposer(),
        )
        log.info(
            "%s: %s weights, %s activations on %s (%s); %.0f MB of weights, cache of %d tokens; up in %.1f s",
            card.id, card.quantize, card.dtype, card.device, card.reason, card.memory_bytes / 1e6, card.cache_tokens,
            card.load_seconds,
        )  # fmt: skip

    def _on_sigterm(self, *_: object) -> None:
        # A signal to the whole process group must not cut streams short: the main process decides when to stop.
        if self.config.shared_state.phase == STOPPING:
            os._exit(0)


class LitEngineLoop(ls.loops.LitLoop):
    """The loop that LitServe calls after ``setup``.

    LitServe's queues are not used: the worker has its own connections.
    """

    def __call__(self, api: EngineAPI, *_: Any) -> None:
        StepLoop(api).run()


class StepLoop:
    """The engine's loop: take messages, step, send one frame for each step and API process."""

    def __init__(self, api: EngineAPI) -> None:
        self.engine = api.engine
        self.card = api.card
        self.inbox = api.wake
        self.outbox: queue.SimpleQueue[tuple[int, Frame]] = queue.SimpleQueue()
        self.api_process_of: dict[str, int] = {}
        self._config = api.config
        self._process = psutil.Process()
        self._connections = [_connect(address) for address in api.config.api_addresses]

    def run(self) -> None:
        """Connect readers and writer, send the hello, and loop for ever."""
        hello = Hello(os.getpid(), self.card.as_dict())
        for api_process, connection in enumerate(self._connections):
            connection.sendall(encode(Frame(hello=hello)))
            threading.Thread(target=self._read, args=(api_process,), name="reader", daemon=True).start()
        threading.Thread(target=self._write, name="writer", daemon=True).start()
        self._config.shared_state.count_engine_start(self._config.number)
        while True:
            frames: defaultdict[int, Frame] = defaultdict(Frame)
            for sender, message in self._take():
                self._handle(sender, message, frames)
            for delta in self.engine.step():
                if (recipient := self.api_process_of.get(delta.request_id)) is not None:
                    frames[recipient].deltas.append(delta)
                if delta.done:
                    self.api_process_of.pop(delta.request_id, None)
            for api_process, frame in frames.items():
                self.outbox.put((api_process, frame))

    def _take(self) -> list[tuple[int, EngineMessage]]:
        """Messages that have arrived; blocks only when there is nothing to compute.

        ``None`` wakes it: an adapter was fetched, or a grammar compiled.
        """
        messages = [] if self.engine.has_work else [self.inbox.get()]
        while not self.inbox.empty():
            messages.append(self.inbox.get())
        return [message for message in messages if message is not None]

    def _handle(self, sender: int, message: EngineMessage, frames: defaultdict[int, Frame]) -> None:
        match message:
            case Generate(requests=requests):
                for request in requests:
                    self.api_process_of[request.id] = sender
                    self.engine.add(request)
            case Cancel(request_ids=request_ids):
                for request_id in request_ids:
                    self.api_process_of.pop(request_id, None)
                    self.engine.abort(request_id)
            case StatsRequest(id=stats_id):
                frames[sender].stats.append((stats_id, self._stats()))

    def _stats(self) -> Stats:
        adapter_cache, scheduler = self.engine.adapter_cache, self.engine.scheduler
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            num_steps=self.engine.num_steps,
            num_preemptions=scheduler.num_preemptions,
            num_loads=adapter_cache.num_loads,
            num_evictions=adapter_cache.num_evictions,
            cache_tokens_used=sum(len(s.tokens) for s in scheduler.running),
            retained_tokens=scheduler.prefix_cache.num_retained_tokens,
            num_prompt_tokens=scheduler.num_prompt_tokens,
            num_cached_tokens=scheduler.num_cached_tokens,
            memory_bytes=self._process.memory_info().rss,
            adapters={
                digest: AdapterState(adapter.tier, adapter.load_ms, adapter.num_bytes)
                for digest, adapter in adapter_cache.adapters.items()
            },
        )

    def _read(self, api_process: int) -> None:
        """Read one API process's messages. When it is gone the server is ending, and this process with it."""
        connection, buffer = self._connections[api_process], MessageBuffer()
        with contextlib.suppress(OSError):
            while data := connection.recv(_READ_BYTES):
                for body in buffer.feed(data):
                    self.inbox.put((api_process, decode_message(body)))

    def _write(self) -> None:
        while True:
            api_process, frame = self.outbox.get()
            with contextlib.suppress(OSError):
                self._connections[api_process].sendall(encode(frame))


def _connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    return connection
