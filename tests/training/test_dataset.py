from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.prompts import Prompts
from graftwork.training.dataset import IGNORED, Columns, Dataset, Row, TokenizedRows, Tokens, read, tokenize

from .conftest import EXAMPLES, chat

EOS = 2
PAIR = {"prompt": "Where is my parcel?", "completion": "delivery"}


def tokenized(rows: tuple[Row, ...], prompts: Prompts, max_length: int = 512, eos: int | None = EOS) -> TokenizedRows:
    return tokenize(rows, prompts, max_length=max_length, eos_token_id=eos)


def learned(tokens: Tokens) -> list[int]:
    return [label for label in tokens.labels if label != IGNORED]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_messages_pairs_and_a_table_make_the_same_rows_and_the_same_digest(
    write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    question, answer = 'It says "lost", since\nyesterday', "delivery"
    table = tmp_path / "data.csv"
    table.write_text('id,text,category\r\n7,"It says ""lost"", since\nyesterday",delivery\r\n', encoding="utf-8-sig")
    found = [
        read(write_rows(chat(question, answer), name="a.jsonl"), Columns()),
        read(write_rows({"prompt": question, "completion": answer}, name="b.jsonl"), Columns()),
        read(write_rows({"prompt": [{"role": "user", "content": question}], "completion": answer}), Columns()),
        read(table, Columns(prompt="text", completion="category")),
    ]
    assert {data.rows[0].messages[0]["content"] for data in found} == {question}
    assert len({data.digest for data in found}) == 1
    assert found[0].digest.startswith("sha256:")


def test_the_digest_names_the_set_of_rows(write_rows: Callable[..., Path]) -> None:
    rows = [chat(f"question {number}", "yes") for number in range(20)]
    digest = read(write_rows(*rows), Columns()).digest
    assert read(write_rows(*reversed(rows)), Columns()).digest == digest
    assert read(write_rows(*rows[1:]), Columns()).digest != digest
    assert read(write_rows(*rows[1:], chat("question 0", "no")), Columns()).digest != digest


def test_every_bad_row_is_reported_with_its_line_and_the_others_are_kept(write_rows: Callable[..., Path]) -> None:
    path = write_rows(
        PAIR,
        "{broken",
        "",
        [1, 2],
        {"messages": []},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"messages": ["hi"]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "  "}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a", "weight": 0}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a", "weight": 0.5}]},
        {**chat("hi", "yes"), "tools": []},
        {"prompt": "hi"},
        {"prompt": "", "completion": "yes"},
        {"prompt": "hi", "completion": 7},
        chat("hi", "yes"),
    )
    data = read(path, Columns())
    assert [row.line for row in data.rows] == [1, 15]
    assert [row.line for row in data.bad] == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    reasons = {row.line: row.reason for row in data.bad}
    assert "not JSON" in reasons[2]
    assert "last message" in reasons[6]
    assert "tools" in reasons[11]
    assert "'completion'" in reasons[12]


def test_a_line_that_is_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(PAIR).encode() + b'\n{"prompt": "caf\xe9", "completion": "x"}\r\n')
    data = read(path, Columns())
    assert len(data.rows) == 1
    assert str(data.bad[0]) == "line 2: not UTF-8 at byte 16"


def test_a_table_counts_lines_of_the_file_not_records(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion\n"two\nlines",a\nonly one field\n\nb,c\n"d",e,f\n"open,g\n')
    data = read(path, Columns())
    assert [row.line for row in data.rows] == [2, 6]
    assert [row.line for row in data.bad] == [4, 7, 8]
    assert "1 fields where the header has 2" in data.bad[0].reason


def test_tabs_separate_in_a_tsv(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text("prompt\tcompletion\na, b\tc\n")
    assert read(path, Columns()).rows[0].messages[0]["content"] == "a, b"


def test_a_template_makes_the_prompt_of_several_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("subject,body,label\nLate,{no} parcel,delivery\n")
    columns = Columns(completion="label", template="{subject} {{!}}: {body}", system="Sort.")
    messages = read(path, columns).rows[0].messages
    assert [message["content"] for message in messages] == ["Sort.", "Late {!}: {no} parcel", "delivery"]


@pytest.mark.parametrize("template", ["no column", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{a", "}"])
def test_a_template_may_only_name_columns(template: str) -> None:
    with pytest.raises(ConfigurationError, match="template"):
        Columns(template=template)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.txt", b"hello", "neither .jsonl nor .csv"),
        ("data.jsonl", b"", "holds no rows"),
        ("data.jsonl", b"\n \n", "holds no rows"),
        ("data.jsonl", b'[{"prompt": "a", "completion": "b"}]', "one JSON object per line"),
        ("data.jsonl", b"a\nb\nc\nd\n", "no usable row .line 1.*and 1 more"),
        ("data.csv", b"", "one column 'prompt'; it has nothing"),
        ("data.csv", b'"prompt"x,completion\na,b\n', "The header is not a record"),
        ("data.csv", b"text,category\na,b\n", "--prompt-column"),
        ("data.csv", b"prompt,completion,completion\na,b,c\n", "one column 'completion'"),
        ("data.csv", b"prompt,completion\n\xff,b\n", "Line 2 is not UTF-8"),
        ("data.csv", b"prompt,completion\n", "holds no rows"),
    ],
)
def test_a_file_that_holds_nothing_to_learn_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        read(path, Columns())


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.jsonl cannot be read: No such file"):
        read(tmp_path / "nowhere.jsonl", Columns())


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".jsonl", ".csv", ".tsv"]))
def test_no_bytes_break_the_reader(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest):
        read(path, Columns())


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "weight"]), inner),
    max_leaves=8,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=JSON_VALUES)
def test_no_json_breaks_reader_or_tokenizer(write_rows: Callable[..., Path], prompts: Prompts, value: Any) -> None:
    assistant = {"role": "assistant", "content": value}
    odd = [{"messages": value}, {"messages": [{"role": "user", "content": value}, assistant]}]
    path = write_rows(chat("hi", "yes"), *odd, {"prompt": value, "completion": value}, json.dumps(value))
    data = read(path, Columns())
    rows = tokenized(data.rows, prompts)
    assert len(rows.sequences) >= 1
    assert len(rows.sequences) + len(rows.bad) + len(data.bad) == 5


# -- splitting ---------------------------------------------------------------------------------------------------------


def _data(*rows: dict[str, Any], write: Callable[..., Path]) -> Dataset:
    return read(write(*rows), Columns())


def test_a_row_stays_on_its_side_when_rows_are_added(write_rows: Callable[..., Path]) -> None:
    rows = [chat(f"question {number}", "yes") for number in range(400)]
    few, many = _data(*rows[:200], write=write_rows), _data(*rows, write=write_rows)
    held_of_few = {row.digest() for row in few.split(0.2)[1]}
    held_of_many = {row.digest() for row in many.split(0.2)[1]}
    assert held_of_few == held_of_many & {row.digest() for row in few.rows}
    assert 20 < len(held_of_few) < 60
    wider = {row.digest() for row in few.split(0.4)[1]}
    assert held_of_few < wider


def test_a_question_is_never_on_both_sides(write_rows: Callable[..., Path]) -> None:
    rows = [chat(f"question {number}", answer) for number in range(50) for answer in ("yes", "no")]
    train, held = _data(*rows, write=write_rows).split(0.3)
    assert train
    assert held
    assert not {row.question_digest() for row in train} & {row.question_digest() for row in held}


def test_without_validation_all_rows_are_trained_on(write_rows: Callable[..., Path]) -> None:
    train, held = _data(*[chat(f"{number}", "yes") for number in range(50)], write=write_rows).split(0.0)
    assert (len(train), len(held)) == (50, 0)


# -- token ids ---------------------------------------------------------------------------------------------------------


def test_what_stands_before_the_answer_is_what_serving_puts_there(prompts: Prompts) -> None:
    data = read(EXAMPLES / "tickets.jsonl", Columns())
    rows = tokenized(data.rows, prompts)
    assert len(rows.sequences) == len(data.rows) == 300
    for row, tokens in zip(data.rows, rows.sequences, strict=True):
        served = prompts.chat(row.messages[:-1])
        assert tokens.input_ids[: len(served)] == served
        assert tokens.labels[: len(served)] == [IGNORED] * len(served)
        answer = tokens.input_ids[len(served) :]
        assert tokens.labels[len(served) :] == answer
        assert prompts.decode(answer) == row.messages[-1]["content"]
        assert answer[-1] in prompts.eos_token_ids


def test_every_answer_of_a_conversation_is_learned_in_its_place(
    write_rows: Callable[..., Path], prompts: Prompts
) -> None:
    data = _data(chat("one", "alpha", "two", "beta"), write=write_rows)
    (tokens,) = tokenized(data.rows, prompts).sequences
    assert prompts.decode(learned(tokens), skip_special_tokens=False) == "alpha<|im_end|>beta<|im_end|>"
    second = prompts.chat(data.rows[0].messages[:3])
    assert tokens.input_ids[: len(second)] == second


def test_an_answer_of_weight_zero_is_read_and_not_learned(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    row = chat("one", "alpha", "two", "beta")
    row["messages"][1]["weight"] = 0
    (tokens,) = tokenized(_data(row, write=write_rows).rows, prompts).sequences
    assert prompts.decode(learned(tokens)) == "beta"
    assert "alpha" in prompts.decode(tokens.input_ids)


THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}<|im_start|>assistant\nhm {{ m.content }}"
    "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_answer_that_looks_different_in_the_past_becomes_a_sequence_of_its_own(
    write_rows: Callable[..., Path], templated: Callable[[str], Prompts]
) -> None:
    prompts = templated(THINKING)
    data = _data(chat("one", "alpha", "two", "beta"), write=write_rows)
    sequences = tokenized(data.rows, prompts).sequences
    assert {prompts.decode(learned(tokens)) for tokens in sequences} == {"hm alpha", "hm beta"}
    for tokens, turns in zip(sorted(sequences, key=lambda tokens: len(tokens.input_ids)), (1, 3), strict=True):
        served = prompts.chat(data.rows[0].messages[:turns])
        assert tokens.input_ids[: len(served)] == served
        assert all(label == IGNORED for label in tokens.labels[: len(served)])


def test_a_template_without_end_of_turn_still_teaches_to_stop(
    write_rows: Callable[..., Path], templated: Callable[[str], Prompts]
) -> None:
    prompts = templated("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]")
    (tokens,) = tokenized(_data(chat("hi", "yes"), write=write_rows).rows, prompts).sequences
    assert tokens.input_ids[-1] == tokens.labels[-1] == EOS


def test_a_template_that_rewrites_the_prompt_once_answered_is_refused_row_by_row(
    write_rows: Callable[..., Path], templated: Callable[[str], Prompts]
) -> None:
    prompts = templated("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    rows = tokenized(_data(chat("hi", "yes"), write=write_rows).rows, prompts)
    assert not rows.sequences
    assert "another prompt would be learned" in rows.bad[0].reason


def test_an_answer_that_grows_into_the_prompt_is_refused(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    rows = tokenized(_data(chat("hi", "\n\nyes"), chat("hi", " yes"), write=write_rows).rows, prompts)
    assert [row.line for row in rows.bad] == [1]
    assert "white space" in rows.bad[0].reason


def test_a_role_the_base_does_not_know_is_a_bad_row(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    row = {"messages": [{"role": "robot", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    rows = tokenized(_data(row, chat("hi", "yes"), write=write_rows).rows, prompts)
    assert len(rows.sequences) == 1
    assert "messages[0].role" in rows.bad[0].reason


def test_no_answer_is_learned_that_was_cut_off_whole(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    data = _data(chat("word " * 100, "yes"), chat("hi", "yes " * 100), chat("hi", "yes"), write=write_rows)
    rows = tokenized(data.rows, prompts, max_length=60)
    assert [row.line for row in rows.bad] == [1]
    assert "--max-length" in rows.bad[0].reason
    assert rows.num_cut == 1
    assert rows.longest == 60
    assert all(learned(tokens) for tokens in rows.sequences)


def test_plain_pairs_are_continued_as_completions_are(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    path = write_rows({"prompt": "Once upon", "completion": " a time"}, {"prompt": "Once up", "completion": "on"})
    rows = tokenized(read(path, Columns(plain=True)).rows, prompts)
    (tokens,) = rows.sequences
    prompt = prompts.encode("Once upon")
    assert tokens.input_ids == prompt + prompts.encode(" a time") + [EOS]
    assert tokens.labels == [IGNORED] * len(prompt) + prompts.encode(" a time") + [EOS]
    assert [row.line for row in rows.bad] == [2]


def test_plain_takes_no_conversation_and_no_system_message(write_rows: Callable[..., Path]) -> None:
    with pytest.raises(InvalidRequest, match="--plain"):
        read(write_rows(chat("hi", "yes")), Columns(plain=True))
    with pytest.raises(ConfigurationError, match="--plain"):
        Columns(plain=True, system="Sort.")


def test_sequences_keep_the_order_of_the_rows(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    rows = [chat(f"question {number}", str(number)) for number in range(30)]
    random.Random(1).shuffle(rows)
    sequences = tokenized(_data(*rows, write=write_rows).rows, prompts).sequences
    assert [prompts.decode(learned(tokens)) for tokens in sequences] == [row["messages"][1]["content"] for row in rows]
