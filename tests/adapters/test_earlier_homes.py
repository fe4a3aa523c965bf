"""A home of an earlier version can be opened and used."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from graftwork.adapters.access.keys import Keys, Role
from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import Conflict, NotFound
from graftwork.adapters.experiments.exposures import Exposures
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.erasure import Erasure
from graftwork.adapters.feedback.feedback import FeedbackFilter, FeedbackLog, SubmittedFeedback
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.feedback.interactions import Interactions
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.learning.files import Files
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds.policies import LearningPolicies
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.registry import Registry
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.storage import settings
from graftwork.adapters.storage.database import Database, migrate
from tests.homes.earlier import EarlierHome, restore


@pytest.fixture
def home(tmp_path: Path) -> EarlierHome:
    return restore(tmp_path / "home")


@pytest.fixture
def database(home: EarlierHome) -> Iterator[Database]:
    database = Database(home.path / "graftwork.db")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def feedback(database: Database) -> FeedbackLog:
    return FeedbackLog(database, InteractionIds(settings.secret(database, settings.INTERACTION_IDS)))


def test_its_schema_is_the_one_of_a_new_home(database: Database, tmp_path: Path) -> None:
    def schema(path: Path) -> dict[str, str]:
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
            return {f"{kind} {name}": sql.replace('"', "") for kind, name, sql in rows if sql}

    new = Database(tmp_path / "new.db")
    migrate(new)
    new.close()
    assert schema(Path(str(database))) == schema(tmp_path / "new.db")


def test_adapters_resolve_and_aliases_move(home: EarlierHome, database: Database) -> None:
    registry = Registry(database)
    assert (registry.resolve("intents").id, registry.resolve("intents@candidate").id) == ("intents@1", "intents@2")
    assert tuple(version.digest for version in registry.adapter("intents").versions) == home.versions
    assert registry.resolve("intents@2").parent == 1
    assert [(event.action, event.alias, event.to_version) for event in registry.history("intents")] == [
        ("promote", "candidate", 2),
        ("push", None, 2),
        ("promote", "live", 1),
        ("push", None, 1),
    ]
    registry.set_alias("intents", "live", 2, actor="ann")
    assert registry.resolve("intents").id == "intents@2"


@pytest.mark.parametrize("number", [1, 2])
def test_artifacts_are_what_their_digests_say(number: int, home: EarlierHome, embedded_base: BaseInfo) -> None:
    assert (embedded_base.id, embedded_base.digest) == (home.base["id"], home.base["digest"])
    store = ArtifactStore(home.path / "artifacts", limits=AdapterLimits())
    store.clean()
    spec = read_spec(store.path(home.versions[number - 1]), embedded_base, store.limits)
    assert spec.digest == home.versions[number - 1]
    assert spec.base_digest == embedded_base.digest
    assert [graft.name for graft in spec.grafts] == ["model.layers.0.self_attn.v_proj"]


def test_keys_authenticate(home: EarlierHome, database: Database) -> None:
    keys = Keys(database)
    admin, app = keys.authenticate(home.keys["admin"]), keys.authenticate(home.keys["app"])
    assert admin is not None
    assert app is not None
    assert [(key.name, key.role) for key in (admin, app)] == [("ann", Role.ADMIN), ("the shop", Role.APP)]
    assert keys.authenticate(home.keys["revoked"]) is None


def test_interactions_and_feedback_are_read(home: EarlierHome, database: Database, feedback: FeedbackLog) -> None:
    ids = InteractionIds(settings.secret(database, settings.INTERACTION_IDS))
    rated = Interactions(database, ids).get(home.interactions["rated"])
    assert (rated.adapter, rated.experiment, rated.arm, rated.user) == ("intents@2", home.experiment, home.arm, "maria")
    assert rated.completions[0].text == "card_arrival"
    found = {row.interaction_id: row for row in feedback.find(FeedbackFilter(adapter="intents"))}
    assert found[home.interactions["rated"]].thumb == "up"
    corrected = found[home.interactions["corrected"]]
    assert (corrected.correction, corrected.metadata) == ("card_delivery_estimate", {"source": "chat"})


def test_answers_of_then_still_get_feedback(home: EarlierHome, database: Database, feedback: FeedbackLog) -> None:
    app = Keys(database).authenticate(home.keys["app"])
    assert app is not None
    late = SubmittedFeedback(interaction_id=home.interactions["not_logged"], thumb="down")
    row, is_new = feedback.add(late, key_id=app.id)
    assert (row.adapter, is_new) == ("intents@2", True)
    again = SubmittedFeedback(interaction_id=home.interactions["rated"], thumb="up")
    row, is_new = feedback.add(again, key_id=app.id, idempotency_key="once")
    assert (row.id, is_new) == (1, False)


def test_files_and_jobs_are_there(home: EarlierHome, database: Database) -> None:
    files, jobs = Files(database, home.path / "files"), Jobs(database)
    files.clean()
    assert files.path(files.get(home.file)).read_bytes().count(b"\n") == 2
    done, cancelled = jobs.get(home.jobs["succeeded"]), jobs.get(home.jobs["cancelled"])
    assert (done.status, done.version, done.training_file) == ("succeeded", "intents@2", home.file)
    assert cancelled.status == "cancelled"
    assert [checkpoint.metrics for checkpoint in jobs.checkpoints(done.id)] == [{"train_loss": 1.25}]
    assert jobs.events(done.id)[0].message == "The job has successfully completed."
    with pytest.raises(Conflict):
        jobs.cancel(done.id, actor="ann")


def test_experiments_and_policies_are_there(home: EarlierHome, database: Database) -> None:
    registry = Registry(database)
    experiment = Experiments(database, registry).get(home.experiment)
    assert experiment.outcome is not None
    assert (experiment.outcome.decision, experiment.weights) == ("stopped", {"new": 0.5, "old": 0.5})
    assert [e.interaction_id for e in Exposures(database).since(home.experiment, 0)] == [home.interactions["rated"]]
    (policy,) = LogPolicies(database).all()
    assert (policy.scope, policy.subject, policy.log, policy.retention_days) == ("adapter", "intents", True, 3650)
    learning, status = LearningPolicies(database, registry, Jobs(database), base_id=home.base["id"]).get("intents")
    assert (learning.after, learning.every_days, status.due) == (1000, None, False)


def test_its_users_can_be_erased(home: EarlierHome, database: Database) -> None:
    ids = InteractionIds(settings.secret(database, settings.INTERACTION_IDS))
    erasure = Erasure(database, ids, Registry(database), base_id=home.base["id"])
    erased = erasure.erase_user("maria")
    assert (erased.num_interactions, erased.num_feedback) == (2, 1)
    with pytest.raises(NotFound):
        Interactions(database, ids).get(home.interactions["rated"])
