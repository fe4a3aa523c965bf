"""Other wordings of questions, written by the bare base itself; which of them are any good is not decided here.

The base is shown a few messages with the same in other words, then each question: small bases imitate better than they
obey. What it writes is kept, batch by batch, beside whoever asked: a run that is killed and begun again goes on after
the last whole batch, and learns from the same wordings.

Knows nothing of rows, of adapters, nor of trainers.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import DynamicCache, PreTrainedModel

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.adapters.storage.durable import write_durably
from graftwork.training.data.mix.paraphrases import Wording

WordingProgress = Callable[[int, int], None]
"""Told now and then how many wordings are written, and of how many."""

INSTRUCTION: Final = "You rewrite messages in other words and keep their meaning."
REQUEST_PREFIX: Final = "Rewrite in other words: "
SHOTS: Final = (
    ("Where can I park my bike?", "Is there a place where I can park my bike?"),
    ("I forgot my password and can't get in.", "I can't get in since I don't remember my password."),
    ("Was my order of 3 books sent already?", "Have the 3 books that I ordered been sent yet?"),
    ("The parcel came but the box was damaged.", "The box was damaged when the parcel came."),
    ("Why is the shop closed on Mondays", "What is the reason that the shop is closed on Mondays?"),
    ("My glasses arrived, but they're not mine.", "The glasses that arrived for me aren't mine."),
    ("How do I change the date of my visit?", "What do I have to do to change the date of my visit?"),
    ("Do you sell umbrellas in your store?", "Do you have umbrellas for sale in the store?"),
)
"""One of each kind: with an I and with a you, with a number, with a not, asking and telling."""

TEMPERATURE: Final = 0.6
TOP_K: Final = 50
BATCH: Final = 24
ROOM: Final = 1.5
"""Tokens of a wording, at most, times the question's, and `SPARE` more."""
SPARE: Final = 8


def generate_wordings(
    base: BaseInfo,
    questions: Sequence[str],
    *,
    each: int,
    seed: int,
    precision: str,
    kept: Path | None = None,
    on_progress: WordingProgress = lambda written, of: None,
) -> list[list[Wording]]:
    """``each`` wordings of every question, from ``seed`` alone.

    ``precision`` is torch's name of what is computed in. ``kept`` is a file that the wordings are kept in while they
    are written, and read from if they are those of these very questions; whoever asks removes it.
    """
    if not questions:
        return []
    prompts = Prompts(Path(base.path))
    prefix, asked = _asked(prompts, questions)
    # Like lengths together, so that little is padded; all of one question, which end at about the same time.
    order = [
        index for index in sorted(range(len(asked)), key=lambda index: (len(asked[index]), index)) for _ in range(each)
    ]
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    there = _WordingsFile(kept, _digest(base, questions, each, seed))
    if len(there.batches) < len(batches):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        writer = _WordingGenerator(load_model(base, dtype=precision, device=device), prompts, prefix)
        for number in range(len(there.batches), len(batches)):
            on_progress(number * BATCH, len(order))
            there.add(writer.write([asked[index] for index in batches[number]], seed=_seed(seed, number)))
        on_progress(len(order), len(order))
    written: list[list[Wording]] = [[] for _ in questions]
    for batch, wordings in zip(batches, there.batches, strict=True):
        for index, wording in zip(batch, wordings, strict=True):
            written[index].append(wording)
    return written


class _WordingGenerator:
    """The base, with what stands before every question computed once."""

    def __init__(self, model: PreTrainedModel, prompts: Prompts, prefix: Sequence[int]) -> None:
        self._model = model
        self._prompts = prompts
        self._prefix = list(prefix)
        self._cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(torch.tensor([self._prefix], device=model.device), past_key_values=self._cache, use_cache=True)

    @torch.no_grad()
    def write(self, asked: Sequence[Sequence[int]], *, seed: int) -> list[Wording]:
        """A wording of each."""
        width = max(map(len, asked))
        rows = [[*self._prefix, *[0] * (width - len(ids)), *ids] for ids in asked]
        mask = [[*[1] * len(self._prefix), *[0] * (width - len(ids)), *[1] * len(ids)] for ids in asked]
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(asked))
        ends = sorted(self._prompts.eos_token_ids)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: Any = self._model
            ids = model.generate(
                torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                past_key_values=cache,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=TOP_K,
                top_p=1.0,
                max_new_tokens=int(ROOM * width) + SPARE,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
        return [self._wording(row[len(rows[0]) :].tolist()) for row in ids]

    def _wording(self, ids: list[int]) -> Wording:
        ended = [place for place, token in enumerate(ids) if token in self._prompts.eos_token_ids]
        return Wording(text=self._prompts.decode(ids[: ended[0]] if ended else ids), ended=bool(ended))


class _WordingsFile:
    """What was written, a line a batch, after a line that says of what."""

    def __init__(self, path: Path | None, digest: str) -> None:
        self._path = path
        self.batches: list[list[Wording]] = []
        if path is None:
            return
        head = json.dumps({"digest": digest})
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        if lines[:1] == [head]:
            self.batches = list(_whole(lines[1:]))
        # What a sudden end left of a last line is gone with this.
        write_durably(path, "".join(f"{line}\n" for line in (head, *map(_line, self.batches))))

    def add(self, batch: list[Wording]) -> None:
        self.batches.append(batch)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{_line(batch)}\n")


def _line(batch: Sequence[Wording]) -> str:
    return json.dumps([[wording.text, wording.ended] for wording in batch])


def _whole(lines: Sequence[str]) -> Iterator[list[Wording]]:
    """Batches, up to the first line that is none."""
    for line in lines:
        try:
            yield [Wording(text=text, ended=ended) for text, ended in json.loads(line)]
        except ValueError:
            return


def _asked(prompts: Prompts, questions: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens that stand before every question, and of each question with what follows it."""
    shown = [{"role": "system", "content": INSTRUCTION}]
    for message, other in SHOTS:
        shown += [{"role": "user", "content": f"{REQUEST_PREFIX}{message}"}, {"role": "assistant", "content": other}]
    whole = [
        prompts.chat([*shown, {"role": "user", "content": f"{REQUEST_PREFIX}{question}"}]) for question in questions
    ]
    # A token must be left of each to go on from.
    common = min(len(ids) for ids in whole) - 1
    for ids in whole[1:]:
        common = next((place for place in range(common) if ids[place] != whole[0][place]), common)
    return whole[0][:common], [ids[common:] for ids in whole]


def _seed(seed: int, batch: int) -> int:
    """Of one batch: what was drawn for those before it does not matter."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {batch}".encode(), digest_size=7).digest())


def _digest(base: BaseInfo, questions: Sequence[str], each: int, seed: int) -> str:
    asked = [base.digest, INSTRUCTION, REQUEST_PREFIX, SHOTS, TEMPERATURE, TOP_K, BATCH, each, seed, list(questions)]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
