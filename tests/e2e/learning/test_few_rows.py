"""Few rows are enough: four intents in 80 rows and three epochs, by the official client and nothing but its defaults.

The queries are of banking77 (Casanueva et al., "Efficient Intent Detection with Dual Sentence Encoders", 2020; CC BY
4.0): the first four of its intents, 45 queries of each at random.
"""

from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.server_process import BASE, Server, eventually

QUERIES = Path(__file__).with_name("banking77_four_intents.csv")
NUM_LEARNED = 80
JOB_SECONDS = 1200.0
LEAST_RIGHT = 85


@pytest.mark.slow
def test_80_rows_in_three_epochs_are_enough_for_four_intents(server: Server) -> None:
    with QUERIES.open(encoding="utf-8", newline="") as file:
        queries = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    learned, unseen = queries[:NUM_LEARNED], queries[NUM_LEARNED:]
    assert len(unseen) == 100
    assert not {text for text, _ in learned} & {text for text, _ in unseen}
    lines = [
        json.dumps({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": intent}]})
        for text, intent in learned
    ]
    with server.openai() as client:
        file = client.files.create(file=("intents.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=BASE,
            training_file=file.id,
            suffix="few",
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        )
        ended = ("succeeded", "failed", "cancelled")
        eventually(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ended, JOB_SECONDS, "it ended", every=1)
        job = client.fine_tuning.jobs.retrieve(job.id)
        assert (job.status, job.error) == ("succeeded", None), server.log[-3000:]

        def answer(text: str) -> str | None:
            reply = client.chat.completions.create(
                model=job.fine_tuned_model or "",
                messages=[{"role": "user", "content": text}],
                max_tokens=16,
                temperature=0,
            )
            return reply.choices[0].message.content

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(answer, [text for text, _ in unseen]))
    right = sum(said == intent for said, (_, intent) in zip(answers, unseen, strict=True))
    print(f"{right} of {len(unseen)} unseen queries answered right")
    assert right >= LEAST_RIGHT
