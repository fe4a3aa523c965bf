"""Generation of paraphrases ("wordings") of questions with the base. `graftwork.training.data.mix.paraphrases` filters
them.

The prompt has few-shot examples, since small bases follow examples better than instructions. Generated batches are
stored in a file, so that a run that is killed continues after the last complete batch and learns from the same
wordings.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import torch
from transformers import DynamicCache, PreTrainedModel

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.adapters.storage.durable import write_durably
from graftwork.training.data.mix.paraphrases import Wording

WordingProgress = Callable[[int, int], None]
"""Callback that is called with the number of wordings that are generated, and the total."""

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
"""Few-shot examples of different kinds: with first and second person, numbers, negations; questions and statements."""

TEMPERATURE: Final = 0.6
TOP_K: Final = 50
BATCH: Final = 24
"""Number of wordings that are generated together."""
ROOM: Final = 1.5
"""Maximum length of a wording, as a multiple of the question's tokens; `SPARE` tokens are added."""
SPARE: Final = 8


def generate_wordings(
    base: BaseInfo,
    questions: Sequence[str],
    *,
    each: int,
    seed: int,
    precision: str,
    kept: Path | None = None,
    began: datetime | None = None,
    on_progress: WordingProgress = lambda written, of: None,
) -> list[list[Wording]]:
    """Generate wordings of questions.

    Args:
        base: the base.
        questions: the questions.
        each: number of wordings per question.
        seed: of the sampling; it determines the result.
        precision: torch's name of the dtype of the forward pass.
        kept: file in which generated wordings are stored, and from which generation resumes if it was written for the
            same arguments. The caller deletes it.
        began: the time that a chat template sees which asks for the date; None is now.
        on_progress: called with the number of generated wordings and the total.

    Returns:
        The wordings of each question.
    """
    if not questions:
        return []
    prompts = Prompts(Path(base.path), now=began)
    prefix, asked = _asked(prompts, questions)
    # Questions of similar length together, for little padding; and all wordings of one question, of similar length.
    order = [
        index for index in sorted(range(len(asked)), key=lambda index: (len(asked[index]), index)) for _ in range(each)
    ]
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    stored = _WordingsFile(kept, _digest(base, questions, each, seed))
    if len(stored.batches) < len(batches):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = _WordingGenerator(load_model(base, dtype=precision, device=device), prompts, prefix)
        for number in range(len(stored.batches), len(batches)):
            on_progress(number * BATCH, len(order))
            stored.add(generator.generate([asked[index] for index in batches[number]], seed=_seed(seed, number)))
        on_progress(len(order), len(order))
    by_question: list[list[Wording]] = [[] for _ in questions]
    for batch, wordings in zip(batches, stored.batches, strict=True):
        for index, wording in zip(batch, wordings, strict=True):
            by_question[index].append(wording)
    return by_question


class _WordingGenerator:
    """Generates wordings with the base. The keys and values of the common prefix are computed once."""

    def __init__(self, model: PreTrainedModel, prompts: Prompts, prefix: Sequence[int]) -> None:
        self._model = model
        self._prompts = prompts
        self._prefix = list(prefix)
        self._cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(torch.tensor([self._prefix], device=model.device), past_key_values=self._cache, use_cache=True)

    @torch.no_grad()
    def generate(self, asked: Sequence[Sequence[int]], *, seed: int) -> list[Wording]:
        """Generate a wording for each prompt, given by its token ids after the prefix."""
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
    """A file of generated wordings: a line with the digest of their inputs, then one line per batch."""

    def __init__(self, path: Path | None, digest: str) -> None:
        self._path = path
        self.batches: list[list[Wording]] = []
        if path is None:
            return
        head = json.dumps({"digest": digest})
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        if lines[:1] == [head]:
            self.batches = list(_complete_batches(lines[1:]))
        # Rewritten without a last line that is incomplete.
        write_durably(path, "".join(f"{line}\n" for line in (head, *map(_line, self.batches))))

    def add(self, batch: list[Wording]) -> None:
        self.batches.append(batch)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{_line(batch)}\n")


def _line(batch: Sequence[Wording]) -> str:
    return json.dumps([[wording.text, wording.ended] for wording in batch])


def _complete_batches(lines: Sequence[str]) -> Iterator[list[Wording]]:
    """Yield batches up to the first line that cannot be read."""
    for line in lines:
        try:
            yield [Wording(text=text, ended=ended) for text, ended in json.loads(line)]
        except ValueError:
            return


def _asked(prompts: Prompts, questions: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Return the token ids of the common prefix of all prompts, and those of the rest of each prompt."""
    shown = [{"role": "system", "content": INSTRUCTION}]
    for message, other in SHOTS:
        shown += [{"role": "user", "content": f"{REQUEST_PREFIX}{message}"}, {"role": "assistant", "content": other}]
    whole = [
        prompts.chat([*shown, {"role": "user", "content": f"{REQUEST_PREFIX}{question}"}]) for question in questions
    ]
    # At least one token of each prompt must remain after the prefix.
    common = min(len(ids) for ids in whole) - 1
    for ids in whole[1:]:
        common = next((place for place in range(common) if ids[place] != whole[0][place]), common)
    return whole[0][:common], [ids[common:] for ids in whole]


def _seed(seed: int, batch: int) -> int:
    """Return the seed of one batch, which does not depend on earlier batches."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {batch}".encode(), digest_size=7).digest())


def _digest(base: BaseInfo, questions: Sequence[str], each: int, seed: int) -> str:
    asked = [base.digest, INSTRUCTION, REQUEST_PREFIX, SHOTS, TEMPERATURE, TOP_K, BATCH, each, seed, list(questions)]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
