"""Files become rows: every format is detected, and every bad row has its line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.training.data.read import json_records, lines
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.read.formats import FORMATS
from graftwork.training.data.read.source import FORMAT_NAMES, Source, file_source, record_source
from graftwork.training.data.row import BadRow, Row
from tests.training.conftest import EXAMPLES, chat

PAIR = {"prompt": "Where is my parcel?", "completion": "delivery"}
Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
B = {"role": "assistant", "content": "B"}
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
RECORDING = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
DPO = {"input": {"messages": [Q], "tools": []}, "preferred_output": [A], "non_preferred_output": [B]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "strict": True,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            "description": "The weather in a city",
            "name": "weather",
        },
    }
]
SHOWN = {key: TOOLS[0]["function"][key] for key in ("name", "description", "parameters")}  # type: ignore[index]


def calling(arguments: Any, **more: Any) -> dict[str, Any]:
    """An answer that calls the tool."""
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}], **more}


CALL, PARSED = calling('{"city": "Paris"}', content=None), calling({"city": "Paris"}, content="")
RESULT = {"role": "tool", "tool_call_id": "a", "content": "20 °C"}


def read(source: Source | Path, columns: Columns | None = None) -> tuple[list[Row], list[BadRow]]:
    source = file_source(source, columns) if isinstance(source, Path) else source
    found = list(source.rows())
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, BadRow)]


def row_of(record: dict[str, Any], columns: Columns | None = None, format: str | None = None) -> Row:
    """The row of one record, which must be usable."""
    rows, bad = read(record_source("here", [record], columns=columns, format=format))
    assert not bad
    (row,) = rows
    return row


def reason(record: Any, columns: Columns | None = None, format: str | None = None) -> str:
    """Why one record is not usable."""
    rows, bad = read(record_source("here", [record], columns=columns, format=format))
    assert not rows
    return bad[0].reason


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "record", "kind"),
    [
        ("chat", {"messages": [Q, A]}, "example"),
        ("completion", {"prompt": "Q", "completion": "A"}, "example"),
        ("completion", {"prompt": [Q], "completion": [A]}, "example"),
        ("completion", {"prompt": "Q", "completion": [A]}, "example"),
        ("completion", {"question": "Q", "answer": "A", "id": 7}, "example"),
        ("completion", {"text": "Q", "label": "A"}, "example"),
        ("alpaca", {"instruction": "Q", "input": "", "output": "A"}, "example"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "example"),
        ("preference", {"prompt": "Q", "chosen": "A", "rejected": "B"}, "preference"),
        ("preference", {"prompt": [Q], "chosen": [A], "rejected": [B]}, "preference"),
        ("preference", {"prompt": "Q", "chosen": [Q, A], "rejected": [Q, B]}, "preference"),
        ("preference", {"chosen": [Q, A], "rejected": [Q, B], "messages": [Q, A]}, "preference"),
        ("openai-dpo", DPO, "preference"),
        ("kto", {"prompt": "Q", "completion": "A", "label": True}, "judged"),
        ("kto", {"prompt": [Q], "completion": [A], "label": "up"}, "judged"),
        ("kto", {"messages": [Q, A], "label": False}, "judged"),
        ("kto", {"question": "Q", "answer": "A", "label": False}, "judged"),
        ("kto", {"instruction": "Q", "output": "A", "kto_tag": "false"}, "judged"),
        (
            "kto",
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "label": 1},
            "judged",
        ),
        ("kto", {"prompt": "Q", "response": "A", "label": 0, "score": 0.9}, "judged"),
        ("scored", {"prompt": "Q", "completion": "A", "score": 0.75}, "scored"),
        ("scored", {"instruction": "Q", "output": "A", "score": 0.1}, "scored"),
        ("scored", {"messages": [Q, A], "score": 0.1}, "scored"),
        ("scored", {"text": "Q", "label": "A", "score": 0.1}, "scored"),
        ("completion", {"text": "Q", "category": "A", "label": 0}, "example"),
    ],
)
def test_every_format_is_recognised_and_makes_the_same_conversation(
    format: str, record: dict[str, Any], kind: str
) -> None:
    source = record_source("here", [record])
    ((row,), bad) = read(source)
    assert not bad
    assert dict(source.formats) == {format: 1}
    assert row.kind == kind
    assert row.messages == (Q, A)
    assert row.learned == (1,)
    assert row.rejected == ("B" if kind == "preference" else None)
    assert row == row_of(record, format=format)
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_a_text_and_a_plain_pair_have_no_messages() -> None:
    text, plain = row_of({"text": "Once upon a time", "id": 1}), row_of(PAIR, Columns(plain=True))
    assert (text.kind, text.completion, text.prompt) == ("text", "Once upon a time", "")
    assert (plain.kind, plain.completion, plain.prompt) == ("example", "delivery", "Where is my parcel?")
    for row in (text, plain, row_of({**PAIR, "label": 0}, Columns(plain=True))):
        assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_columns_of_other_names_are_found_and_said() -> None:
    source = record_source("here", [{"text": "Q", "category": "A"}])
    assert read(source)[0][0].messages == (Q, A)
    assert source.mapped == ("text", "category")
    named = Columns(prompt="subject", completion="verdict")
    assert row_of({"subject": "Q", "verdict": "A", "text": "C", "output": "D"}, named).messages == (Q, A)
    assert row_of({"subject": "Q", "verdict": "A", "label": True}, named).label is True
    assert row_of({"subject": "Q", "verdict": "A", "score": 1}, named).score == 1
    judged = record_source("here", [{"question": "Q", "answer": "A", "label": False}])
    assert read(judged)[0][0].label is False
    assert judged.mapped == ("question", "answer")
    assert row_of({"text": "Q", "class": "A", "label": 0}, Columns(prompt="text", completion="class")).label is False


def test_what_belongs_to_a_row_comes_with_it() -> None:
    fields = {**PAIR, "who": "ann", "side": "dev"}
    row = row_of(fields, Columns(user="who", split="side", system="Sort."))
    assert row.split == "validation"
    assert row.group is not None
    assert "ann" not in row.group
    assert row.messages[0] == {"role": "system", "content": "Sort."}
    assert row_of({**PAIR, "user": "ann"}).group == row.group
    assert row_of({**PAIR, "user": ""}).group is None
    assert row_of({**PAIR, "score": "4"}, Columns(score_range=(1, 5))).score == 0.75
    assert row_of({"instruction": "Q", "input": "more", "output": "A"}).question == "Q\n\nmore"


def test_content_in_parts_is_joined_as_serving_joins_it() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert row_of({"messages": [{"role": "user", "content": parts}, A]}).question == "one\ntwo"


def test_tools_calls_and_results_are_read_as_requests_are() -> None:
    row = row_of({"messages": [Q, CALL, RESULT, A], "tools": TOOLS, "parallel_tool_calls": False})
    assert row.messages == (Q, PARSED, {**RESULT, "name": "weather"}, A)
    assert row.tools == ({"type": "function", "function": SHOWN},)
    assert list(row.tools[0]["function"]) == ["name", "description", "parameters"], "their order is part of the prompt"
    assert row.learned == (1, 3)
    assert row.question == 'Q\nweather({"city": "Paris"})\n20 °C'
    saved = json.loads(json.dumps(row.to_json()))
    assert Row.from_json(saved) == row
    assert row_of(saved).digest() == row.digest()
    unlearned = row_of({"messages": [Q, {**CALL, "weight": 0}, RESULT, A], "tools": TOOLS})
    assert unlearned.learned == (3,)
    digests = {
        row.digest(),
        unlearned.digest(),
        row_of({"messages": [Q, CALL, RESULT, A, Q, A], "tools": TOOLS}).digest(),
    }
    others = [
        calling('{"city": "Rome"}'),
        calling('{"city": "Paris", "day": 1}'),
        calling('{"day": 1, "city": "Paris"}'),
    ]
    digests |= {row_of({"messages": [Q, other], "tools": TOOLS}).digest() for other in others}
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("record", "rejected"),
    [
        ({**DPO, "input": {"messages": [Q], "tools": TOOLS}, "preferred_output": [CALL]}, "B"),
        ({"prompt": [Q], "chosen": [CALL], "rejected": [B], "tools": TOOLS}, "B"),
        ({"prompt": "Q", "chosen": [CALL], "rejected": [B], "tools": TOOLS}, "B"),
        ({"chosen": [Q, CALL], "rejected": [Q, B], "tools": TOOLS}, "B"),
        ({"prompt": "Q", "chosen": [CALL], "rejected": [calling("{}")], "tools": TOOLS}, "weather({})"),
        ({"prompt": [Q], "completion": [CALL], "label": True, "tools": TOOLS}, ""),
        ({"prompt": "Q", "completion": [CALL], "score": 1, "tools": TOOLS}, ""),
    ],
)
def test_answers_that_call_tools_are_judged_in_every_format(record: dict[str, Any], rejected: str) -> None:
    row = row_of(record)
    assert row.messages == (Q, PARSED)
    assert row.answer == 'weather({"city": "Paris"})'
    assert row.rejected_answer == rejected
    assert [tool["function"]["name"] for tool in row.tools] == ["weather"]
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [Q]}, "the last message is not the assistant's"),
        ({"messages": [Q, {**A, "content": " "}]}, r"messages\[1\] is an empty answer"),
        ({"messages": [Q, {**A, "weight": 0}]}, "every answer has weight 0"),
        ({"messages": [Q, {**A, "weight": 0.5}]}, "it may be 1, or 0"),
        ({"messages": [{**Q, "role": "robot"}, A]}, r"messages\[0\].role is 'robot'"),
        ({"messages": [Q, {**A, "tool_calls": [1]}]}, r"messages\[1\].tool_calls\[0\] must be an object like"),
        ({"messages": [Q, CALL]}, r"messages\[1\] has tool_calls, and the row has no 'tools'"),
        ({"messages": [Q, calling("{")], "tools": TOOLS}, "arguments must be the text of a JSON object; it is no JSON"),
        ({"messages": [Q, calling('{"a": "\\ud800"}')], "tools": TOOLS}, "half of a surrogate pair"),
        (
            {"messages": [Q, RESULT, A], "tools": TOOLS},
            r"messages\[1\].tool_call_id is 'a', which is the id of no tool",
        ),
        (
            {"messages": [{**Q, "content": [PICTURE, {"type": "text", "text": "Q"}]}, A]},
            r"^messages\[0\].content\[0\] is of type 'image_url', and bases here read only text, no images. "
            "Leave the part out, or say in a text part what it holds$",
        ),
        ({"messages": [{**Q, "content": [RECORDING]}, A]}, "'input_audio', and bases here read only text, no audio"),
        ({**DPO, "input": {"messages": [{**Q, "content": [PICTURE]}]}}, "bases here read only text, no images"),
        ({"messages": [Q, {"role": "assistant", "audio": {"id": "a"}}]}, r"messages\[1\]"),
        ({"messages": [Q, A], "images": ["a.png"]}, "'images' is not empty, and bases here read only text"),
        (
            {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A"}], "image": "a.png"},
            "'image' is not empty, and bases here read only text",
        ),
        ({"prompt": "Q", "completion": "A", "audio": {"path": "a.wav"}}, "'audio' is not empty"),
        ({"messages": [{**Q, "content": [{"type": "refusal"}]}, A]}, "only text parts"),
        ({"messages": [{**Q, "content": "\ud800"}, A]}, "half of a surrogate pair"),
        ({"messages": [Q, A], "tools": [{}]}, r"tools\[0\] must be an object like"),
        ({"messages": [Q, A], "tools": "weather"}, "tools must be a list of functions"),
        ({"messages": [Q, A], "tools": TOOLS * 2}, "two functions called 'weather'"),
        ({"messages": [Q, A], "functions": TOOLS}, "'functions' is not supported in training data: give 'tools'"),
        ({"text": "Q", "tools": TOOLS}, "'tools' are for chat messages"),
        ({"prompt": "Q"}, r"no known format: the fields are 'prompt'. Name the columns with --prompt-column"),
        ({}, "no known format: there are no fields"),
        ({"prompt": "", "completion": "A"}, "'prompt' must be a text that is not empty"),
        ({"prompt": "Q", "completion": 7}, "'completion' must be a text that is not empty"),
        ({"prompt": "Q", "completion": "A", "label": "billing"}, "true or false"),
        ({"prompt": "Q", "completion": "A", "score": 4}, "it must be 0 to 1, or say the range with --score-range"),
        ({"prompt": "Q", "completion": "A", "score": "much"}, "'score' is 'much'"),
        ({"messages": [Q, A], "label": "billing"}, "'label' is 'billing'; beside an answer it says .* true or false"),
        ({"messages": [Q, A], "score": 8}, "'score' is 8; it must be 0 to 1"),
        ({"text": "Q", "intent": "A", "label": False}, "'label' is false beside the class 'intent'"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "label": False}, "'label' beside two answers"),
        ({**DPO, "score": 0.1}, "'score' beside two answers"),
        ({"prompt": "Q", "chosen": "A", "rejected": " A "}, "are the same"),
        ({"prompt": "Q", "chosen": "A", "rejected": ""}, "the rejected answer must be a text"),
        ({"chosen": "A", "rejected": "B"}, "has no 'prompt'"),
        ({"chosen": [Q, A], "rejected": "B"}, "'rejected' must be one too"),
        ({"chosen": [A], "rejected": [B]}, "no beginning in common"),
        ({"prompt": "Q", "chosen": [Q, A, Q, A], "rejected": [Q, B]}, "'chosen' must be one message"),
        ({**DPO, "input": {}}, "'input' must be an object with messages"),
        ({**DPO, "input": {"messages": [Q], "tools": [1]}}, r"tools\[0\] must be an object like"),
        ({**DPO, "non_preferred_output": [CALL]}, "the rejected answer has tool_calls, and the row has no 'tools'"),
        ({**DPO, "preferred_output": "A"}, "'preferred_output' must be a list"),
        ({"conversations": [{"from": "tool", "value": "Q"}]}, r"conversations\[0\].from is 'tool'"),
        ({"conversations": "Q"}, "'conversations' must be a list"),
        ({"instruction": 1, "output": "A"}, "'instruction' and 'input' must be texts"),
        ({"text": ""}, "'text' must be a text"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(record: dict[str, Any], said: str) -> None:
    assert re.search(said, reason(record))


@pytest.mark.parametrize(
    ("record", "question", "item"),
    [
        ({"messages": [{"role": "user", "content": "Where?"}], "city": "Rome"}, "Where?", {"city": "Rome"}),
        (
            {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}], "n": 1},
            "Where?",
            {"answer": "There.", "n": 1},
        ),
        ({"prompt": "Where?", "completion": "There."}, "Where?", {"prompt": "Where?", "completion": "There."}),
    ],
)
def test_a_question_for_graders_keeps_the_other_fields(
    record: dict[str, Any], question: str, item: dict[str, Any]
) -> None:
    (row,) = record_source("rows", [record], columns=Columns(graded=True)).rows()
    assert isinstance(row, Row)
    assert (row.kind, row.question, row.answer, row.item) == ("question", question, "", item)
    assert row.grader_item["question"] == question
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert row.same_key() != replace(row, item={**item, "n": 2}).same_key()
    assert row.digest() != replace(row, item={**item, "n": 2}).digest()
    masked = row.with_texts(lambda role, text: text.replace("Rome", "[CITY]"))
    assert "Rome" not in json.dumps(masked.to_json())


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"city": "Rome"}, "no 'messages' that end with a user's"),
        ({"messages": []}, "not empty"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "not the user's"),
    ],
)
def test_what_is_no_question_for_graders_is_said(record: dict[str, Any], why: str) -> None:
    (row,) = record_source("rows", [record], columns=Columns(graded=True)).rows()
    assert isinstance(row, BadRow)
    assert why in row.reason


def test_in_a_table_a_column_of_pictures_is_no_part_of_the_row() -> None:
    assert row_of({"prompt": "Q", "completion": "A", "image": "https://example.com/a.png"}).answer == "A"
    assert row_of({"messages": [Q, A], "images": [], "audio": None}).answer == "A"


def test_long_values_make_no_long_reasons() -> None:
    assert len(reason({"prompt": "Q", "completion": "A", "label": "x" * 10_000})) < 400


def test_a_forced_format_is_the_only_one() -> None:
    assert reason(PAIR, format="chat") == "has no 'messages'"
    assert row_of({"messages": [Q, A, Q, B], "label": False}, format="kto").learned == (3,)


@pytest.mark.parametrize("template", ["no column", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{a", "}"])
def test_a_template_may_only_name_columns(template: str) -> None:
    with pytest.raises(ConfigurationError, match="template"):
        Columns(template=template)


def test_plain_takes_no_conversation_and_no_system_message() -> None:
    for record in (chat("hi", "yes"), {"conversations": [{"from": "human", "value": "Q"}]}):
        assert "--plain" in reason(record, Columns(plain=True))
    with pytest.raises(ConfigurationError, match="--plain"):
        Columns(plain=True, system="Sort.")
    with pytest.raises(ConfigurationError, match="worst first"):
        Columns(score_range=(5, 1))


# --- files ------------------------------------------------------------------------------------------------------------


def test_one_question_is_the_same_row_in_any_file(write_rows: Callable[..., Path], tmp_path: Path) -> None:
    question, answer = 'It says "lost", since\nyesterday', "delivery"
    quoted = 'id{0}text{0}category\r\n7{0}"It says ""lost"", since\nyesterday"{0}delivery\r\n'
    for name, delimiter in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        (tmp_path / name).write_text(quoted.format(delimiter), encoding="utf-8-sig")
    (tmp_path / "d.json").write_text(json.dumps([{"prompt": question, "completion": answer}], indent=2))
    write_rows(chat(question, answer), name="e.jsonl")
    found = [read(path)[0] for path in sorted(tmp_path.iterdir())]
    assert len(found) == 5
    assert {row.question for rows in found for row in rows} == {question}
    assert len({rows[0].digest() for rows in found}) == 1


def test_every_bad_row_is_reported_with_its_line_and_the_others_are_kept(write_rows: Callable[..., Path]) -> None:
    path = write_rows(PAIR, "{broken", "", [1, 2], {"messages": []}, "9" * 5000, "[" * 100_000, chat("hi", "yes"))
    rows, bad = read(path)
    assert [row.line for row in rows] == [1, 8]
    assert [row.line for row in bad] == [2, 4, 5, 6, 7]
    assert str(bad[0]) == "line 2: not JSON: Expecting property name enclosed in double quotes at column 2"
    assert {row.source for row in (*rows, *bad)} == {"data.jsonl"}


def test_a_line_that_is_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(json.dumps(PAIR).encode() + b'\n{"prompt": "caf\xe9", "completion": "x"}\r\n')
    (tmp_path / "data.csv").write_bytes(b"prompt,completion\na,b\ncaf\xe9,d\n")
    (tmp_path / "data.txt").write_bytes(b"one\ncaf\xe9\n")
    for name, line in (("data.jsonl", 2), ("data.csv", 3), ("data.txt", 2)):
        rows, bad = read(tmp_path / name)
        assert len(rows) == 1
        assert bad[0].line == line
        assert "save the file" in bad[0].reason or "surrogate" in bad[0].reason


FILES = {
    "a.csv": "prompt,completion\ncafé,x\nWhere?,y\n",
    "b.jsonl": '{"prompt": "café", "completion": "x"}\n{"prompt": "Where?", "completion": "y"}\n',
    "c.json": '[{"prompt": "café", "completion": "x"},\n{"prompt": "Where?", "completion": "y"}]',
    "d.tsv": "prompt\tcompletion\ncafé\tx\nWhere?\ty\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_is_the_same_in_any_unicode_encoding_and_with_any_line_ends(
    tmp_path: Path, name: str, encoding: str, end: str
) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name].replace("\n", end).encode(encoding))
    rows, bad = read(path)
    assert not bad
    assert [(row.question, row.answer) for row in rows] == [("café", "x"), ("Where?", "y")]
    first = 1 if name in ("b.jsonl", "c.json") else 2
    assert [row.line for row in rows] == [first, first + 1]


@pytest.mark.parametrize("name", [*FILES, "e.txt"])
def test_a_file_in_another_encoding_is_refused_and_not_read_in_part(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = FILES.get(name, "Café.\nAutumn.\n")
    path.write_bytes(f"{text.rstrip()}\n\n{text}".encode("cp1252"))
    with pytest.raises(
        InvalidRequest, match=r"is not UTF-8: .* byte \d+ of line [12], .* 2 lines. Save the file as UTF-8"
    ):
        file_source(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
def test_a_file_that_does_not_go_on_as_it_began_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes("prompt,completion\na,b\n".encode("utf-16") + b"\x00")
    with pytest.raises(InvalidRequest, match="begins as UTF-16 and does not go on so"):
        read(path)


def test_files_joined_by_cat_lose_no_row(tmp_path: Path) -> None:
    bom, pair = b"\xef\xbb\xbf", json.dumps(PAIR).encode()
    (tmp_path / "a.jsonl").write_bytes(bom + pair + b"\n" + bom + pair + b"\n")
    (tmp_path / "b.jsonl").write_bytes(bom + pair + bom + pair)
    for name in ("a.jsonl", "b.jsonl"):
        rows, bad = read(tmp_path / name)
        assert (len(rows), bad) == (2, [])
    table = bom + b"prompt,completion\na,b\n"
    (tmp_path / "c.csv").write_bytes(table + table.replace(b"a,b", b"c,d"))
    rows, bad = read(tmp_path / "c.csv")
    assert [(row.question, row.line) for row in rows] == [("a", 2), ("c", 4)]
    assert [str(row) for row in bad] == ["line 3: the header over again, as where files are joined"]
    (tmp_path / "d.csv").write_bytes(table + bom + b"completion,prompt\nd,c\n")
    with pytest.raises(InvalidRequest, match="On line 3 another header begins"):
        read(tmp_path / "d.csv")
    (tmp_path / "e.txt").write_bytes(bom + b"one\n" + bom + b"two\n")
    assert read(tmp_path / "e.txt")[0][0].completion == "one\ntwo"


def test_a_text_says_which_lines_it_could_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_CHARS", 100)
    (tmp_path / "data.txt").write_text(f"one\n{'x' * 250}\ntw\0o\nthree\n")
    rows, bad = read(tmp_path / "data.txt")
    assert [row.completion for row in rows] == ["one\nthree"]
    assert [str(row) for row in bad] == [
        "line 2: longer than 100 characters",
        "line 3: holds a NUL character, as UTF-16 does: save the file as UTF-8",
    ]


def test_a_table_counts_lines_of_the_file_not_records(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion\n"two\nlines",a\nonly one field\n\nb,c\n"d",e,f\n"open,g\n')
    rows, bad = read(path)
    assert [row.line for row in rows] == [2, 6]
    assert [row.line for row in bad] == [4, 7, 8]
    assert "1 fields where the header has 2" in bad[0].reason


def test_an_array_goes_on_after_an_element_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    first, last = json.dumps({"prompt": 'a "]," \\', "completion": "{["}), json.dumps(PAIR)
    path.write_text(f'\n [\n{first},\n\n  {{"prompt": nope}},\n3,\n{last}\n]\n')
    rows, bad = read(path)
    assert [row.line for row in rows] == [3, 7]
    assert rows[0].question == 'a "]," \\'
    assert [(row.line, row.reason[:8]) for row in bad] == [(5, "not JSON"), (6, "not a JS")]
    path.write_text(f"[{first}, {last}")
    assert read(path)[1][0].reason.startswith("the array does not end")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"prompt": "a", "completion": "b"}]\n\n[{"prompt": "c", "completion": "d"}]\n', "line 1, and .* on line 3"),
        (b'[{"prompt": "a", "completion": "b"}],\n{"prompt": "c", "completion": "d"}\n', "',.* follows on line 1"),
        (b'[\n{"prompt": "a",\n"completion": "b"}]}\n]', "the array ends on line 3, and '}.* follows on line 3"),
        (b"[1, 2]\n" + json.dumps(PAIR).encode(), "data.json: the array ends on line 1"),
    ],
)
def test_nothing_that_follows_an_array_is_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    for size in (1, 3, 1 << 16):
        monkeypatch.setattr(json_records, "_CHUNK", size)
        with pytest.raises(InvalidRequest, match=message):
            read(path)
    path.write_bytes(b"\xef\xbb\xbf [" + json.dumps(PAIR).encode() + b"]\n\xef\xbb\xbf \n")
    assert len(read(path)[0]) == 1


def test_an_array_is_read_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"prompt": f'\\"{number}]}},"', "completion": "é\\" * (number % 5 + 1)} for number in range(50)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    whole = read(path)
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr(json_records, "_CHUNK", size)
        assert read(path) == whole
    assert len(whole[0]) == 50
    assert not whole[1]


def test_records_beyond_all_bounds_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_CHARS", 1000)
    monkeypatch.setattr(json_records, "_CHUNK", 100)
    long, short = json.dumps({"prompt": "x" * 5000, "completion": "y"}), json.dumps(PAIR)
    (tmp_path / "a.jsonl").write_text(f"{short}\n{long}\n{short}\n")
    (tmp_path / "b.json").write_text(f"[{short},\n{long},\n{short}]")
    (tmp_path / "c.csv").write_text(f"prompt,completion\na,b\n{'x' * 5000},y\nc,d\n")
    for path in sorted(tmp_path.iterdir()):
        rows, bad = read(path)
        assert [row.line for row in rows][-1] == (4 if path.suffix == ".csv" else 3)
        assert len(rows) == 2
        assert len(bad) == 1


def test_a_text_is_cut_into_passages_at_empty_lines(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}. " + "Some words. " * 40 for number in range(60)]
    path = tmp_path / "book.md"
    path.write_text("\n\n".join(paragraphs))
    rows, bad = read(path)
    assert not bad
    assert 3 <= len(rows) <= 6
    assert " ".join(row.completion for row in rows).split() == " ".join(paragraphs).split()
    assert all(row.completion.startswith("Paragraph") for row in rows)
    assert [row.line for row in rows] == sorted({row.line for row in rows})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.xlsx", b"hello", "none of .jsonl, .json, .csv"),
        ("data.csv", b"", "The table is empty"),
        ("data.csv", b'"prompt"x,completion\na,b\n', "The header is not a record"),
        ("data.csv", b"one,two\na,b\n", "it has 'one', 'two'. Name them with --prompt-column"),
        ("data.csv", b"prompt,completion,completion\na,b,c\n", "'completion' more than once"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        file_source(path)


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,category\na,b\n")
    for columns in (Columns(prompt="body"), Columns(completion="body"), Columns(split="body"), Columns(user="body")):
        with pytest.raises(InvalidRequest, match="no column 'body'; it has 'text', 'category'"):
            file_source(path, columns)


def test_a_file_or_format_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.jsonl cannot be read: No such file"):
        file_source(tmp_path / "nowhere.jsonl")
    with pytest.raises(InvalidRequest, match=r"choose .*, alpaca, "):
        file_source(EXAMPLES / "tickets.jsonl", format="excel")


# --- whatever comes ---------------------------------------------------------------------------------------------------

RELAXED = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
SUFFIXES = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt"])
NAMES = sorted({"role", "content", "weight", "from", "value", "id", "index", "text", "feedback", "interaction_id"})
FIELD_NAMES = (
    "messages prompt completion chosen rejected label score input preferred_output non_preferred_output conversations "
    "instruction output text system user tools interaction feedback interaction_id thumb correction preferred_over "
    "completions id"
)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "user", "up", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.sampled_from(FIELD_NAMES.split()), JSON_VALUES, max_size=6)


@RELAXED
@given(content=st.binary(max_size=300), suffix=SUFFIXES)
def test_no_bytes_break_the_reader(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    try:
        rows, bad = read(path)
    except InvalidRequest:
        return
    assert all(row.line > 0 for row in (*rows, *bad))


@RELAXED
@given(text=st.text(alphabet='[]{}",\\:\n a\x00é', max_size=60), suffix=SUFFIXES)
def test_no_syntax_breaks_the_reader(tmp_path: Path, text: str, suffix: str) -> None:
    test_no_bytes_break_the_reader.hypothesis.inner_test(tmp_path, text.encode(), suffix)


@RELAXED
@given(record=RECORDS | JSON_VALUES, format=st.none() | st.sampled_from(FORMAT_NAMES), plain=st.booleans())
def test_no_record_breaks_a_format(record: Any, format: str | None, plain: bool) -> None:
    source = Source(name="here", open=lambda: iter([(1, record)]), columns=Columns(plain=plain), format=format)
    for row in read(source)[0]:
        assert row.answer.strip()
        assert Row.from_json(json.loads(json.dumps(row.to_json()))).digest() == row.digest()
        row.digest(), row.task_key(), row.same_key(), row.question_key()


def test_every_format_says_what_it_looks_like() -> None:
    for format in FORMATS.values():
        shown = format.looks_like.replace("[…]", "[]").replace("…", '"A"').replace(', "A"]', "]")
        assert format.fits(json.loads(shown).keys(), Columns(graded=format.name == "question")), format.name
