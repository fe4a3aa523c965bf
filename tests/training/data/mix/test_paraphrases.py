"""The filters of paraphrases: each check with positive and negative examples, and comparison with other rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from graftwork.training.data.mix.paraphrases import (
    REJECTION_REASONS,
    Augmentation,
    RejectionReason,
    Wording,
    accept_wordings,
    can_be_reworded,
    clean_wording,
    rejection_of,
    reworded,
)
from graftwork.training.data.row import Message, Row


def row(question: str, answer: str = "a", *, before: Sequence[Message] = (), **fields: object) -> Row:
    messages = (*before, {"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Row(messages=messages, learned=(len(messages) - 1,), **fields)  # type: ignore[arg-type]


CALL = {"id": "a", "type": "function", "function": {"name": "why", "arguments": {"what": "card declined"}}}


@pytest.mark.parametrize(
    ("question", "text", "reason"),
    [
        ("How do I return something?", "", "cut"),
        ("How do I return something?", "   ", "cut"),
        ("How do I close my account?", "Sure, how do I close my account?", "answer"),
        ("My card was stolen.", "I'm sorry that my card was stolen.", "answer"),
        ("My card was stolen today.", "In other words, somebody has stolen my card today.", "answer"),
        ("My card was stolen today.", "Question: was my card stolen today?", "answer"),
        ("My card was stolen today.", "My card was stolen today.<|im_end|>", "answer"),
        ("My card was stolen today.", "My card was stolen.\nIt was today.", "answer"),
        ("Here is my new card, is it active?", "Here is my new card. Has it been made active?", None),
        ("How do I close my account?", "how do I close MY account", "copy"),
        ("Can I add a person to my new account now?", "Can I add a person to my new account?", "copy"),
        ("What do I have to do to close my account?", "How can I close my account?", None),
        ("Why has my card payment been declined by the shop?", "Card declined?", "length"),
        ("Was my card declined?", "Was it that my card was declined, and is it so that it was?", "length"),
        ("Why was my card declined?", "Why was my parcel opened?", "far"),
        ("Why was my card declined?", "For what reason was my card declined yesterday by machines?", "far"),
        ("Why was my card declined?", "What is it that my card was declined for?", None),
        ("I was given 20 instead of 100 dollars", "It was 100 dollars, instead I was given 30", "lost"),
        ("I was given 20 instead of 100 dollars", "It was 100 dollars, instead I was given 20", None),
        ("Was my payment to [EMAIL] declined?", "Has my payment to the email been declined?", "lost"),
        ("Was my payment to [EMAIL] declined?", "My payment to [EMAIL], has it been declined?", None),
        ("Is https://bank.example/in the right page?", "Is the page https://bank.example/out right?", "lost"),
        ("Why does the ATM keep my card?", "Why is my card kept by machines?", "far"),
        ("The ATM took my card yesterday evening", "Yesterday evening the machine took my card", "lost"),
        ('What does "top up" mean on my bill?', "On my bill, what does topping up mean?", "lost"),
        (
            'What does "top up" mean on my bill?',
            'On my bill, what is the meaning of "top up", what does it mean?',
            None,
        ),
        ("Was my card payment reverted?", "The card payment of mine was reverted.", "turned"),
        ("Why was my transfer made?", "Why wasn't the transfer of mine made?", "turned"),
        ("I need a new PIN number.", "What do I need a new PIN number for?", "turned"),
        ("What is the fee for my account", "The fee of it is my account.", "turned"),
        ("stolen phone, what should i do", "What should I do about a stolen phone?", None),
        ("Did the transfer not go to my friend?", "To my friend did the transfer go?", "turned"),
        ("Do you accept cash and cheques?", "Can I accept cheques and cash?", "speaker"),
        ("How do I receive a refund for my item?", "How can a refund for your item be received?", "speaker"),
        ("Why do you need so much information from me?", "Why do I need so much information from you?", "speaker"),
        ("Is it possible to cancel a transaction?", "Can I cancel a transaction, is it possible?", None),
        ("Can somebody in the US order a card?", "In the US, can a card be ordered by somebody?", None),
        ("今日カードが届きませんでした", "カードが今日届きませんでした", None),
    ],
)
def test_a_wording_passes_all_checks_or_fails_by_its_reason(
    question: str, text: str, reason: RejectionReason | None
) -> None:
    assert rejection_of(question, Wording(text=text)) == reason


def test_what_did_not_come_to_its_end_is_no_wording() -> None:
    text = "What do I have to do to close my account?"
    assert rejection_of("How can I close my account?", Wording(text=text)) is None
    assert rejection_of("How can I close my account?", Wording(text=text, ended=False)) == "cut"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(' "Where is it?" ', "Where is it?"), ("“Where?”", "Where?"), ('"One" or "two"', '"One" or "two"'), ('"', '"')],
)
def test_quotes_around_all_of_it_are_taken_away(text: str, expected: str) -> None:
    assert clean_wording(text) == expected


OPERATOR = {"role": "system", "content": "Sort it, in one word."}


@pytest.mark.parametrize(
    ("given", "able"),
    [
        (row("Why was my card declined?"), True),
        (row("Why was my card declined?", before=[OPERATOR]), True),
        (row("Hello there"), False),
        (row("word " * 61), False),
        (
            row(
                "And why?  Tell me now",
                before=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            ),
            False,
        ),
        (row("Why was my card declined?", label=True), False),
        (row("Why was my card declined?").with_answer("", [CALL]), False),
        (Row(prompt="Why was my card declined?", completion="a"), False),
        (Row(completion="A text of several words."), False),
    ],
)
def test_single_questions_can_be_reworded(given: Row, able: bool) -> None:
    assert can_be_reworded(given) is able


def test_only_the_question_is_changed() -> None:
    given = row("Why?", "because", before=[OPERATOR], weight=0.5, interactions=("int-1",), group="g")
    changed = reworded(given, "For what reason?")
    assert [turn["content"] for turn in changed.messages] == ["Sort it, in one word.", "For what reason?", "because"]
    assert (changed.weight, changed.interactions, changed.group, changed.learned) == (0.5, ("int-1",), "g", (2,))


QUESTION = row("How can I close my account?", "close", interactions=("int-1",))
OTHERS = (row("Where is the card that I ordered?", "card"), row("Hi", "greeting"))


def told(*texts: str, held_out: Sequence[Row] = (), others: Sequence[Row] = OTHERS) -> Augmentation:
    able = [other for other in others if can_be_reworded(other)]
    wordings = [[Wording(text=text) for text in texts], *([] for _ in able)]
    return accept_wordings([QUESTION, *others], wordings, held_out=held_out)


def test_wordings_become_rows_with_the_same_answer() -> None:
    found = told("What do I have to do to close my account?", "To close my account, what can I do?", "no")
    assert [(row.question, row.answer) for row in found.rows] == [
        ("What do I have to do to close my account?", "close"),
        ("To close my account, what can I do?", "close"),
    ]
    assert {row.interactions for row in found.rows} == {("int-1",)}
    assert found.left_out == {"answer": 1}
    assert list(found.describe()) == [
        "Wrote 3 other wordings of 2 questions, kept 2.",
        "Other wordings left out: 1 answering instead of asking.",
        "1 of the rows were left alone: other wordings are for single questions of 3 to 60 words.",
    ]


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"held_out": [row("what do I have to do, to close my account", "close")]}, "held_out"),
        ({"held_out": [row("What do I have to do to close my accounts?", "close")]}, "held_out"),
        ({"others": [row("What do I have to do to close my account", "other")]}, "contradicting"),
        ({"others": [row("What do I have to do to close my accounts?", "other")]}, "contradicting"),
        ({"others": [row("What do I have to do to close my accounts?", "close")]}, "said"),
        ({"held_out": [row("Which papers do you want for a loan?", "close")]}, None),
    ],
)
def test_nothing_is_kept_that_is_near_to_what_it_must_not_be(
    beside: dict[str, Sequence[Row]], reason: RejectionReason | None
) -> None:
    found = told("What do I have to do to close my account?", **beside)
    assert found.left_out == ({} if reason is None else {reason: 1})
    assert len(found.rows) == (reason is None)


def test_of_wordings_that_are_near_the_first_is_kept() -> None:
    found = told(
        "What do I have to do to close my account?",
        "What do I have to do, to close my account?",
        "What do I have to do to close my accounts?",
    )
    assert [row.question for row in found.rows] == ["What do I have to do to close my account?"]
    assert found.left_out == {"said": 2}


def test_every_reason_has_words() -> None:
    everything = Augmentation(
        rows=(), num_questions=1, num_left_alone=0, num_wordings=1100, left_out=dict.fromkeys(REJECTION_REASONS, 100)
    )
    head, reasons = everything.describe()
    assert head == "Wrote 1,100 other wordings of 1 questions, kept 0."
    assert all(f"100 {words}" in reasons for words in REJECTION_REASONS.values())
