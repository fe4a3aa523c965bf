"""An engine's answers keep to their grammars, and nobody else notices."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.server.engine.grammars import compiler, processor
from graftwork.server.engine.grammars.grammar import make_grammar
from graftwork.server.engine.loading import load_grammar_tokenizer
from graftwork.server.engine.request import FinishReason
from graftwork.server.engine.sequence import SequenceState
from tests.engine import zoo

EOS = 257

#: The letters of the zoo's tokenizer, by id: every token is a byte.
BYTES = dict(enumerate(sorted(zoo.pre_tokenizers.ByteLevel.alphabet())))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> zoo.BaseInfo:
    return zoo.make_base("llama", tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("home"))


def regex(pattern: str) -> str:
    return make_grammar("regex", pattern)


def text(answer: zoo.Answered) -> str:
    return "".join(BYTES[token] for token in answer.tokens)


def prompt(seed: int, length: int = 12) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(length)]


DRAWN: dict[str, Any] = {"temperature": 1.0, "prompt_logprobs": None, "stop_token_ids": frozenset({EOS})}


def test_an_answer_ends_with_its_grammar_and_needs_no_end_token(base: zoo.BaseInfo) -> None:
    bench = zoo.Bench(base, {})
    bench.add("word", prompt(1), grammar=regex("[a-f]{3}"), max_tokens=20, **DRAWN)
    bench.add("open", prompt(2), grammar=regex("[a-f]{3}[a-z]*"), max_tokens=5, seed=1, **DRAWN)
    bench.add("choice", prompt(3), grammar=make_grammar("choice", '["yes", "no", "\\"\\n"]'), max_tokens=9, **DRAWN)
    bench.add("exact", prompt(4), grammar=regex("abc"), max_tokens=3, **DRAWN)
    bench.add("cut", prompt(4), grammar=regex("abc"), max_tokens=2, **DRAWN)
    answers = bench.run()
    assert re.fullmatch("[a-f]{3}", text(answers["word"]))
    assert answers["word"].finish_reason is FinishReason.STOP
    assert re.fullmatch("[a-f]{3}[a-z]*", text(answers["open"]))
    assert text(answers["choice"]) in ("yes", "no", '"Ċ')
    assert (text(answers["exact"]), answers["exact"].finish_reason) == ("abc", FinishReason.STOP)
    assert (text(answers["cut"]), answers["cut"].finish_reason) == ("ab", FinishReason.LENGTH)
    assert len(answers["exact"].logprobs) == 3, "the model's own, of tokens that it was made to say"


def test_a_grammar_that_may_go_on_ends_where_the_end_token_is_drawn(base: zoo.BaseInfo) -> None:
    bench = zoo.Bench(base, {})
    for index in range(20):
        favoured = {"seed": index, "max_tokens": 60, "logit_bias": {EOS: 8.0}}
        bench.add(str(index), prompt(index), grammar=regex("a+b?"), **favoured, **DRAWN)
    answers = bench.run()
    assert all(re.fullmatch("a+b?", text(answer)) for answer in answers.values())
    assert {answer.finish_reason for answer in answers.values()} == {FinishReason.STOP}


def test_the_grammar_wins_over_what_else_changes_logits(base: zoo.BaseInfo) -> None:
    """Its end is the end, whatever holds end tokens off; inside, biases choose among what is allowed."""
    bench = zoo.Bench(base, {})
    held_off = {**DRAWN, "min_tokens": 10, "max_tokens": 20}
    bench.add("ends", prompt(1), grammar=regex("ab?"), **held_off)
    bench.add("goes on", prompt(1), grammar=regex("a*"), logit_bias={EOS: 100.0}, **held_off)
    never = dict.fromkeys(range(256), -100.0)
    bench.add("biased", prompt(1), grammar=regex("[abc]{5}"), logit_bias=never | {ord("b") - 33: 100.0}, **DRAWN)
    bench.add("repeated", prompt(1), grammar=regex("(abc){3}"), repetition_penalty=10.0, max_tokens=20, **DRAWN)
    bench.add("endless", prompt(1), grammar=regex("ab"), max_tokens=20, temperature=0.0)
    answers = bench.run()
    assert text(answers["ends"]) in ("a", "ab")
    assert text(answers["goes on"]) == "a" * 10
    assert text(answers["biased"]) == "bbbbb"
    assert text(answers["repeated"]) == "abcabcabc"
    assert text(answers["endless"]) == "ab", "without a stop token"
    assert {answer.finish_reason for answer in answers.values()} == {FinishReason.STOP}


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_rows_without_a_grammar_are_what_they_are_alone_to_the_last_bit(base: zoo.BaseInfo, quantize: str) -> None:
    """The same batch twice, once with rows held to grammars: log-probabilities of the others are equal bits."""
    free = {f"free {i}": {"prompt": prompt(i), "temperature": float(i % 2), "seed": i} for i in range(4)}
    held = {f"held {i}": {"prompt": prompt(9 + i), "temperature": 1.0, "seed": i} for i in range(4)}
    grammars = [regex(".{24}"), regex("[a-z]{24}"), regex("[0-9]+[a-z]{24}"), regex("a{24}")]
    told = []
    for with_grammars in (False, True):
        bench = zoo.Bench(base, {}, quantize=quantize)
        for grammar in grammars:
            bench.add(grammar, prompt(50), max_tokens=1, grammar=grammar)
        bench.run()  # compiled: the same steps in both
        for (name, options), (other, more) in zip(free.items(), held.items(), strict=True):
            grammar = grammars[int(other[-1])] if with_grammars else None
            bench.add(name, max_tokens=24, **options)
            bench.add(other, max_tokens=24, **more, **({"grammar": grammar} if grammar else {}))
        told.append(bench.run())
    assert any(told[0][name].tokens != told[1][name].tokens for name in held)
    for name in free:
        assert told[1][name].tokens == told[0][name].tokens
        if quantize == "none":
            assert told[1][name].logprobs == told[0][name].logprobs


def test_preempted_answers_are_the_same(base: zoo.BaseInfo) -> None:
    roomy, tight = zoo.Bench(base, {}), zoo.Bench(base, {}, cache_bytes=90 * 3 * 2 * 2 * 16 * 4)
    pattern = "([a-m]{3}-[0-9]{2},){6}"
    for bench in (roomy, tight):
        for index in range(6):
            options = {"grammar": regex(pattern), "seed": index, "max_tokens": 60, **DRAWN}
            bench.add(str(index), prompt(index, 20), **options)
    expected, answers = roomy.run(), tight.run()
    assert tight.engine.scheduler.num_preemptions > 0
    for name, answer in expected.items():
        assert re.fullmatch(pattern, text(answer))
        assert answers[name].tokens == answer.tokens


class Knows:
    """Proposes what ``answers`` say, or something that the grammar may forbid."""

    def __init__(self, answers: dict[str, list[int]], wrong: float) -> None:
        self.answers, self.wrong, self.rng = answers, wrong, random.Random(0)

    def propose(self, sequences: Sequence[SequenceState]) -> list[list[int]]:
        return [
            [
                self.rng.randrange(258) if self.rng.random() < self.wrong else token
                for token in self.answers[s.request.id][s.num_generated :][: self.rng.randrange(6)]
            ]
            + [7] * self.rng.randrange(2)  # beyond the end, sometimes
            for s in sequences
        ]


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_drafts_change_no_answer(base: zoo.BaseInfo, wrong: float) -> None:
    bench = zoo.Bench(base, {})
    asked = {
        "words": {"grammar": regex("([a-m]{3}-[0-9]{2},){4}"), "seed": 1},
        "open": {"grammar": regex("[a-z]{5}[a-z ]*"), "seed": 2},
        "json": {"grammar": make_grammar("json", '{"type": "array", "items": {"type": "integer"}}'), "seed": 3},
        "free": {"seed": 4},
    }

    def run() -> dict[str, zoo.Answered]:
        for name, options in asked.items():
            bench.add(name, prompt(len(name)), max_tokens=40, **options, **DRAWN)
        return bench.run()

    expected = run()
    steps = bench.engine.num_steps
    bench.engine._proposer = Knows({name: answer.tokens for name, answer in expected.items()}, wrong)
    answers = run()
    assert {name: answer.tokens for name, answer in answers.items()} == {n: a.tokens for n, a in expected.items()}
    assert {n: a.finish_reason for n, a in answers.items()} == {n: a.finish_reason for n, a in expected.items()}
    if wrong < 1:
        assert bench.engine.num_steps - steps < steps


class Slow:
    """In the place of llguidance's matcher: compiles when it is let to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.compiled: list[str] = []
        true = compiler.LLMatcher

        def slow(tokenizer: Any, grammar: str, **options: Any) -> Any:
            self.compiled.append(grammar)
            assert self.go.wait(60)
            return true(tokenizer, grammar, **options)

        monkeypatch.setattr(compiler, "LLMatcher", slow)


def test_others_go_on_while_a_grammar_is_compiled(base: zoo.BaseInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    bench = zoo.Bench(base, {})
    for name in ("held", "too", "aborted"):
        bench.add(name, prompt(1), grammar=regex("abc"), max_tokens=9, **DRAWN)
    assert not bench.engine.has_work, "nothing can be computed yet"
    bench.add("free", prompt(2), max_tokens=12)
    told = []
    while not any(delta.request_id == "free" and delta.done for delta in told):
        told += bench.engine.step()
    assert {delta.request_id for delta in told} == {"free"}
    bench.engine.abort("aborted")
    assert len(bench.engine.scheduler) == 2
    slow.go.set()
    answers = bench.run()
    assert {name: text(answer) for name, answer in answers.items()} == {"held": "abc", "too": "abc"}
    bench.add("later", prompt(3), grammar=regex("abc"), max_tokens=9, **DRAWN)
    assert bench.engine.has_work, "it is kept"
    assert text(bench.run()["later"]) == "abc"
    assert slow.compiled == [regex("abc")]


def test_whoever_waits_for_a_grammar_can_all_go(base: zoo.BaseInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    arrived = threading.Event()
    bench = zoo.Bench(base, {})
    bench.engine._grammars._on_arrival = arrived.set  # type: ignore[union-attr]
    bench.add("gone", prompt(1), grammar=regex("abc"), max_tokens=9)
    bench.engine.abort("gone")
    slow.go.set()
    assert arrived.wait(60)
    assert bench.engine.step() == []
    assert not bench.engine.has_work


def test_only_the_grammars_that_were_used_last_are_kept(base: zoo.BaseInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MAX_KEPT", 2)
    bench = zoo.Bench(base, {})
    for pattern in ("a", "b", "a", "c", "a"):
        bench.add(pattern, prompt(1), grammar=regex(pattern), max_tokens=9)
        assert text(bench.run()[pattern]) == pattern
    assert list(bench.engine._grammars._kept) == [regex("c"), regex("a")]  # type: ignore[union-attr]


def test_what_cannot_be_compiled_or_followed_ends_with_an_error(base: zoo.BaseInfo) -> None:
    """None of this passes the check that the server makes before."""
    bench = zoo.Bench(base, {})
    bench.add("broken", prompt(1), grammar="no grammar", max_tokens=9)
    wide = json.dumps({"type": "object", "properties": {f"p{index}": {"type": "null"} for index in range(600)}})
    bench.add("too wide", prompt(1), grammar=make_grammar("json", wide), max_tokens=9)
    bench.add("fine", prompt(1), grammar=regex("abc"), max_tokens=9)
    answers = bench.run()
    assert "could not be held to its format any longer: is too large" in str(answers["too wide"].error)
    assert "could not be compiled" in str(answers["broken"].error)
    assert answers["broken"].finish_reason is FinishReason.ERROR
    assert text(answers["fine"]) == "abc"
    unable = zoo.Bench(base, {})
    unable.engine._grammars = None
    unable.add("refused", prompt(1), grammar=regex("abc"))
    assert "tokenizer" in str(unable.run()["refused"].error)


def test_a_tokenizer_that_grammars_cannot_use_is_no_obstacle(base: zoo.BaseInfo, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "of another kind"}}')
    assert load_grammar_tokenizer(replace(base, path=str(tmp_path))) is None


def test_a_matcher_in_error_never_ends_an_answer_in_silence(base: zoo.BaseInfo) -> None:
    bench = zoo.Bench(base, {})
    bench.add("r", prompt(1), grammar=regex("a{40}"), max_tokens=50, **DRAWN)
    deadline = time.monotonic() + 60
    while (sequence := bench.engine.scheduler.get("r")) is None or sequence.num_generated < 3:
        assert time.monotonic() < deadline
        bench.engine.step()
    assert sequence.grammar is not None
    sequence.grammar._matcher.consume_token(0)  # what the grammar forbids
    answer = bench.run()["r"]
    assert answer.finish_reason is FinishReason.ERROR
    assert "could not be held to its format" in str(answer.error)


def test_json_of_bytes(base: zoo.BaseInfo, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", None]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    bench = zoo.Bench(base, {})
    for index in range(8):
        grammar = make_grammar("json", json.dumps(schema))
        bench.add(str(index), prompt(index), grammar=grammar, seed=index, max_tokens=200, **DRAWN)
    for answer in bench.run().values():
        value = json.loads(bytes(ord(BYTES[t]) if BYTES[t] < "\u0100" else ord(BYTES[t]) - 256 for t in answer.tokens))
        assert value.keys() == {"a", "b"}


@pytest.mark.parametrize("wider", [-1, 0, 3])
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("way", ["_leave_on_cpu", "_leave_on_device"])
def test_a_row_keeps_the_logits_of_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, way: str, few: bool, wider: int
) -> None:
    """Whether the model has a few logits more or less than its tokenizer has tokens."""
    monkeypatch.setattr(processor, "_leave_on_cpu", getattr(processor, way))
    logits = torch.randn(2, 5000 + wider)
    before = logits.clone()
    allowed = torch.rand(5000) < (0.01 if few else 0.5)
    processor._leave(logits[1], allowed.numpy())
    kept = torch.zeros(5000 + wider, dtype=torch.bool)
    kept[: len(allowed)] = allowed[: len(kept)]
    assert torch.equal(logits[0], before[0])
    assert torch.equal(logits[1], torch.where(kept, before[1], -torch.inf))
    if few:
        logits[1] = -torch.inf
        processor._leave(logits[1], allowed.numpy())
        assert torch.equal(logits[1], torch.where(kept, 0.0, -torch.inf)), "what others forbade is all there is"
