"""Everything that the routes need, built once by ``app.build``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from graftwork.adapters.access.audit import AuditLog
from graftwork.adapters.access.keys import Keys
from graftwork.adapters.access.scope import visible
from graftwork.adapters.base import BaseInfo
from graftwork.adapters.batches.batches import Batches
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.experiments.exposures import Exposures
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.erasure import Erasure
from graftwork.adapters.feedback.feedback import FeedbackLog
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.feedback.interactions import Interactions
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.learning.files import Files
from graftwork.adapters.learning.graders.reading import GraderRules
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds.policies import LearningPolicies
from graftwork.adapters.learning.rounds.rounds import Rounds
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.registry import Registry
from graftwork.adapters.registry.adapter_limits import AdapterLimiting
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.settings import INTERACTION_IDS, secret
from graftwork.adapters.storage.spool import Spool
from graftwork.adapters.webhooks.webhooks import Webhooks
from graftwork.server.background.graders import GraderTrials
from graftwork.server.background.spool_delivery import SpoolDelivery
from graftwork.server.generation.artifact_cache import ArtifactCache
from graftwork.server.generation.interaction_log import InteractionLog
from graftwork.server.generation.limiter import Limiter
from graftwork.server.http.auth import Authenticator
from graftwork.server.observability.metrics import Metrics
from graftwork.server.observability.traffic import Traffic
from graftwork.server.transport.engine import EngineProtocol


@dataclass(frozen=True, kw_only=True)
class Records:
    """Everything stored about answers: ids, log, feedback, log policies and erasure."""

    ids: InteractionIds
    interactions: Interactions
    feedback: FeedbackLog
    policies: LogPolicies
    erasure: Erasure
    log: InteractionLog
    delivery: SpoolDelivery | None = None

    @classmethod
    def of(
        cls,
        database: Database,
        registry: Registry,
        metrics: Metrics,
        *,
        base_id: str,
        log: bool = True,
        retention_days: float | None = None,
        spool: Spool | None = None,
    ) -> Records:
        """Build those of one database.

        Args:
            database: Where they are stored.
            registry: Has the versions that were trained on a user's data, for erasure.
            metrics: Counts dropped rows.
            base_id: The base's name.
            log: Whether answers are logged where no policy says otherwise.
            retention_days: How long they are stored where no policy says otherwise; ``None``: for good.
            spool: Where answers and feedback wait while the database is away.
        """
        ids = InteractionIds(secret(database, INTERACTION_IDS))
        interactions = Interactions(database, ids)
        policies = LogPolicies(database, log=log, retention_days=retention_days)
        feedback = FeedbackLog(database, ids, spool)
        return cls(
            ids=ids,
            interactions=interactions,
            feedback=feedback,
            policies=policies,
            erasure=Erasure(database, ids, registry, base_id=base_id),
            log=InteractionLog(interactions, policies, metrics, spool=spool),
            delivery=None if spool is None else SpoolDelivery(spool, interactions, feedback),
        )


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything that the routes need."""

    base: BaseInfo
    database: Database
    registry: Registry
    store: ArtifactStore
    keys: Keys
    authenticator: Authenticator
    engine: EngineProtocol
    limits: AdapterLimits
    records: Records
    experiments: Experiments
    exposures: Exposures
    files: Files
    batches: Batches
    jobs: Jobs
    learning: LearningPolicies
    rounds: Rounds
    webhooks: Webhooks
    limiter: Limiter
    adapter_limits: AdapterLimiting
    audit_log: AuditLog
    grader_trials: GraderTrials
    home: Path
    artifact_cache: ArtifactCache | None = None
    allowed_roots: tuple[Path, ...] = ()
    allow_python_graders: bool = False
    cors_origins: tuple[str, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)
    traffic: Traffic = field(default_factory=Traffic)
    started_at: int = field(default_factory=lambda: int(time.time()))

    def read_caches(self) -> None:
        """Read what requests are answered from, so that they can be while the database is away."""
        self.keys.read()
        self.registry.adapters(limit=1)
        self.adapter_limits.limits_of("")
        self.experiments.running_on("")
        self.records.policies.may_ask("")

    @property
    def grader_rules(self) -> GraderRules:
        """What graders may use: programs if the operator allows them, and models as the versions that they are now."""
        return GraderRules(allows_python=self.allow_python_graders, resolve_model=self._resolve_model)

    def _resolve_model(self, model: str) -> str:
        if model == self.base.id and visible(None):
            return model
        version = self.registry.resolve(model)
        version.check_answers()
        if version.base_digest != self.base.digest:
            raise InvalidRequest(f"{version.id} was pushed for another base: it cannot grade here", param="model")
        return version.id
