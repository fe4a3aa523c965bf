"""Ids of answers: their content, and that forged or malformed ids are refused."""

from __future__ import annotations

import base64
import re
import string
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.feedback.ids import IdKind, InteractionIds
from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.storage.settings import INTERACTION_IDS, secret

SECRET = bytes(range(32))
IDS = InteractionIds(SECRET)
IN_AN_EXPERIMENT: dict[str, Any] = {
    "adapter": "intents@7",
    "experiment": "seven-or-eight",
    "arm": "candidate",
    "probability": 0.1,
    "unit": IDS.unit(user="ann"),
}

texts = st.text(min_size=1, max_size=60)
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}@[1-9][0-9]{0,6}", fullmatch=True)


@given(
    kind=st.sampled_from(["chatcmpl", "cmpl"]),
    adapter=st.none() | names,
    arm=st.none() | st.tuples(texts, texts, st.floats(min_value=0, max_value=1, exclude_min=True)),
    user=st.none() | st.text(),
    at=st.integers(min_value=0, max_value=2**32 - 1),
)
def test_an_id_says_what_it_was_minted_with(
    kind: IdKind, adapter: str | None, arm: tuple[str, str, float] | None, user: str | None, at: int
) -> None:
    experiment, name, probability = arm or (None, None, None)
    unit = IDS.unit(user=user)
    id = IDS.mint(kind, adapter=adapter, experiment=experiment, arm=name, probability=probability, unit=unit, at=at)
    assert re.fullmatch(rf"{kind}-[A-Za-z0-9_-]+", id)
    said = InteractionIds(SECRET).read(id)
    assert (said.kind, said.adapter, said.experiment, said.arm) == (kind, adapter, experiment, name)
    assert (said.probability, said.unit, said.at) == (probability, unit, at)
    assert re.fullmatch(r"[0-9a-f]{16}", said.nonce)


def test_the_mark_of_an_answer_that_is_asked_about_is_signed_with_it() -> None:
    asked, plain = (IDS.mint("chatcmpl", **IN_AN_EXPERIMENT, choices=1, asked=asked) for asked in (True, False))
    assert (IDS.read(asked).asked, IDS.read(plain).asked) == (True, False)
    assert len(asked) == len(plain), "the mark is a bit"
    signed = bytearray(base64.urlsafe_b64decode(plain.removeprefix("chatcmpl-") + "=="))
    signed[1] |= 16  # the byte of flags
    forged = f"chatcmpl-{base64.urlsafe_b64encode(bytes(signed)).decode().rstrip('=')}"
    with pytest.raises(InvalidRequest):
        IDS.read(forged)


def test_an_id_of_before_there_was_the_mark_is_read() -> None:
    old = IDS.read(
        "chatcmpl-AQ9o53gAAAECAwQFBgcJaW50ZW50c0A3DnNldmVuLW9yLWVpZ2h0CWNhbmRpZGF0ZT-5mZmZmZmag_QeITrcXUIChi9WpmivxsRi"
        "B2wvoxIyhA"
    )
    assert (old.adapter, old.arm, old.probability, old.choices) == ("intents@7", "candidate", 0.1, 2)
    assert not old.asked


def test_ids_are_new_dated_and_short() -> None:
    before = int(time.time())
    made = [IDS.mint("chatcmpl", adapter="intents@7") for _ in range(100)]
    assert len(set(made)) == 100
    assert before <= IDS.read(made[0]).at <= time.time()
    assert len(made[0]) < 70
    assert len(IDS.mint("chatcmpl", **IN_AN_EXPERIMENT)) < 130


def test_a_change_of_any_character_is_noticed() -> None:
    id = IDS.mint("cmpl", **IN_AN_EXPERIMENT)
    refused = 0
    for place in range(len("cmpl-"), len(id)):
        for digit in "Aa0-_" if place < len(id) - 1 else string.ascii_letters + string.digits + "-_":
            if digit != id[place]:
                with pytest.raises(InvalidRequest):
                    IDS.read(id[:place] + digit + id[place + 1 :])
                refused += 1
    assert refused > 4 * (len(id) - 5) + 50


def test_what_is_cut_lengthened_or_wrapped_is_refused() -> None:
    id = IDS.mint("cmpl", adapter="intents@7")
    assert IDS.read(id).adapter == "intents@7"
    wrong = [id[:length] for length in range(len(id))]
    wrong += [id + "A", id + "=", id + " ", " " + id, id + "\n", id * 2, id.upper(), "chat" + id, id[1:], id[5:]]
    wrong += [f"chatcmpl-{id[5:]}", f"other-{id[5:]}", "", "-", "cmpl-", "cmpl-ü", "chatcmpl-" + "0" * 32]
    wrong += ["cmpl-" + "A" * 5000, "cmpl-\0", "cmpl-\ud800", "cmpl-" + "A" * 28]
    for text in wrong:
        with pytest.raises(InvalidRequest, match="is no id of an answer of this server") as refused:
            IDS.read(text, param="preferred_over")
        assert (refused.value.param, refused.value.code) == ("preferred_over", "invalid_interaction_id")
        assert len(refused.value.message) < 300


def test_who_does_not_have_the_secret_cannot_say_that_another_arm_answered() -> None:
    id = IDS.mint("chatcmpl", **IN_AN_EXPERIMENT)
    encoded = id.removeprefix("chatcmpl-")
    signed = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    assert b"intents@7" in signed, "ids are signed, not hidden"
    forged = base64.urlsafe_b64encode(signed.replace(b"intents@7", b"intents@8")).decode().rstrip("=")
    with pytest.raises(InvalidRequest):
        IDS.read(f"chatcmpl-{forged}")
    with pytest.raises(InvalidRequest):
        IDS.read(InteractionIds(bytes(32)).mint("chatcmpl", **IN_AN_EXPERIMENT))


@given(st.binary(max_size=80))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(InvalidRequest):
        IDS.read("cmpl-" + base64.urlsafe_b64encode(noise).decode().rstrip("="))


def test_units_are_stable_and_tell_users_from_sessions() -> None:
    ann = IDS.unit(user="ann")
    assert ann is not None
    assert re.fullmatch(r"[0-9a-f]{16}", ann)
    assert ann == IDS.unit(user="ann", session="s1") == InteractionIds(SECRET).unit(user="ann")
    others = [IDS.unit(user="bob"), IDS.unit(session="ann"), InteractionIds(bytes(32)).unit(user="ann"), IDS.unit()]
    assert len({ann, *others}) == 5
    assert others[-1] is None


@pytest.mark.parametrize(
    "fields",
    [
        {"experiment": "e"},
        {"experiment": "e", "arm": "a"},
        {"probability": 0.5},
        {"experiment": "e", "arm": "a", "probability": 0.0},
        {"experiment": "e", "arm": "a", "probability": 1.5},
        {"adapter": ""},
        {"adapter": "x" * 256},
        {"unit": "ann"},
        {"unit": "00"},
    ],
)
def test_what_no_id_can_say(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        IDS.mint("cmpl", **{"adapter": None, **fields})


def test_a_short_secret_is_none() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        InteractionIds(b"short")


def secret_in_another_process(path: Path) -> bytes:
    return secret(Database(path), INTERACTION_IDS)


def test_all_processes_have_the_same_secret(tmp_path: Path) -> None:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    with get_context("spawn").Pool(2) as processes:
        started = processes.map_async(secret_in_another_process, [tmp_path / "graftwork.db"] * 2)
        with ThreadPoolExecutor(4) as threads:
            here = set(threads.map(lambda _: secret(database, INTERACTION_IDS), range(8)))
        (mine,) = here | set(started.get(60))
    assert len(mine) == 32
    assert secret(database, "another purpose") != mine
    database.close()
