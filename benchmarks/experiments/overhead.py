"""What an experiment costs a request: CPU time of its route and its id, and of its row in the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import Arm, ExperimentPlan
from graftwork.adapters.experiments.routing import ModelRouter
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.feedback.interactions import Completion, Interactions, NewInteraction
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.database import Database, migrate

REPEATS = 5
"""Of each measurement, of which the fastest is shown."""

ROWS_AT_ONCE = 256
"""Rows that the log writes in one transaction when it is busy."""

PLAIN, TESTED = "plain", "tested"
"""An adapter without an experiment, and one with."""

_BASE = BaseInfo(
    id="base",
    path="/nowhere",
    digest="sha256:base",
    architecture="",
    dtype="bfloat16",
    num_parameters=1,
    vocab_size=1,
    max_positions=1,
    num_layers=1,
    hidden_size=1,
    eos_token_ids=(0,),
    modules={},
    tied=(),
)


class _Site:
    """A database with the two adapters, and what routes and logs their requests."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "graftwork.db")
        migrate(self.database)
        registry = Registry(self.database)
        for number, name in enumerate((PLAIN, PLAIN, TESTED, TESTED)):
            spec = AdapterSpec(
                digest=f"sha256:{number}",
                num_bytes=1,
                num_parameters=1,
                rank=1,
                grafts=(),
                replaced={},
                base_digest=None,
                config={},
            )
            registry.add_version(name, spec, base=_BASE, alias=None)
        experiments = Experiments(self.database, registry)
        arms = (Arm(name="", version=1), Arm(name="", version=2, weight=0.5))
        plan = ExperimentPlan(adapter=TESTED, arms=arms, metric=Metric.of("thumb"))
        experiments.start("measured", plan, base_digest=_BASE.digest, actor="benchmark")
        self.ids = InteractionIds(bytes(16))
        self.router = ModelRouter(_BASE, registry, experiments)
        self.interactions = Interactions(self.database, self.ids)

    def mint(self, name: str, user: str) -> str:
        """A request's way from its user's name to the answer's id."""
        unit = self.ids.unit(user=user)
        route = self.router.resolve(name, unit, chat=True)
        return route.mint_id(self.ids, "chatcmpl", unit=unit, at=int(time.time()), choices=1)

    def write(self, name: str) -> None:
        """The rows of some answers, in one transaction."""
        self.interactions.write(
            [
                NewInteraction(
                    id=self.mint(name, f"user-{number}"),
                    base=_BASE.id,
                    model=name,
                    status="ok",
                    prompt={"messages": [{"role": "user", "content": "Where is my parcel? " * 20}]},
                    sampling={},
                    completions=(Completion(index=0, text="In Vienna. " * 20, finish_reason="stop"),),
                    prompt_tokens=100,
                    completion_tokens=60,
                    total_ms=800.0,
                    user=f"user-{number}",
                    key_id="local",
                )
                for number in range(ROWS_AT_ONCE)
            ]
        )


def costs(num_calls: int) -> Iterable[str]:
    """Yield the table of what an experiment costs.

    Args:
        num_calls: Calls of each kind, in each of the repetitions.
    """
    with TemporaryDirectory() as folder:
        site = _Site(Path(folder))
        unit = site.ids.unit(user="ann")
        num_batches = -(-num_calls // (10 * ROWS_AT_ONCE))

        def microseconds(call: Callable[[str], object], adapter: str, num: int, each: int = 1) -> float:
            """The least CPU time of a call: whatever else the machine does only adds to it."""
            taken: list[float] = []
            for _ in range(REPEATS):
                began = time.process_time()
                for _ in range(num):
                    call(adapter)
                taken.append((time.process_time() - began) / (num * each) * 1e6)
            return min(taken)

        def row(what: str, call: Callable[[str], object], paid_by: str, num: int, each: int = 1) -> str:
            without, within = (microseconds(call, adapter, num, each) for adapter in (PLAIN, TESTED))
            return f"| {what} | {without:.1f} | {within:.1f} | {within - without:+.1f} | {paid_by} |"

        yield "| microseconds of a core | without | in an experiment | more | paid by |"
        yield "| --- | --- | --- | --- | --- |"
        yield row(
            "to a version or an arm", lambda name: site.router.resolve(name, unit, chat=True), "request", num_calls
        )
        yield row("from the user's name to the answer's id", lambda name: site.mint(name, "ann"), "request", num_calls)
        yield row("row in the log, with its exposure", site.write, "the log's thread", num_batches, ROWS_AT_ONCE)
        site.database.close()
