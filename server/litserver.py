"""LitServe's server with this project's routes, start, supervision and shutdown.

A comment above each override of LitServe says why it is needed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing import connection
from typing import Any

import litserve as ls
from anyio import to_thread
from fastapi import FastAPI

from graftwork.adapters.access.keys import Role
from graftwork.adapters.errors import Unavailable
from graftwork.server.background.keeper import Keeper
from graftwork.server.background.trainer import TrainerProcess
from graftwork.server.generation.batches.runner import BatchRunner
from graftwork.server.generation.embeddings import EmbeddingService
from graftwork.server.generation.service import GenerationService
from graftwork.server.generation.tokenization import Tokenization
from graftwork.server.http import edge
from graftwork.server.http.routes import add_routes, generation, router
from graftwork.server.http.services import Services
from graftwork.server.processes import DRAINING, SERVING, STOPPING, SharedState, die_with_parent
from graftwork.server.transport.engine import EngineProtocol
from graftwork.server.transport.restarts import WorkerRestarts
from graftwork.server.transport.seam import NoManager, NoTransport
from graftwork.server.transport.worker import EngineAPI

log = logging.getLogger(__name__)

#: Timeouts of the shutdown, when no answer is under way any more.
CLOSE_SECONDS = 10  # connections whose clients do not read
LOG_SECONDS = 20  # the last rows of the interaction log, when the database is busy
SHUTDOWN_MARGIN_SECONDS = 10  # everything else in an API process


class GraftServer(ls.LitServer):
    """LitServe's server with this project's routes, start, supervision and shutdown.

    Args:
        apis: The entry points of the engine workers.
        engine: What computes, for the API processes.
        service: Answers generation requests.
        embedding_service: Answers embedding requests.
        tokenization: Tokenizes prompts that are only counted.
        batches: Carries batches on in an API process.
        services: Everything else that routes need.
        shared_state: The server's phase and open answers.
        keeper: Started after the last fork.
        trainer: Started after the last fork.

    Attributes:
        exit_code: Of the process: 1 if the engine or an API process failed.
        drain_seconds: How long SIGTERM waits for answers that are under way.
        starts_workers: Whether LitServe starts the engine workers. Other engines run already.
    """

    def __init__(
        self,
        apis: Sequence[EngineAPI],
        engine: EngineProtocol,
        service: GenerationService,
        embedding_service: EmbeddingService,
        tokenization: Tokenization,
        batches: BatchRunner,
        services: Services,
        shared_state: SharedState,
        keeper: Keeper,
        trainer: TrainerProcess,
    ) -> None:
        self.engine = engine
        self.service = service
        self.embedding_service = embedding_service
        self.tokenization = tokenization
        self.batches = batches
        self.services = services
        self.keeper = keeper
        self.trainer = trainer
        self.shared_state = shared_state
        self.exit_code = 0
        self.starts_workers = True
        self.inference_workers: list[Any] = []
        self._restarts = [WorkerRestarts() for _ in apis]
        super().__init__(
            list(apis),
            accelerator="cpu",  # LitServe starts one process for each; which device it uses is the engine's choice
            timeout=False,
            restart_workers=True,
            disable_openapi_url=True,
        )
        self.monitor_internal = 0.2
        self.uvicorn_graceful_timeout = CLOSE_SECONDS
        self.app.docs_url = self.app.redoc_url = None

    # LitServe would add / and /health itself, with other bodies.
    def _register_internal_endpoints(self) -> None:
        routes = router(self.services)
        generation.add(
            routes,
            self.services.authenticator,
            self.service,
            self.embedding_service,
            self.tokenization,
            self.services.records,
        )
        add_routes(self.app, routes)
        edge.install(self.app, self.services.metrics, self.services.audit_log, self.services.cors_origins)

    # LitServe would ask for X-API-Key; all routes take the same bearer keys.
    def setup_auth(self, lit_api: ls.LitAPI | None = None) -> Callable[..., Any]:
        """The dependency for LitServe's own routes."""
        return self.services.authenticator.require(Role.APP)

    # LitServe's manager is a process that owns its queues: it costs two pickles and a round trip a message, and it is
    # not noticed when it is killed. The engine's connections need neither it nor the queues.
    def _init_manager(self, num_api_servers: int) -> NoManager:
        self.transport_config.num_consumers = num_api_servers
        self.workers_setup_status: dict[str, Any] = {}
        self._shutdown_event = threading.Event()
        for lit_api in self.litapi_connector:
            self.litapi_request_queues[lit_api.api_path] = None
        self._transport = NoTransport()
        self._install_signal_handlers()
        return NoManager()

    # LitServe would wait for the worker before it listens; we listen at once, and /ready answers 503.
    def verify_worker_status(self) -> None:
        """Return at once."""
        return

    # LitServe starts a worker for each of its APIs, and requires one API at least.
    def launch_inference_worker(self, lit_api: ls.LitAPI) -> list[Any]:
        """Start an engine worker, if there is to be one."""
        return super().launch_inference_worker(lit_api) if self.starts_workers else []

    # LitServe would restart a worker that cannot start every two seconds, for ever; also while it shuts down.
    def launch_single_inference_worker(self, lit_api: ls.LitAPI, worker_id: int) -> Any:
        """Restart a worker that died, or shut the server down if that would fail again."""
        assert isinstance(lit_api, EngineAPI)
        number = lit_api.config.number
        died = self.inference_workers[number]
        if self.shared_state.phase == STOPPING:
            threading.Event().wait()  # this is LitServe's monitor thread: nothing is left for it to do
        decision = self._restarts[number].decide(
            died.exitcode,
            num_ready=self.shared_state.engine_starts(number),
            others_serve=self._another_serves(number),
            now=time.monotonic(),
        )
        if decision == "stop":
            log.error("the engine cannot start; shutting down (its own message is above)")
            self.exit_code = 1
            self._stop()
            threading.Event().wait()
        if decision == "wait":
            return died  # the monitor thread comes back to it
        log.warning("engine worker %d ended (exit code %s); starting it again", number, died.exitcode)
        return super().launch_single_inference_worker(lit_api, worker_id)

    def _another_serves(self, number: int) -> bool:
        """Whether an engine worker beside this one lives and has served."""
        return any(
            process.is_alive() and self.shared_state.engine_starts(other)
            for other, process in enumerate(self.inference_workers)
            if other != number
        )

    # LitServe does not watch its API processes: without one the server cannot be reached.
    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: dict[str, Any]) -> None:
        super()._start_worker_monitoring(manager, uvicorn_workers)

        def watch() -> None:
            connection.wait([process.sentinel for process in uvicorn_workers.values()])
            if self.shared_state.phase != STOPPING:
                log.error("an API process died; shutting down, so that whoever watches this server starts it again")
                self.exit_code = 1
                self._stop()

        threading.Thread(target=watch, name="api-watch", daemon=True).start()
        # LitServe kills an API process after uvicorn's timeout for open connections, but the last rows of the log are
        # written after that.
        self.uvicorn_graceful_timeout = CLOSE_SECONDS + LOG_SECONDS + SHUTDOWN_MARGIN_SECONDS
        # All API processes have been forked.
        self.keeper.start()
        self.trainer.start()

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Run in each API process around its life: accept the engine, start the log, and write it out at the end."""
        die_with_parent(os.getppid())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the parent drains and then ends us
        api_process: int = app.response_queue_id  # type: ignore[attr-defined]
        await self.engine.start(api_process)
        self.service.shadows.start()
        with suppress(Unavailable):
            await to_thread.run_sync(self.services.read_caches)
        records = self.services.records
        records.log.start()
        await to_thread.run_sync(self.services.limiter.start)
        if records.delivery is not None:
            records.delivery.start()
        self.batches.start()
        try:
            async with super().lifespan(app):
                yield
        finally:
            await self.batches.stop()
            await self.engine.stop()
            await to_thread.run_sync(self.services.limiter.stop)
            await to_thread.run_sync(partial(records.log.stop, seconds=LOG_SECONDS))
            if records.delivery is not None:
                await to_thread.run_sync(records.delivery.stop)

    def _install_signal_handlers(self) -> None:
        parent = os.getpid()

        def drain(signum: int, _: Any) -> None:
            if os.getpid() != parent:  # a forked API process: uvicorn has shut it down and raises the signal again
                os._exit(0)
            if self.shared_state.phase != SERVING:
                log.warning("second signal: stopping now")
                self._stop()
                return
            self.shared_state.phase = DRAINING
            threading.Thread(target=self._drain, name="drain", daemon=True).start()

        signal.signal(signal.SIGTERM, drain)
        signal.signal(signal.SIGINT, drain)

    def _drain(self) -> None:
        deadline = time.monotonic() + self.drain_seconds
        log.info("draining: %d answers under way, new requests are answered 503", self.shared_state.total_open)
        while self.shared_state.total_open and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.shared_state.total_open:
            log.warning("%d answers did not finish in %.0f s", self.shared_state.total_open, self.drain_seconds)
        self._stop()

    def _stop(self) -> None:
        """Stop now. Open answers end with an error when the worker ends; uvicorn would wait for them to finish."""
        self.shared_state.phase = STOPPING
        for worker in self.inference_workers:
            worker.terminate()
        if self._shutdown_event is not None:
            self._shutdown_event.set()

    drain_seconds: float = 30.0
