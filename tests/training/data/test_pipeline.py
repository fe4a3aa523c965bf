"""The data pipeline: all rows are accounted for, splits do not leak, and the result is deterministic."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.data.kept import KeptRows
from graftwork.training.data.pipeline import PreparedDataSet, prepare
from graftwork.training.data.policy import DataPolicy
from graftwork.training.data.read.source import Source, file_source, record_source
from graftwork.training.data.row import SPLITS, Row
from graftwork.training.data.splits import Shares
from tests.training.conftest import EXAMPLES, chat
from tests.training.data.read.test_reading import RECORDS
from tests.training.exports import answer, said
from tests.training.records import WORDS, pair, question

ALL_TRAIN = Shares(validation=0, test=0)


@pytest.fixture
def make() -> Iterator[Callable[..., PreparedDataSet]]:
    """Prepares records (or sources) by a policy whose fields can be given, all rows on the training side by default."""
    with ExitStack() as stack:

        def prepared(
            *given: Any,
            earlier: Any = None,
            kept: Any = None,
            prompts: Any = None,
            max_length: int | None = None,
            **policy: Any,
        ) -> PreparedDataSet:
            sources = [one for one in given if isinstance(one, Source)]
            records = [one for one in given if not isinstance(one, Source)]
            if records:
                sources.insert(0, record_source("here", records))
            policy = {"shares": ALL_TRAIN, **policy}
            context = prepare(
                sources, DataPolicy(**policy), earlier=earlier, kept=kept, prompts=prompts, max_length=max_length
            )
            return stack.enter_context(context)

        yield prepared


def answers(prepared: PreparedDataSet) -> list[str]:
    return [row.answer for row in prepared.rows()]


# --- steps ------------------------------------------------------------------------------------------------------------


def test_every_row_that_is_read_has_one_fate(make: Callable[..., PreparedDataSet]) -> None:
    first, second = question(1), question(2)
    records = [
        *(pair(question(number), "free text " * number) for number in range(10, 60)),
        {"prompt": "no answer"},
        pair(first, "one"),
        pair(first + " ", "one"),
        pair(first.replace(" ", "  ").capitalize(), "one"),
        pair(second, "one"),
        pair(second, "two"),
        pair(question(3), "write to ann@acme.com"),
    ]
    report = make(*records, personal="drop", conflicts="drop").report
    assert report.fates == {"kept": 51, "bad": 1, "same": 1, "near": 1, "conflict": 2, "private": 1}
    assert report.num_read == len(records)
    assert report.num_kept == sum(report.sides.values()) == 51
    assert [row.line for row in report.bad] == [51]
    (conflict,) = report.conflicts
    assert [(verdict.text, verdict.places) for verdict in conflict.verdicts] == [
        ("one", ("here:55",)),
        ("two", ("here:56",)),
    ]
    assert (report.twins[0].place, report.twins[0].other_place) == ("here:52", "here:54")


def test_broken_text_is_repaired_before_it_is_compared(make: Callable[..., PreparedDataSet]) -> None:
    records = (pair("schÃ¶n, nicht?", "donâ€™t"), pair("schön, nicht?", "don’t"))
    prepared = make(*records)
    assert answers(prepared) == ["don’t"]
    assert (prepared.report.repaired, prepared.report.fates["same"]) == (1, 1)
    assert make(*records, repair=False).report.repaired == 0


def test_answers_are_compared_after_they_are_repaired_and_masked(make: Callable[..., PreparedDataSet]) -> None:
    pairs = [("schÃ¶n", "schön"), ("caf\u00e9", "cafe\u0301"), ("to ann@acme.com", "to bob@acme.com")]
    records = [
        {"prompt": question(number), "chosen": one, "rejected": other} for number, (one, other) in enumerate(pairs)
    ]
    prepared = make(*records, pair(question(9)))
    assert prepared.report.fates == {"kept": 1, "bad": 2, "private": 1}
    assert [row.line for row in prepared.bad] == [1, 2]
    assert "are the same once broken text is repaired" in prepared.bad[0].reason
    assert make(*records, repair=False, personal="keep").report.fates == {"kept": 3}


def test_a_text_that_two_users_said_is_found_by_the_erasure_of_either(make: Callable[..., PreparedDataSet]) -> None:
    def asked(id: str, mail: str) -> list[dict[str, Any]]:
        prompt = {"messages": [{"role": "user", "content": f"I am {mail}"}]}
        return [answer(id, "Hello", prompt=prompt), said(id, thumb="up")]

    prepared = make(*asked("a", "ann@acme.com"), *asked("b", "bob@acme.com"), *asked("c", "nobody"))
    assert [row.interactions for row in prepared.rows()] == [("a", "b"), ("c",)]
    again = make(*asked("a", "ann@acme.com"), *asked("b", "bob@acme.com"), kept=prepared.kept)
    assert [row.interactions for row in again.rows()] == [("a", "b")]
    assert prepared.report.fates == {"kept": 2, "same": 1}


def test_private_data_is_masked_where_users_and_the_model_wrote_it(make: Callable[..., PreparedDataSet]) -> None:
    asked = {
        "messages": [
            {"role": "system", "content": "Our address is help@acme.com, the key is sk-abcdefghijklmnopqrstuvwx."},
            {"role": "user", "content": "I am ann@acme.com"},
            {"role": "assistant", "content": "Call +1 415 555 2671"},
        ]
    }
    (row,) = make(asked).rows()
    assert [turn["content"] for turn in row.messages] == [
        "Our address is help@acme.com, the key is [SECRET].",
        "I am [EMAIL]",
        "Call [PHONE]",
    ]
    found = {one.kind: (one.action, one.findings, one.places) for one in make(asked).report.found}
    assert found == {
        "secret": ("mask", 1, ("here:1",)),
        "email": ("mask", 1, ("here:1",)),
        "phone": ("mask", 1, ("here:1",)),
    }
    kept = make(asked, personal="keep", secrets="keep")
    assert "ann@acme.com" in next(kept.rows()).question
    assert [one.action for one in kept.report.found] == ["keep"] * 3
    assert "ann@acme.com" in next(make(asked, keep=("@acme.com",)).rows()).question
    assert make(asked, pair("Hello"), secrets="drop").report.fates == {"kept": 1, "private": 1}
    with pytest.raises(InvalidRequest, match=r"1 × email in 1 row, first at here:1; 1 × phone.*Take it out"):
        make(asked, personal="refuse")
    (preference,) = make({"prompt": "Q", "chosen": "A", "rejected": "mail ann@acme.com"}).rows()
    assert preference.rejected == "mail [EMAIL]"


def test_private_data_is_masked_in_thoughts_calls_results_and_tools(make: Callable[..., PreparedDataSet]) -> None:
    arguments = {
        "to": "ann@acme.com",
        "card": 4111111111111111,
        "password": "hunter2!",
        "cc": [{"ann@acme.com": 2}, True],
    }
    call = {"id": "a", "type": "function", "function": {"name": "send", "arguments": json.dumps(arguments)}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "To ann@acme.com."}
    turns = [*chat("Send it", "Sent to ann@acme.com")["messages"]]
    turns[1:1] = [calling, {"role": "tool", "tool_call_id": "a", "content": "sent to ann@acme.com"}]
    parameters = {"type": "object", "properties": {"key": {"default": "sk-" + "a1" * 20, "examples": ["us@acme.com"]}}}
    tool = {"type": "function", "function": {"name": "send", "parameters": parameters}}
    row = {"messages": turns, "tools": [tool]}
    (cleaned,) = make(row).rows()
    assert cleaned.messages[1]["reasoning_content"] == "To [EMAIL]."
    assert cleaned.messages[1]["tool_calls"][0]["function"] == {
        "name": "send",
        "arguments": {"to": "[EMAIL]", "card": "[CARD]", "password": "[SECRET]", "cc": [{"[EMAIL]": 2}, True]},
    }
    assert [turn["content"] for turn in cleaned.messages[2:]] == ["sent to [EMAIL]", "Sent to [EMAIL]"]
    # What the operator sends keeps its personal data, as system messages do.
    properties = cleaned.tools[0]["function"]["parameters"]["properties"]
    assert properties == {"key": {"default": "[SECRET]", "examples": ["us@acme.com"]}}

    clean = {"messages": chat("Send it", "Sent")["messages"], "tools": [tool]}
    rejected = {
        "prompt": clean["messages"][:1],
        "chosen": clean["messages"][1:],
        "rejected": [calling],
        "tools": [tool],
    }
    (preference,) = make(rejected).rows()
    assert preference.rejected_calls[0]["function"]["arguments"]["to"] == "[EMAIL]"


def test_rows_with_other_tools_or_calls_neither_repeat_nor_contradict(make: Callable[..., PreparedDataSet]) -> None:
    def row(city: str, *names: str) -> dict[str, Any]:
        call = {"id": "a", "type": "function", "function": {"name": names[0], "arguments": json.dumps({"city": city})}}
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        turns = [{"role": "user", "content": "Weather there?"}, {"role": "assistant", "tool_calls": [call]}]
        return {"messages": turns, "tools": tools}

    report = make(row("Paris", "weather"), row("Paris", "forecast"), row("Paris", "weather", "forecast")).report
    assert (report.num_kept, report.conflicts) == (3, ())
    report = make(row("Paris", "weather"), row("Paris", "weather"), row("Rome", "weather")).report
    assert report.fates == {"kept": 2, "same": 1}
    (conflict,) = report.conflicts
    assert [verdict.text for verdict in conflict.verdicts] == [
        'weather({"city": "Paris"})',
        'weather({"city": "Rome"})',
    ]


def test_personal_data_in_system_messages_is_reported_or_masked_too(make: Callable[..., PreparedDataSet]) -> None:
    asked = {"messages": [{"role": "system", "content": "You talk to ann@acme.com."}, *chat("hi", "yes")["messages"]]}
    report = make(asked, pair("hi there", "no")).report
    assert report.personal_in_system == 1
    assert report.found == ()
    assert any("--clean-system" in note for note in report.notes)
    prepared = make(asked, clean_system=True)
    assert next(prepared.rows()).messages[0]["content"] == "You talk to [EMAIL]."
    assert (prepared.report.personal_in_system, prepared.report.found[0].kind) == (0, "email")
    assert not any("--clean-system" in note for note in prepared.report.notes)


def test_a_number_is_no_wording(make: Callable[..., PreparedDataSet]) -> None:
    asked = "Please tell me when the order with the number 4711 will finally arrive at my house"
    assert make(pair(asked), pair(asked.replace("4711", "4712"))).report.fates == {"kept": 2}
    assert make(pair(asked), pair(asked.replace("finally ", ""))).report.fates == {"kept": 1, "near": 1}


def test_near_rows_are_the_same_only_if_their_answers_are(make: Callable[..., PreparedDataSet]) -> None:
    asked, alike = question(5), question(5) + " now"
    long, other_long = question(6) * 3, question(7) * 3
    assert make(pair(asked, "card_lost"), pair(alike, "card_lost")).report.fates["kept"] == 1
    assert make(pair(asked, "card_lost"), pair(alike, "card_last")).report.fates["kept"] == 2
    assert make(pair(asked, long), pair(alike, long + " indeed")).report.fates["kept"] == 1
    assert make(pair(asked, long), pair(alike, other_long)).report.fates["kept"] == 2
    assert make(pair(asked), pair(alike), near=None).report.fates["kept"] == 2
    judged = pair(asked, label=True), pair(alike, label=False)
    assert make(*judged).report.fates["kept"] == 2
    texts = {"text": long}, {"text": long + " indeed"}
    assert make(*texts).report.fates["kept"] == 1


def test_of_several_answers_to_a_question_the_majority_may_stay(make: Callable[..., PreparedDataSet]) -> None:
    one, two = question(1), question(2)
    records = [pair(one, "a"), pair(one, "b"), pair(one, "b"), pair(two, "a"), pair(two, "b"), pair(question(3), "c")]
    assert answers(make(*records)) == ["a", "b", "a", "b", "c"]
    assert answers(make(*records, conflicts="majority")) == ["b", "c"]
    assert answers(make(*records, conflicts="drop")) == ["c"]
    assert make(*records).report.num_conflicts == 2
    judged = [pair(one, "a", label=True), pair(one, "a", label=False)]
    assert make(*judged).report.conflicts[0].verdicts[0].text == "good"
    swapped = [{"prompt": one, "chosen": x, "rejected": y} for x, y in (("a", "b"), ("b", "a"))]
    assert make(*swapped).report.num_conflicts == 1
    systems = [
        {"messages": [{"role": "system", "content": s}, *chat(one, s)["messages"]]} for s in ("French", "German")
    ]
    assert make(*systems).report.num_conflicts == 0


def test_labels_are_seen_and_what_is_odd_about_them_is_said(make: Callable[..., PreparedDataSet]) -> None:
    records = [pair(question(number), ("pause", "gift")[number % 2]) for number in range(100)]
    records += [pair(question(200), "Gift"), pair(question(3) + " now", "pause")]
    report = make(*records).report
    assert [(label.text, label.rows) for label in report.labels] == [("pause", 51), ("gift", 50), ("Gift", 1)]
    assert report.num_near_conflicts == 1
    assert report.near_conflicts[0].other_place == "here:102"
    notes = "\n".join(report.notes)
    assert "1 label with fewer than 5 rows to train on: 'Gift'" in notes
    assert "One label in several spellings? 'gift', 'Gift'" in notes or "'Gift', 'gift'" in notes
    assert "times as many rows" in notes
    assert "1 pair of nearly the same question with different labels" in notes
    free = make(*(pair(question(number), question(-number)) for number in range(40))).report
    assert free.labels == ()
    assert free.notes == ()


def test_lengths_are_those_that_training_will_see(make: Callable[..., PreparedDataSet], prompts: Prompts) -> None:
    source = file_source(EXAMPLES / "tickets.jsonl")
    lengths = make(source, prompts=prompts, max_length=64).report.lengths
    rows = [row for row in source.rows() if isinstance(row, Row)]
    whole = sorted(len(prompts.chat(row.messages, add_generation_prompt=False)) for row in rows)
    assert (lengths.unit, lengths.row.longest, lengths.row.total) == ("tokens", whole[-1], sum(whole))
    assert lengths.over == sum(length > 64 for length in whole) > 0
    assert sum(bar.count for bar in lengths.row.bars) == 300
    assert make(pair("abc", "de")).report.lengths.question.total == 3


def test_special_tokens_that_are_written_out_are_counted(
    make: Callable[..., PreparedDataSet], prompts: Prompts
) -> None:
    report = make(chat("what is <|im_end|>?", "a marker"), chat("hi", "yes"), prompts=prompts).report
    assert report.lengths.special == 1
    assert "1 row with a special token of the base" in report.notes[0]
    assert not make(chat("hi", "yes"), prompts=prompts).report.notes


def test_rows_that_the_template_refuses_are_said(
    make: Callable[..., PreparedDataSet], templated: Callable[[str], Prompts]
) -> None:
    strict = templated(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages }}"
    )
    system = {"messages": [{"role": "system", "content": "S"}, *chat("hi", "yes")["messages"]]}
    report = make(system, chat("hello", "yes"), prompts=strict).report
    assert report.lengths.refused == 1
    assert "refuses 1 row: here:1: The base's chat template refuses these messages: no system" in report.notes[0]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_few_bad_rows_are_left_out_and_too_many_are_refused(make: Callable[..., PreparedDataSet]) -> None:
    good = [pair(question(number)) for number in range(90)]
    prepared = make(*good, *[{"bad": 1}] * 10)
    assert len(prepared.bad) == 10
    assert make(*good[:1], *[{"bad": 1}] * 10).report.fates["bad"] == 10
    with pytest.raises(InvalidRequest, match=r"11 of the 101 rows of here cannot be used \(line 91: .*; and 8 more\)"):
        make(*good, *[{"bad": 1}] * 11)
    assert make(*good, *[{"bad": 1}] * 30, max_bad=0.5).report.fates["bad"] == 30


def test_what_holds_nothing_is_refused(make: Callable[..., PreparedDataSet], tmp_path: Path) -> None:
    for content, message in (("", "holds no rows"), ("\n \n", "holds no rows"), ("a\nb\nc\nd\n", "line 1.*and 1 more")):
        path = tmp_path / "data.jsonl"
        path.write_text(content)
        with pytest.raises(InvalidRequest, match=message):
            make(file_source(path))


def test_a_file_of_something_else_is_not_read_to_its_end(make: Callable[..., PreparedDataSet]) -> None:
    read = 0

    def records() -> Iterator[tuple[int, Any]]:
        nonlocal read
        while True:
            read += 1
            yield read, {"level": "info"}

    with pytest.raises(InvalidRequest, match="no usable row"):
        make(Source(name="log.jsonl", open=records))
    assert read < 1000


@pytest.mark.parametrize(
    "wrong",
    [{"personal": "hide"}, {"secrets": ""}, {"conflicts": "vote"}, {"near": 0.1}, {"near": 1.5}, {"max_bad": 2}],
)
def test_a_policy_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=name):
        DataPolicy(**wrong)


@settings(max_examples=80)
@given(records=st.lists(RECORDS, max_size=8), near=st.sampled_from([None, 0.5, 1.0]))
def test_no_records_break_the_pipeline(records: list[dict[str, Any]], near: float | None) -> None:
    source = record_source("here", [*records, pair("Q", "A"), answer("\ud800", unit="\ud800"), said("a", thumb="up")])
    try:
        with prepare([source], DataPolicy(near=near, conflicts="majority", max_bad=1.0)) as prepared:
            assert len(list(prepared.rows())) == prepared.report.num_kept
    except InvalidRequest:
        return


def test_a_file_whose_name_is_no_unicode_is_read(make: Callable[..., PreparedDataSet], tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_text(json.dumps(pair("Q", "A")))
    assert make(file_source(path)).report.sources[0].name == "caf?.jsonl"


# --- sides ------------------------------------------------------------------------------------------------------------


def test_rows_keep_their_sides_when_rows_are_added(make: Callable[..., PreparedDataSet]) -> None:
    records = [pair(question(number), "yes") for number in range(400)]
    few, many = (make(*records[:size], shares=Shares(validation=0.2, test=0.2)) for size in (200, 400))
    sides = {row.question: row.split for row in many.rows()}
    assert all(sides[row.question] == row.split for row in few.rows())
    assert few.report.sides["test"] > 20 < few.report.sides["validation"]


def test_given_held_out_rows_are_kept_from_training(make: Callable[..., PreparedDataSet]) -> None:
    held = record_source("held", [pair(question(1)), pair(question(2))])
    held.split = "test"
    records = [pair(question(1), "another answer"), pair(question(2) + " now"), pair(question(3))]
    prepared = make(*records, held)
    assert prepared.report.fates == {"kept": 3, "held_out": 2}
    assert {side: [row.source for row in prepared.rows(side)] for side in SPLITS} == {
        "train": ["here"],
        "validation": [],
        "test": ["held", "held"],
    }


def test_the_examples_and_their_held_out_rows_do_not_leak(make: Callable[..., PreparedDataSet]) -> None:
    held = file_source(EXAMPLES / "tickets_heldout.jsonl", split="test")
    report = make(file_source(EXAMPLES / "tickets.jsonl"), held, shares=Shares(test=0)).report
    assert report.fates == {"kept": 360}
    assert report.sides["test"] == 60
    assert len(report.labels) == 10


def test_users_stay_together(make: Callable[..., PreparedDataSet]) -> None:
    records = [pair(question(number), "yes", user=f"user {number % 30}") for number in range(300)]
    prepared = make(*records, shares=Shares(validation=0.2, test=0.2))
    sides: dict[str | None, set[str | None]] = {}
    for row in prepared.rows():
        sides.setdefault(row.group, set()).add(row.split)
    assert prepared.report.users == len(sides) == 30
    assert all(len(found) == 1 for found in sides.values())
    assert "user 1" not in json.dumps([row.to_json() for row in prepared.rows()])


def test_what_an_earlier_version_trained_on_stays_in_training(make: Callable[..., PreparedDataSet]) -> None:
    records = [pair(question(number)) for number in range(100)]
    before = make(*records[:50])
    trained = {row.question_key(): row.split for row in before.rows("train") if row.split}
    after = make(*records, earlier=trained, shares=Shares(validation=0.4, test=0.4))
    assert {row.question for row in before.rows()} <= {row.question for row in after.rows("train")}
    assert after.report.sides["test"] > 5


def test_rows_that_were_kept_are_read_again_without_being_cleaned_and_compared(
    make: Callable[..., PreparedDataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [pair(question(number), "yes") for number in range(60)]
    records += [pair(question(0) + " now", "yes"), pair(question(1), "yes"), {"bad": 1}, pair("I am ann@acme.com")]
    before = make(*records, shares=Shares(validation=0.2, test=0.2))
    kept = KeptRows.from_json(json.loads(json.dumps(before.kept.to_json())))
    assert not re.search("yes|acme", json.dumps(kept.to_json()))
    texts: list[str] = []
    monkeypatch.setattr("graftwork.training.data.pipeline.repair", lambda text: texts.append(text) or text)
    again = make(*records, pair("a new one"), kept=kept)
    assert [row.to_json() for row in again.rows()] == [row.to_json() for row in before.rows()]
    assert again.digest == before.digest
    assert texts == ["I am ann@acme.com", "yes"], "what cleaning changed is cleaned again"
    fewer = make(*records[10:60], kept=kept).rows()
    assert [(row.digest(), row.split) for row in fewer] == [
        (row.digest(), row.split) for row in before.rows() if 10 < row.line <= 60
    ]


# --- determinism and memory -------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_set_of_rows(make: Callable[..., PreparedDataSet]) -> None:
    records = [pair(question(number)) for number in range(30)]
    digest = make(*records).digest
    assert make(*records[::-1]).digest == make(*records, *records[:3]).digest == digest
    assert make(*(chat(one["prompt"], one["completion"]) for one in records)).digest == digest
    assert make(*records[1:]).digest != digest
    assert make(*records[1:], pair(question(0), "no")).digest != digest
    assert digest.startswith("sha256:")


SCRIPT = """
import json, sys
from pathlib import Path
from graftwork.training.data.pipeline import prepare
from graftwork.training.data.mix.replay import sample_replay
from graftwork.training.data.read.source import file_source
with prepare([file_source(Path(path)) for path in sys.argv[1:]]) as prepared:
    rows = [row.to_json() for row in prepared.rows()]
    again = sample_replay({"v1": list(prepared.rows())}, 40, seed=7)
    print(json.dumps([prepared.report.to_json(), rows, [row.line for row in again]]))
"""


def test_every_process_makes_the_same_data_set(write_rows: Callable[..., Path]) -> None:
    records = [
        pair(question(number % 90), ("yes", "no")[number % 7 == 0], user=str(number % 40)) for number in range(150)
    ]
    paths = [write_rows(*records, name="a.jsonl"), EXAMPLES / "tickets.jsonl"]
    said = set()
    for seed in ("0", "1", "12345"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT, *map(str, paths)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1
    assert re.search(r'"held_out": [1-9]', said.pop())


GROWTH = """
import sys
from pathlib import Path
from graftwork.training.data.pipeline import prepare
from graftwork.training.data.read.source import file_source

def read(path):
    return sum(1 for row in file_source(Path(path)).rows())

def run(path):
    with prepare([file_source(Path(path))]) as prepared:
        return sum(1 for row in prepared.rows())

def peak():  # not ru_maxrss, which begins with that of the process that started this one
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

work = {"read": read, "prepare": run}[sys.argv[1]]
work(sys.argv[2])
before = peak()
num = work(sys.argv[3])
print(peak() - before, num)
"""


@pytest.mark.parametrize(("suffix", "work"), [(".jsonl", "prepare"), (".json", "read"), (".csv", "read")])
def test_a_big_file_needs_no_memory_of_its_size(tmp_path: Path, suffix: str, work: str) -> None:
    """Long rows; what is held of a row is some hundred bytes, whatever is in it."""
    filler = " ".join(WORDS * 500)
    opening = {".jsonl": "", ".json": "[\n", ".csv": "prompt,completion\n"}[suffix]

    def write(path: Path, num_rows: int) -> None:
        with path.open("w") as file:
            file.write(opening)
            for number in range(num_rows):
                asked, answer = f"{question(number)} {filler[number % 100 :]}", question(-number)
                record = json.dumps(pair(asked, answer)) + ("," if suffix == ".json" else "")
                file.write(f'"{asked}",{answer}\n' if suffix == ".csv" else f"{record}\n")
            file.write("{}]" if suffix == ".json" else "")

    small, big = tmp_path / f"small{suffix}", tmp_path / f"big{suffix}"
    write(small, 20)
    write(big, 350)
    size = big.stat().st_size
    assert size > 13e6
    command = [sys.executable, "-c", GROWTH, work, str(small), str(big)]
    grown, num = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(num) >= 350
    assert int(grown) < size / 4
