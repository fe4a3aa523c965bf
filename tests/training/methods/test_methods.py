"""Each training method on a tiny base: it learns its task, and known pitfalls of TRL are avoided."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import safetensors.torch
import torch

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.errors import ConfigurationError, GraftworkError
from graftwork.adapters.learning.methods import METHOD_TRAITS, TrainingMethod
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.config import TrainConfig
from graftwork.training.data.row import Row
from graftwork.training.data.tokens import (
    IGNORED,
    TOKENIZE,
    JudgedTokens,
    LabeledTokens,
    PairTokens,
)
from graftwork.training.methods import factory, kto, reference_free
from graftwork.training.methods.rows import rows_for_method
from graftwork.training.methods.samplers import LengthGroupedSampler
from graftwork.training.model import adapter
from graftwork.training.run import checkpoints, rehearsal
from graftwork.training.run import checkpoints as checkpoints_module
from graftwork.training.run import trainer as trainer_module
from graftwork.training.run.progress import RunMetrics, TrainingStep

LABELS = ("delivery", "pause", "cancel")


def row(number: int, answer: str | None = None, **fields: Any) -> Row:
    label = LABELS[number % 3]
    turns = (
        {"role": "user", "content": f"Ticket {number} about {label}"},
        {"role": "assistant", "content": answer or label},
    )
    return Row(messages=turns, learned=(1,), **fields)


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(rank=4, alpha=8, learning_rate=1e-2, epochs=3, batch_size=8, precision="float32")


@pytest.fixture(scope="session")
def token_ids(tiny_base: BaseInfo) -> Callable[..., Any]:
    prompts = Prompts(Path(tiny_base.path))

    def make(rows: Sequence[Row], method: TrainingMethod) -> Any:
        how = TOKENIZE[METHOD_TRAITS[method].learns_from]
        return how(rows_for_method(rows, method).rows, prompts, max_length=128, eos_token_id=2).sequences

    return make


def run(
    base: BaseInfo, rows: Any, config: TrainConfig, folder: Path, **more: Any
) -> tuple[RunMetrics, dict[str, torch.Tensor]]:
    folder.mkdir(exist_ok=True)
    metrics = trainer_module.train(base, rows, more.pop("validation", ()), config, folder, lambda step: None, **more)
    return metrics, safetensors.torch.load_file(folder / "adapter_model.safetensors")


def score(base: BaseInfo, folder: Path | None, prompt: list[int], answer: list[int]) -> float:
    """Log probability of the answer."""
    model = load_model(base, dtype="float32", device="cpu")
    if folder is not None:
        model = peft.PeftModel.from_pretrained(model, str(folder))
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return float(sum(logits[place, token] for place, token in zip(places, answer, strict=True)))


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo"])
def test_the_better_answer_is_preferred_more_than_before(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path, method: TrainingMethod
) -> None:
    pairs = token_ids([row(n, "refund", rejected="invoice", corrected=True) for n in range(16)], method)
    assert isinstance(pairs[0], PairTokens)
    metrics, _ = run(tiny_base, pairs, dataclasses.replace(config, method=method), tmp_path / "out")
    assert metrics.last_loss < metrics.first_loss

    def margin(folder: Path | None) -> float:
        better, worse = (
            score(tiny_base, folder, pairs[0].prompt_ids, ids) for ids in (pairs[0].chosen_ids, pairs[0].rejected_ids)
        )
        return better - worse

    assert margin(tmp_path / "out") > margin(None) + 1
    # The share of supervised learning keeps the better answer likely in itself, not only beside the worse one.
    assert score(tiny_base, tmp_path / "out", pairs[0].prompt_ids, pairs[0].chosen_ids) > score(
        tiny_base, None, pairs[0].prompt_ids, pairs[0].chosen_ids
    )


def test_kto_raises_what_was_liked_and_lowers_what_was_not(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path
) -> None:
    judged = token_ids([row(n, ("refund", "invoice")[n % 2], label=n % 2 == 0) for n in range(16)], "kto")
    run(tiny_base, judged, dataclasses.replace(config, method="kto"), tmp_path / "out")
    change = {
        example.label: score(tiny_base, tmp_path / "out", example.prompt_ids, example.completion_ids)
        - score(tiny_base, None, example.prompt_ids, example.completion_ids)
        for example in judged[:2]
    }
    assert change[True] > 0 > change[False]


def test_kto_reads_labels_mixed(
    tiny_base: BaseInfo, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL reads rows in order for KTO: rows that come liked ones first must not stay so."""
    read: list[list[bool]] = []

    class Watched(kto.DataCollatorForUnpairedPreference):
        def torch_call(self, examples: Any) -> Any:
            read.append([example["label"] for example in examples])
            return super().torch_call(examples)

    monkeypatch.setattr(kto, "DataCollatorForUnpairedPreference", Watched)
    monkeypatch.setattr(rehearsal, "expected_seconds", lambda trainer, num_steps: None)  # which reads some, too
    rows = [JudgedTokens(prompt_ids=[n], completion_ids=[100 + n], label=n < 16) for n in range(32)]
    run(tiny_base, rows, dataclasses.replace(config, method="kto", epochs=1), tmp_path / "out")
    assert sum(map(len, read)) == len(rows)
    assert [set(labels) for labels in read[:2]] == [{True, False}] * 2


def test_kto_pairs_each_question_with_a_neighbours_answer(config: TrainConfig) -> None:
    rows = [JudgedTokens(prompt_ids=[n], completion_ids=[100 + n], label=n % 2 == 0) for n in range(32)]
    table = factory._table(rows, dataclasses.replace(config, method="kto"), weighted=True)
    assert table["KL_completion_ids"] == [[131], *([100 + n] for n in range(31))]


@pytest.mark.parametrize("method", ["kto", "orpo", "simpo", "reward_model"])
def test_the_result_is_the_same_however_a_batch_is_split(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path, method: TrainingMethod
) -> None:
    """One long row makes micro-batches small; the last batch of an epoch, of 5 rows, is split unevenly."""
    answers = ("refund", "invoice, please, as soon as you can")
    judged = method == "kto"
    rows = token_ids(
        [
            row(n, answers[n % 2], **({"label": n % 3 == 0} if judged else {"rejected": answers[1 - n % 2]}))
            for n in range(21)
        ],
        method,
    )
    longest = max(map(len, rows)) * (1 if judged else 2)
    config = dataclasses.replace(config, method=method, epochs=2, batch_size=8, learning_rate=1e-3)

    def of(micro: int) -> tuple[RunMetrics, dict[str, torch.Tensor]]:
        limited = dataclasses.replace(config, micro_batch_tokens=micro * longest)
        return run(tiny_base, rows, limited, tmp_path / f"micro-{micro}", validation=rows[:5])

    whole, weights = of(8)
    for micro in (1, 2, 4):
        metrics, found = of(micro)
        for name in ("first_loss", "last_loss", "base_validation_loss", "validation_loss"):
            assert getattr(metrics, name) == pytest.approx(getattr(whole, name), rel=1e-5), (micro, name)
        # Adam divides by gradients that are all but nothing: a step of 1e-3 shows rounding.
        assert all(torch.allclose(found[name], weights[name], atol=3e-5) for name in weights), micro


def test_the_loss_of_kto_is_that_of_the_paper(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path
) -> None:
    judged = token_ids([row(n, ("refund", "invoice")[n % 2], label=n % 2 == 0) for n in range(16)], "kto")
    held_out = token_ids([row(n, "refund", label=n > 20) for n in range(20, 23)], "kto")
    config = dataclasses.replace(config, method="kto", beta=0.5, micro_batch_tokens=1)
    metrics, _ = run(tiny_base, judged, config, tmp_path / "out", validation=held_out)

    def log_ratio(example: JudgedTokens, answer: JudgedTokens) -> float:
        prompt, ids = example.prompt_ids, answer.completion_ids
        return score(tiny_base, tmp_path / "out", prompt, ids) - score(tiny_base, None, prompt, ids)

    neighbours = [held_out[-1], *held_out[:-1]]
    kl = max(fmean(log_ratio(own, other) for own, other in zip(held_out, neighbours, strict=True)), 0.0)
    losses = [
        1 - 1 / (1 + math.exp(-config.beta * (1 if example.label else -1) * (log_ratio(example, example) - kl)))
        for example in held_out
    ]
    assert kl > 0
    assert metrics.validation_loss == pytest.approx(fmean(losses), rel=1e-4)


@pytest.mark.parametrize("method", ["orpo", "simpo"])
def test_the_losses_without_a_reference_are_those_of_the_papers(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path, method: TrainingMethod
) -> None:
    pairs = token_ids([row(n, "refund, as you asked", rejected="invoice") for n in range(16)], method)
    held_out = token_ids([row(n, "refund", rejected="an invoice", corrected=True) for n in range(20, 23)], method)
    config = dataclasses.replace(config, method=method, beta=0.5, micro_batch_tokens=1)
    metrics, _ = run(tiny_base, pairs, config, tmp_path / "out", validation=held_out)

    def loss(pair: PairTokens) -> float:
        better, worse = (
            score(tiny_base, tmp_path / "out", pair.prompt_ids, ids) / len(ids)
            for ids in (pair.chosen_ids, pair.rejected_ids)
        )
        if method == "orpo":  # equations 6 and 7, with beta for lambda
            odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in (better, worse)]
            return -better + config.beta * math.log(1 + odds[1] / odds[0])
        # equation 6, with a margin of half of beta; and the share of the better answer itself
        return math.log(1 + math.exp(-config.beta * (better - worse - 0.5))) - config.sft_share * better

    assert metrics.validation_loss == pytest.approx(fmean(map(loss, held_out)), rel=1e-4)


def test_the_odds_of_an_answer_that_is_certain_are_finite() -> None:
    """A short answer that is learned by heart has probability 1 in float32."""

    log_probs = torch.zeros(4, 2, requires_grad=True)

    def certain(**inputs: Any) -> Any:
        return SimpleNamespace(log_probs=log_probs, aux_loss=None)

    batch = {name: torch.ones(4, 3, dtype=torch.long) for name in ("input_ids", "attention_mask", "completion_mask")}
    trainer = object.__new__(reference_free.TokenIdORPOTrainer)
    trainer.beta, trainer.accelerator = 0.1, SimpleNamespace(device="cpu")
    better, worse, *_ = trainer.concatenated_forward(certain, batch)
    losses, *_ = trainer.odds_ratio_loss(better, worse)
    losses.sum().backward()
    assert log_probs.grad is not None
    assert torch.isfinite(losses).all()
    assert torch.isfinite(log_probs.grad).all()


def test_rows_learn_in_proportion_to_their_weights(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path
) -> None:
    rows = [*(row(n, "refund", score=1.0) for n in range(8)), *(row(n, "invoice", score=0.42) for n in range(8))]
    sequences = token_ids(rows, "weighted_sft")
    assert len({tokens.weight for tokens in sequences}) == 2
    run(tiny_base, sequences, dataclasses.replace(config, method="weighted_sft", epochs=4), tmp_path / "out")
    liked, poor = sequences[0], sequences[8]
    prompt = [token for token, label in zip(liked.input_ids, liked.labels, strict=True) if label == IGNORED]
    answers = [[label for label in tokens.labels if label != IGNORED] for tokens in (liked, poor)]
    gains = [score(tiny_base, tmp_path / "out", prompt, ids) - score(tiny_base, None, prompt, ids) for ids in answers]
    assert gains[0] > gains[1] + 1


def test_a_weight_of_two_is_the_row_twice(tiny_base: BaseInfo, config: TrainConfig, tmp_path: Path) -> None:
    """The gradient of a weighted batch is that of the batch with repeated rows, up to the common factor."""

    def tokens(start: int, weight: float = 1.0) -> LabeledTokens:
        ids = list(range(start, start + 6))
        return LabeledTokens(input_ids=ids, labels=[IGNORED] * 3 + ids[3:], weight=weight)

    one_step = dataclasses.replace(config, epochs=1, batch_size=3)
    weighted, _ = run(tiny_base, [tokens(50, 2.0), tokens(90, 1.0)], one_step, tmp_path / "a")
    repeated, _ = run(tiny_base, [tokens(50), tokens(50), tokens(90)], one_step, tmp_path / "b")
    assert weighted.first_loss == pytest.approx(repeated.first_loss, rel=1e-4)


def test_raw_text_is_learned_as_a_whole(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path
) -> None:
    texts = [Row(completion=f"Chapter {n}. The harbour lay still and nobody spoke of the storm.") for n in range(8)]
    sequences = token_ids(texts, "pretrain")
    assert all(label != IGNORED for tokens in sequences for label in tokens.labels)
    metrics, _ = run(tiny_base, sequences, dataclasses.replace(config, method="pretrain", epochs=8), tmp_path / "out")
    assert metrics.last_loss < metrics.first_loss - 1


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_variants_say_what_they_are(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path, variant: Any
) -> None:
    from graftwork.adapters.peft_format.folder import read_spec
    from graftwork.adapters.peft_format.limits import AdapterLimits

    sequences = token_ids([row(n) for n in range(8)], "sft")
    _, tensors = run(tiny_base, sequences, dataclasses.replace(config, variant=variant, epochs=1), tmp_path / "out")
    assert any("lora_magnitude_vector" in name for name in tensors) == (variant == "dora")
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "out")).use_rslora == (variant == "rslora")
    read_spec(tmp_path / "out", tiny_base, AdapterLimits())


def test_only_the_named_layers_are_adapted(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path
) -> None:
    sequences = token_ids([row(n) for n in range(8)], "sft")
    _, tensors = run(tiny_base, sequences, dataclasses.replace(config, layers=(1,), epochs=1), tmp_path / "out")
    assert all(".layers.1." in name for name in tensors)
    with pytest.raises(ConfigurationError, match="layers names 7, and tiny-llama has the layers 0 to 1"):
        run(tiny_base, sequences, dataclasses.replace(config, layers=(7,)), tmp_path / "none")


def test_on_an_nf4_base_the_adapter_stays_float32_and_all_of_it_moves(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path
) -> None:
    """TRL makes the adapter bfloat16 on a 4-bit base; small steps then round to nothing."""
    pytest.importorskip("bitsandbytes")
    sequences = token_ids([row(n, "refund", rejected="invoice") for n in range(8)], "dpo")
    small = dataclasses.replace(config, method="dpo", quantization="nf4", learning_rate=5e-6, epochs=4)
    fresh = trainer_module.prepare_model(load_model(tiny_base, dtype="float32", device="cpu"), tiny_base, small)
    assert adapter.trainable_parameters(fresh)
    torch.manual_seed(0)
    _, tensors = run(tiny_base, sequences, small, tmp_path / "v1")
    _, moved = run(tiny_base, sequences, small, tmp_path / "v2", parent=tmp_path / "v1")
    assert {tensor.dtype for tensor in moved.values()} == {torch.float32}
    changed = [float((moved[name] != tensors[name]).float().mean()) for name in tensors if "lora_A" in name]
    assert min(changed) > 0.9


def test_a_continued_adapter_begins_where_its_parent_ended(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path
) -> None:
    sequences = token_ids([row(n) for n in range(24)], "sft")
    first, _ = run(tiny_base, sequences, config, tmp_path / "v1", validation=sequences[:6])
    second, moved = run(
        tiny_base,
        sequences,
        dataclasses.replace(config, rank=9),
        tmp_path / "v2",
        validation=sequences[:6],
        parent=tmp_path / "v1",
    )
    assert second.base_validation_loss == pytest.approx(first.validation_loss, abs=1e-4)
    assert second.num_trainable == first.num_trainable > 0
    assert {tensor.shape[0] for name, tensor in moved.items() if "lora_A" in name} == {4}


@pytest.mark.parametrize(("reference", "expected"), [("parent", True), ("base", False)])
def test_the_reference_of_dpo_is_the_one_that_was_said(
    tiny_base: BaseInfo,
    token_ids: Callable[..., Any],
    config: TrainConfig,
    tmp_path: Path,
    reference: Any,
    expected: bool,
) -> None:
    """Against the parent the first loss is that of indifference; against the base the parent has a lead already."""
    pairs = token_ids([row(n, "refund", rejected="invoice") for n in range(16)], "dpo")
    dpo = dataclasses.replace(config, method="dpo", sft_share=0.0)
    run(tiny_base, pairs, dpo, tmp_path / "v1")
    again = dataclasses.replace(dpo, reference=reference, epochs=1)
    metrics, _ = run(tiny_base, pairs, again, tmp_path / "v2", parent=tmp_path / "v1")
    assert (metrics.first_loss == pytest.approx(math.log(2), abs=1e-4)) == expected
    assert sorted(path.name for path in (tmp_path / "v2").iterdir() if path.is_dir()) == []  # no ref/


def test_a_run_that_forgets_ends_early_with_the_weights_from_before(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path
) -> None:
    old = token_ids([row(n) for n in range(12)], "sft")
    new = token_ids([row(n, "something else") for n in range(12)], "sft")
    run(tiny_base, old, config, tmp_path / "v1")
    metrics, after = run(
        tiny_base, new, config, tmp_path / "v2", parent=tmp_path / "v1", replay_validation=old, validation=new
    )
    before = safetensors.torch.load_file(tmp_path / "v1" / "adapter_model.safetensors")
    assert metrics.ended_early
    assert metrics.num_steps < 6
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert metrics.validation_loss == metrics.base_validation_loss, "measured at the weights that were kept"
    free, _ = run(
        tiny_base,
        new,
        dataclasses.replace(config, forgetting=None),
        tmp_path / "v3",
        parent=tmp_path / "v1",
        replay_validation=old,
    )
    assert not free.ended_early
    assert free.num_steps == 6


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("epochs", "checkpoint_steps"), [(3, 50), (1, 50), (1, 2)])
def test_a_run_that_forgot_and_was_ended_then_stays_at_its_end(
    tiny_base: BaseInfo,
    token_ids: Callable[..., Any],
    config: TrainConfig,
    tmp_path: Path,
    epochs: float,
    checkpoint_steps: int,
) -> None:
    """Also in its last epoch, and where a checkpoint falls on an epoch's end."""
    old = token_ids([row(n) for n in range(12)], "sft")
    new = token_ids([row(n, "something else") for n in range(12)], "sft")
    run(tiny_base, old, config, tmp_path / "v1")
    config = dataclasses.replace(config, epochs=epochs, checkpoint_steps=checkpoint_steps)
    more: dict[str, Any] = {"parent": tmp_path / "v1", "replay_validation": old, "validation": new}
    whole, expected = run(tiny_base, new, config, tmp_path / "whole", **more)
    assert whole.ended_early

    def kill(step: int) -> None:
        raise Killed

    folder = tmp_path / "checkpoints"
    with pytest.raises(Killed):
        run(
            tiny_base,
            new,
            config,
            tmp_path / "out",
            keeping=checkpoints_module.Checkpointing(folder=folder, on_checkpoint=kill),
            **more,
        )
    assert checkpoints.newest(folder) == folder / f"step-{whole.num_steps}"
    resumed, found = run(
        tiny_base, new, config, tmp_path / "out", keeping=checkpoints_module.Checkpointing(folder=folder), **more
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert dataclasses.replace(resumed, seconds=0) == dataclasses.replace(whole, seconds=0)


def test_a_curriculum_begins_every_epoch_with_the_shortest_rows(
    tiny_base: BaseInfo, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the model meets them, and in another mixture each epoch."""
    lengths = [(n * 7) % 32 + 4 for n in range(32)]  # every one once, in no order
    rows = [LabeledTokens(input_ids=list(range(50, 50 + n)), labels=list(range(50, 50 + n))) for n in lengths]
    read: list[list[int]] = []
    original = LengthGroupedSampler.__iter__

    def watched(rows: LengthGroupedSampler) -> Iterator[int]:
        read.append(list(original(rows)))
        return iter(read[-1])

    monkeypatch.setattr(LengthGroupedSampler, "__iter__", watched)
    run(tiny_base, rows, dataclasses.replace(config, curriculum="short_first", epochs=2), tmp_path / "out")
    assert len(read) >= 2
    for order in read:
        assert sorted(order) == list(range(32))
        met = [lengths[index] for index in order]
        assert [sorted(met[start : start + 8]) for start in range(0, 32, 8)] == [
            list(range(start + 4, start + 12)) for start in range(0, 32, 8)
        ]
        assert met != sorted(met)
    assert read[-1] != read[0]


# --- ends and new beginnings ------------------------------------------------------------------------------------------


# In the fast tests each method ends once, and each moment meets one.
@pytest.mark.parametrize(
    ("method", "end"),
    [
        pytest.param(method, end, marks=[] if fast == end else pytest.mark.slow)
        for method, fast in (("sft", 3), ("dpo", 1), ("orpo", 3), ("simpo", 1), ("reward_model", 4), ("kto", 4))
        for end in (1, 3, 4)
    ],
)
def test_a_run_that_was_ended_goes_on_to_the_same_bits(
    tiny_base: BaseInfo,
    token_ids: Callable[..., Any],
    config: TrainConfig,
    tmp_path: Path,
    method: TrainingMethod,
    end: int,
) -> None:
    rows = {
        "sft": [row(n) for n in range(20)],
        "kto": [row(n, label=n % 2 == 0) for n in range(20)],
    }.get(method, [row(n, "refund", rejected="invoice") for n in range(20)])
    sequences = token_ids(rows, method)
    config = dataclasses.replace(config, method=method, epochs=2, checkpoint_steps=1, dropout=0.1)
    whole, expected = run(tiny_base, sequences, config, tmp_path / "whole", validation=sequences[:4])

    def kill(step: TrainingStep) -> None:
        # As it is published, before anything else happens.
        if step.step == end + 1:
            raise Killed

    keeping = checkpoints_module.Checkpointing(folder=tmp_path / "checkpoints")
    (tmp_path / "out").mkdir()
    with pytest.raises(Killed):
        trainer_module.train(tiny_base, sequences, sequences[:4], config, tmp_path / "out", kill, keeping=keeping)
    assert list((tmp_path / "out").iterdir()) == []
    assert checkpoints.newest(keeping.folder) == keeping.folder / f"step-{end}"

    steps: list[TrainingStep] = []
    resumed = trainer_module.train(
        tiny_base, sequences, sequences[:4], config, tmp_path / "out", steps.append, keeping=keeping
    )
    assert min(step.step for step in steps) == end
    found = safetensors.torch.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert dataclasses.replace(resumed, seconds=0) == dataclasses.replace(whole, seconds=0)


def test_a_stop_leaves_a_whole_checkpoint_and_no_adapter(
    tiny_base: BaseInfo, token_ids: Callable[..., Any], config: TrainConfig, tmp_path: Path
) -> None:
    sequences = token_ids([row(n) for n in range(20)], "sft")
    seen: list[int] = []
    keeping = checkpoints_module.Checkpointing(
        folder=tmp_path / "checkpoints", on_checkpoint=seen.append, should_stop=lambda: True
    )
    with pytest.raises(checkpoints_module.RunStopped):
        run(tiny_base, sequences, config, tmp_path / "out", keeping=keeping)
    assert seen == [1]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        written = tmp_path / ".writing" / f"checkpoint-{step}"
        written.mkdir(parents=True)
        (written / "weights").write_bytes(bytes(100))
        checkpoints.publish(written, tmp_path, step)
    assert [path.name for path in checkpoints.published(tmp_path)] == ["step-3", "step-2"]
    (tmp_path / "step-3" / "weights").write_bytes(bytes(50))
    assert checkpoints.newest(tmp_path) == tmp_path / "step-2"
    (tmp_path / "step-2" / checkpoints.FILE_SIZES).unlink()
    assert checkpoints.newest(tmp_path) is None


def test_out_of_memory_makes_the_micro_batch_smaller_and_then_says_so(
    tiny_base: BaseInfo,
    token_ids: Callable[..., Any],
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sequences = token_ids([row(n) for n in range(16)], "sft")
    tried: list[int] = []
    limit = 2
    original = factory.make_trainer

    def hungry(*args: Any, micro: int, **kwargs: Any) -> Any:
        tried.append(micro)
        if micro > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes.")
        return original(*args, micro=micro, **kwargs)

    monkeypatch.setattr(factory, "make_trainer", hungry)
    metrics, _ = run(tiny_base, sequences, dataclasses.replace(config, epochs=1), tmp_path / "out")
    assert tried == [8, 4, 2]
    assert metrics.num_steps == 2
    limit = 0
    with pytest.raises(GraftworkError, match="Even one row") as ended:
        run(tiny_base, sequences, config, tmp_path / "none")
    assert ended.value.code == "out_of_memory"


def test_the_quick_way_is_pefts_own_sum(tiny_base: BaseInfo, config: TrainConfig) -> None:
    """Outputs and every gradient, with and without the adapter."""
    torch.manual_seed(1)
    model = adapter.add_adapter(load_model(tiny_base, dtype="float32", device="cpu"), tiny_base, config)
    for weight in adapter.trainable_parameters(model):
        weight.data = torch.randn_like(weight) * 0.1
    ids = torch.randint(0, 1000, (3, 17))

    def outcome() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        return loss.detach(), [
            weight.grad.clone() for weight in adapter.trainable_parameters(model) if weight.grad is not None
        ]

    slow_loss, slow = outcome()
    with model.disable_adapter():
        bare = model(ids).logits.detach()
    assert adapter.use_fused_lora(model) == 14
    quick_loss, quick = outcome()
    torch.testing.assert_close(quick_loss, slow_loss)
    assert len(slow) == len(quick) == 28
    for one, other in zip(quick, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    with model.disable_adapter():
        torch.testing.assert_close(model(ids).logits.detach(), bare)
