"""A reinforcement job by the official client: answers as JSON, which the bare base gets right now and then."""

from __future__ import annotations

import json
import random
from typing import Any

import openai
import pytest

from tests.e2e.conftest import MakeServer
from tests.e2e.learning.test_fine_tuning import ended
from tests.e2e.server_process import BASE, Server

CITIES = (
    *("Berlin", "Paris", "Oslo", "Madrid", "Rome", "Vienna", "Lisbon", "Dublin", "Prague", "Warsaw", "Athens"),
    *("Zurich", "Helsinki", "Brussels", "Hamburg", "Geneva", "Porto", "Milan", "Lyon", "Bergen"),
)
QUESTIONS = {
    "cancel": (
        "Can I cancel the order to {}?",
        "I no longer want it sent to {}.",
        "Stop the delivery to {}, please.",
        "Please do not send it to {}.",
    ),
    "damage": (
        "It arrived in {} with a broken lid.",
        "The box for {} was torn open.",
        "In {} I got it in pieces.",
        "What came to {} is cracked.",
    ),
    "where": (
        "My order to {} has not arrived.",
        "Where is my parcel for {}?",
        "Nobody came to my door in {}.",
        "When will it reach {}?",
        "I still wait in {}.",
    ),
}
SHOWN = (
    {"role": "system", "content": "Answer as JSON. The topic is where, cancel or damage."},
    {"role": "user", "content": "Has my box left for Lima?"},
    {"role": "assistant", "content": '{"city": "Lima", "topic": "where"}'},
    {"role": "user", "content": "It came to Cairo with a crack."},
    {"role": "assistant", "content": '{"city": "Cairo", "topic": "damage"}'},
)


def check(name: str) -> dict[str, str]:
    return {
        "type": "string_check",
        "name": name,
        "operation": "eq",
        "input": f"{{{{ sample.output_json.{name} }}}}",
        "reference": f"{{{{ item.{name} }}}}",
    }


GRADER: dict[str, Any] = {
    "type": "multi",
    "name": "parcels",
    "graders": {"city": check("city"), "topic": check("topic")},
    "calculate_output": "0.2 * city + 0.2 * topic + 0.6 * city * topic",
}


def rows(num_rows: int) -> list[dict[str, Any]]:
    draw = random.Random(1)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < num_rows:
        city, topic = draw.choice(CITIES), draw.choice(list(QUESTIONS))
        text = draw.choice(QUESTIONS[topic]).format(city)
        found[text] = {"messages": [*SHOWN, {"role": "user", "content": text}], "city": city, "topic": topic}
    return list(found.values())


def share_right(client: openai.OpenAI, model: str, held_out: list[dict[str, Any]]) -> float:
    """The share of rows that the model answers with the right JSON, at the temperature that the API has by default."""

    def is_right(row: dict[str, Any]) -> bool:
        answer = client.chat.completions.create(model=model, messages=row["messages"], max_tokens=20, seed=7)
        try:
            said = json.loads(answer.choices[0].message.content or "")
        except ValueError:
            return False
        return isinstance(said, dict) and (said.get("city"), said.get("topic")) == (row["city"], row["topic"])

    return sum(map(is_right, held_out)) / len(held_out)


@pytest.mark.slow
def test_a_json_grader_makes_more_answers_right(new_server: MakeServer) -> None:
    server: Server = new_server().start_and_wait()
    train, held_out = (found := rows(82))[:42], found[42:]
    # Not the strict client of other tests: its type of a grader of several has room for a single one.
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        files = [
            client.files.create(file=("rows.jsonl", "\n".join(map(json.dumps, part)).encode()), purpose="fine-tune")
            for part in (train, held_out)
        ]
        hyperparameters: Any = {
            **{"n_epochs": 2, "batch_size": 3, "learning_rate_multiplier": 5},
            **{"answer_tokens": 20, "temperature": 0.7, "beta": 0.0},
        }
        method: Any = {
            "type": "reinforcement",
            "reinforcement": {"grader": GRADER, "hyperparameters": hyperparameters},
        }
        job = client.fine_tuning.jobs.create(
            model=BASE,
            training_file=files[0].id,
            validation_file=files[1].id,
            suffix="parcels",
            seed=1,
            method=method,
        )
        job = ended(client, job.id)
        assert (job.status, job.fine_tuned_model) == ("succeeded", "parcels@1"), server.log[-3000:]
        before, after = (share_right(client, model, held_out) for model in (BASE, "parcels@1"))
    assert after >= before + 0.2
    with server.client() as ours:
        evaluation = (ours.adapters.get("parcels").versions[0].metadata or {})["evaluation"]
    assert evaluation["judged_by"] == "parcels"
    assert evaluation["candidate"]["grade"] > evaluation["base"]["grade"]  # greedily
