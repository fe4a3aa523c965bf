"""Tokenization of rows equals that of serving."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.prompts.messages import read_conversation
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.read.source import file_source
from graftwork.training.data.row import BadRow, Row
from graftwork.training.data.tokens import (
    IGNORED,
    JudgedTokens,
    LabeledTokens,
    PairTokens,
    Tokenized,
    count_tokens,
    has_special_tokens,
    tokenize,
    tokenize_judged,
    tokenize_pairs,
    tokenize_questions,
)
from tests.adapters.prompts.test_tool_calls import CONVERSATION, QUESTION, TOOLS, call, template_of
from tests.training.conftest import EXAMPLES, chat

EOS = 2


def read(path: Path, columns: Columns | None = None) -> list[Row]:
    """The rows of a file that is all usable."""
    rows = list(file_source(path, columns).rows())
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row for row in rows if isinstance(row, Row)]


def tokenized(
    rows: list[Row], prompts: Prompts, max_length: int = 512, eos: int | None = EOS
) -> Tokenized[LabeledTokens]:
    return tokenize(rows, prompts, max_length=max_length, eos_token_id=eos)


def learned(tokens: LabeledTokens) -> list[int]:
    return [label for label in tokens.labels if label != IGNORED]


def test_what_stands_before_the_answer_is_what_serving_puts_there(prompts: Prompts) -> None:
    data = read(EXAMPLES / "tickets.jsonl")
    rows = tokenized(data, prompts)
    assert len(rows.sequences) == len(data) == 300
    for row, tokens in zip(data, rows.sequences, strict=True):
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
    data = read(write_rows(chat("one", "alpha", "two", "beta")))
    (tokens,) = tokenized(data, prompts).sequences
    assert prompts.decode(learned(tokens), skip_special_tokens=False) == "alpha<|im_end|>beta<|im_end|>"
    second = prompts.chat(data[0].messages[:3])
    assert tokens.input_ids[: len(second)] == second


def test_an_answer_of_weight_zero_is_read_and_not_learned(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    row = chat("one", "alpha", "two", "beta")
    row["messages"][1]["weight"] = 0
    (tokens,) = tokenized(read(write_rows(row)), prompts).sequences
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
    data = read(write_rows(chat("one", "alpha", "two", "beta")))
    sequences = tokenized(data, prompts).sequences
    assert {prompts.decode(learned(tokens)) for tokens in sequences} == {"hm alpha", "hm beta"}
    for tokens, turns in zip(sorted(sequences, key=lambda tokens: len(tokens.input_ids)), (1, 3), strict=True):
        served = prompts.chat(data[0].messages[:turns])
        assert tokens.input_ids[: len(served)] == served
        assert all(label == IGNORED for label in tokens.labels[: len(served)])


def test_a_template_without_end_of_turn_still_teaches_to_stop(
    write_rows: Callable[..., Path], templated: Callable[[str], Prompts]
) -> None:
    prompts = templated("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]")
    (tokens,) = tokenized(read(write_rows(chat("hi", "yes"))), prompts).sequences
    assert tokens.input_ids[-1] == tokens.labels[-1] == EOS


def test_a_template_that_rewrites_the_prompt_once_answered_is_refused_row_by_row(
    write_rows: Callable[..., Path], templated: Callable[[str], Prompts]
) -> None:
    prompts = templated("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    rows = tokenized(read(write_rows(chat("hi", "yes"))), prompts)
    assert not rows.sequences
    assert "another prompt would be learned" in rows.bad[0].reason


def test_an_answer_that_grows_into_the_prompt_is_refused(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    rows = tokenized(read(write_rows(chat("hi", "\n\nyes"), chat("hi", " yes"))), prompts)
    assert [row.line for row in rows.bad] == [1]
    assert "white space" in rows.bad[0].reason


def test_an_answer_that_goes_on_after_its_end_is_refused_and_a_question_is_read_as_it_is_served(
    write_rows: Callable[..., Path], prompts: Prompts
) -> None:
    marked = "the marker is <|im_end|> in ChatML"
    data = read(write_rows(chat("hi", marked), chat("one", marked, "two", "yes"), chat(marked, "yes")))
    rows = tokenized(data, prompts)
    assert [row.line for row in rows.bad] == [1, 2]
    assert "has '<|im_end|>' within it, which the base reads as its end" in rows.bad[0].reason
    (tokens,) = rows.sequences
    assert tokens.input_ids[: -len(learned(tokens))] == prompts.chat(data[2].messages[:-1])
    assert [has_special_tokens(row, prompts) for row in (*data, *read(write_rows(chat("hi", "yes"))))] == [True] * 3 + [
        False
    ]
    (ended,) = tokenized(read(write_rows(chat("hi", "yes<|im_end|>\n"))), prompts).sequences
    assert prompts.decode(learned(ended), skip_special_tokens=False) == "yes<|im_end|>", "nothing is lost of this one"
    worse = Row(messages=data[2].messages, learned=(1,), rejected=marked)
    (bad,) = tokenize_pairs([worse], prompts, max_length=512, eos_token_id=EOS).bad
    assert "within it" in bad.reason
    (plain,) = tokenized([Row(prompt="<|im_start|>user\nhi", completion=" yes")], prompts).sequences
    assert plain.input_ids[:3] == prompts.encode("<|im_start|>user\n")


def test_no_answer_is_learned_that_was_cut_off_whole(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    data = read(write_rows(chat("word " * 100, "yes"), chat("hi", "yes " * 100), chat("hi", "yes")))
    rows = tokenized(data, prompts, max_length=60)
    assert [row.line for row in rows.bad] == [1]
    assert "--max-length" in rows.bad[0].reason
    assert rows.num_cut == 1
    assert rows.longest == 60
    assert all(learned(tokens) for tokens in rows.sequences)


def test_plain_pairs_are_continued_as_completions_are(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    path = write_rows({"prompt": "Once upon", "completion": " a time"}, {"prompt": "Once up", "completion": "on"})
    rows = tokenized(read(path, Columns(plain=True)), prompts)
    (tokens,) = rows.sequences
    prompt = prompts.encode("Once upon")
    assert tokens.input_ids == prompt + prompts.encode(" a time") + [EOS]
    assert tokens.labels == [IGNORED] * len(prompt) + prompts.encode(" a time") + [EOS]
    assert [row.line for row in rows.bad] == [2]


def test_sequences_keep_the_order_of_the_rows(write_rows: Callable[..., Path], prompts: Prompts) -> None:
    rows = [chat(f"question {number}", str(number)) for number in range(30)]
    random.Random(1).shuffle(rows)
    sequences = tokenized(read(write_rows(*rows)), prompts).sequences
    assert [prompts.decode(learned(tokens)) for tokens in sequences] == [row["messages"][1]["content"] for row in rows]


# --- tool calls -------------------------------------------------------------------------------------------------------

#: What stands before a call in the answer. Qwen 3 is prompted before its thoughts, and so writes them, if empty.
FAMILIES = {"qwen2_5": "", "qwen3": "<think>\n\n</think>\n\n", "llama3_1": "", "embedded": ""}


@pytest.fixture(params=FAMILIES)
def family(
    request: pytest.FixtureRequest, templated: Callable[[str], Prompts], prompts: Prompts
) -> tuple[str, Prompts]:
    """The name of a model family, and prompts by its template."""
    name: str = request.param
    if name == "embedded":
        return name, prompts
    return name, templated(for_the_embedded_tokenizer(template_of(name)))


def for_the_embedded_tokenizer(template: str) -> str:
    """A template with the embedded base's end of turn, and without the two line breaks at once which its tokenizer, as
    opposed to Llama's, makes other tokens of where a text follows."""
    return template.replace("<|eot_id|>", "<|im_end|>").replace(r"<|end_header_id|>\n\n", r"<|end_header_id|>\n")


def calls_of(row: Row, prompts: Prompts) -> str:
    """The calls of the last message, as the base writes them."""
    format = prompts.tool_call_format
    functions = [each["function"] for each in row.messages[-1]["tool_calls"]]
    texts = [f["name"] + format.middle + json.dumps(f["arguments"], ensure_ascii=False) for f in functions]
    return format.opening + (format.between or "").join(texts) + format.closing


def test_a_call_is_learned_as_the_model_writes_it_after_what_is_served(
    family: tuple[str, Prompts], write_rows: Callable[..., Path]
) -> None:
    name, prompts = family
    calls = [call("Kraków", "a"), call("Paris", "b")][: 2 if prompts.tool_call_format.between else 1]
    results = [{"role": "tool", "tool_call_id": each["id"], "content": "18 °C"} for each in calls]
    answer = {"role": "assistant", "content": "18 and 20."}
    messages = [{"role": "system", "content": "Be brief."}, QUESTION]
    messages += [{"role": "assistant", "content": None, "tool_calls": calls}, *results, answer]
    (row,) = read(write_rows({"messages": messages, "tools": TOOLS}))
    rows = tokenized([row], prompts, max_length=2048)
    assert not rows.bad

    spans = {}
    for tokens in rows.sequences:
        for start, end in spans_of(tokens):
            spans[prompts.decode(tokens.input_ids[start:end], skip_special_tokens=False)] = tokens.input_ids[:start]
    first = replace(row, messages=row.messages[:3])
    learned = {f"{FAMILIES[name]}{calls_of(first, prompts)}<|im_end|>": 2, f"{FAMILIES[name]}18 and 20.<|im_end|>": -1}
    assert spans == {text: prompts.chat(messages[:end], tools=TOOLS) for text, end in learned.items()}


def spans_of(tokens: LabeledTokens) -> list[tuple[int, int]]:
    """Where tokens with labels stand: begins and ends."""
    has_label = [False, *(label != IGNORED for label in tokens.labels), False]
    edges = [place for place in range(len(has_label) - 1) if has_label[place] != has_label[place + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_pairs_and_judged_answers_and_questions_know_tools(family: tuple[str, Prompts]) -> None:
    name, prompts = family
    paris = {"role": "assistant", "content": "", "tool_calls": [{**call("P"), "function": {**CALLED, "arguments": {}}}]}
    row = Row(messages=(QUESTION, paris), tools=tuple(TOOLS), learned=(1,), rejected="No idea.")
    served = prompts.chat([QUESTION], tools=TOOLS)
    written = f"{FAMILIES[name]}{calls_of(row, prompts)}"
    (pair,) = tokenize_pairs([row], prompts, max_length=2048, eos_token_id=EOS).sequences
    assert pair.prompt_ids == served
    assert prompts.decode(pair.chosen_ids, skip_special_tokens=False) == f"{written}<|im_end|>"
    assert prompts.decode(pair.rejected_ids, skip_special_tokens=False) == f"{FAMILIES[name]}No idea.<|im_end|>"
    (turned,) = tokenize_pairs([row.with_rejected().over(row)], prompts, max_length=2048, eos_token_id=EOS).sequences
    assert (turned.chosen_ids, turned.rejected_ids) == (pair.rejected_ids, pair.chosen_ids)
    judged = replace(row, rejected=None, label=True)
    (one,) = tokenize_judged([judged], prompts, max_length=2048, eos_token_id=EOS).sequences
    assert (one.prompt_ids, one.completion_ids) == (served, pair.chosen_ids)
    (question,) = tokenize_questions([judged], prompts, max_length=2048, eos_token_id=EOS).sequences
    assert (question.prompt, question.answer) == (served, written), "what a reward function compares completions with"
    assert count_tokens(judged, prompts)[0] == len(served)


CALLED = {"name": "weather"}


def test_a_template_with_one_call_an_answer_refuses_two(templated: Callable[[str], Prompts]) -> None:
    prompts = templated(for_the_embedded_tokenizer(template_of("llama3_1")))
    row = Row(messages=tuple(read_conversation(CONVERSATION[1:3])), tools=tuple(TOOLS), learned=(1,), line=7)
    (bad,) = tokenized([row], prompts, max_length=2048).bad
    assert bad.line == 7
    assert "only supports single tool-calls" in bad.reason


# --- preferences, judged answers, texts -------------------------------------------------------------------------------

ASKED = ({"role": "user", "content": "Where is my parcel?"},)


def answered(answer: str, **said: Any) -> Row:
    return Row(messages=(*ASKED, {"role": "assistant", "content": answer}), learned=(1,), line=7, **said)


def test_a_preference_is_two_answers_after_what_is_served(prompts: Prompts) -> None:
    rows = [answered("On its way.", rejected="No idea.")]
    (pair,) = tokenize_pairs(rows, prompts, max_length=512, eos_token_id=EOS).sequences
    assert pair.prompt_ids == prompts.chat(ASKED)
    assert prompts.decode(pair.chosen_ids, skip_special_tokens=False) == "On its way.<|im_end|>"
    assert prompts.decode(pair.rejected_ids, skip_special_tokens=False) == "No idea.<|im_end|>"
    assert len(pair) == len(pair.prompt_ids) + len(pair.chosen_ids)


def test_a_judged_answer_is_one_after_what_is_served(prompts: Prompts) -> None:
    rows = [answered("On its way.", label=False), Row(prompt="Once upon", completion=" a time", label=True)]
    one, two = tokenize_judged(rows, prompts, max_length=512, eos_token_id=EOS).sequences
    assert (one.prompt_ids, one.label) == (prompts.chat(ASKED), False)
    assert prompts.decode(one.completion_ids) == "On its way."
    assert (two.prompt_ids, two.label) == (prompts.encode("Once upon"), True)
    assert two.completion_ids == [*prompts.encode(" a time"), EOS]


def test_what_the_limit_leaves_nothing_of_is_bad_and_what_it_cuts_is_counted(prompts: Prompts) -> None:
    room = len(prompts.chat(ASKED)) + 4
    long = answered("It left on Monday and will be there soon.", rejected="No, it is lost for good, I fear.")
    alike = answered("It left on Monday and will come.", rejected="It left on Monday and is lost.")
    pairs = tokenize_pairs([long, alike], prompts, max_length=room, eos_token_id=EOS)
    assert [row.line for row in pairs.bad] == [7]
    assert "--max-length" in pairs.bad[0].reason
    assert (len(pairs.sequences), pairs.num_cut, pairs.longest) == (1, 1, room)
    judged = [replace(long, rejected=None, label=True)]
    assert tokenize_judged(judged, prompts, max_length=room, eos_token_id=EOS).num_cut == 1
    assert len(tokenize_judged(judged, prompts, max_length=5, eos_token_id=EOS).bad) == 1


def test_the_fields_are_those_that_trl_collates() -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    pair = PairTokens(prompt_ids=[1, 2], chosen_ids=[3], rejected_ids=[4, 5])
    judged = JudgedTokens(prompt_ids=[1, 2], completion_ids=[3], label=True)
    fields = {name: getattr(pair, name) for name in PairTokens.__dataclass_fields__}
    assert DataCollatorForPreference(pad_token_id=0)([fields])["input_ids"].shape == (2, 4)
    fields = {name: getattr(judged, name) for name in JudgedTokens.__dataclass_fields__}
    assert DataCollatorForUnpairedPreference(pad_token_id=0)([fields])["input_ids"].shape == (1, 3)


def test_a_text_goes_on_in_the_next_sequence_and_ends_once(prompts: Prompts) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    rows = tokenized([Row(completion=text, weight=0.5)], prompts, max_length=64)
    assert rows.longest == 64
    assert [id for tokens in rows.sequences for id in tokens.input_ids] == [*prompts.encode(text), EOS]
    assert all(tokens.labels == tokens.input_ids and tokens.weight == 0.5 for tokens in rows.sequences)
    assert not rows.num_cut


def test_weights_go_with_their_rows(prompts: Prompts) -> None:
    rows = [answered("yes", weight=0.25), answered("no")]
    assert [tokens.weight for tokens in tokenized(rows, prompts).sequences] == [0.25, 1.0]
