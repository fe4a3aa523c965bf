"""A home of the previous version can be served: adapters answer, and earlier answers accept feedback."""

from __future__ import annotations

from graftwork.clients.client import Client
from tests.e2e.conftest import MakeServer
from tests.homes.earlier import restore


def test_a_home_of_the_version_before_starts_and_serves(make_server: MakeServer) -> None:
    server = make_server()
    earlier = restore(server.home)
    server.key = earlier.keys["admin"]
    try:
        server.start_and_wait()
        with server.openai(key=earlier.keys["app"]) as client:
            answer = client.chat.completions.create(
                model="intents",
                messages=[{"role": "user", "content": "Where is my card?"}],
                max_tokens=4,
                temperature=0,  # at 1 it now and then says nothing
            )
            assert answer.choices[0].message.content
        with server.client() as admin:
            adapter = admin.adapters.get("intents")
            assert [version.digest for version in adapter.versions] == list(earlier.versions)
            assert (adapter.aliases["live"], adapter.aliases["candidate"]) == (1, 2)
            admin.adapters.promote("intents", 2)
            admin.adapters.rollback("intents")
            assert admin.adapters.get("intents").aliases["live"] == 1
            feedback(admin, earlier.interactions["not_logged"])
            assert admin.experiments.get(earlier.experiment).ended_at is not None
            assert admin.jobs.get(earlier.jobs["succeeded"]).status == "succeeded"
        assert server.stop() == 0
        assert "Traceback" not in server.log
    finally:
        server.put_down()


def feedback(client: Client, interaction: str) -> None:
    """On an answer of the version before: its signed id is all that it needs."""
    client.feedback.send(interaction, thumb="up")
    assert [said.thumb for said in client.feedback.list(interaction_id=interaction).data] == ["up"]
