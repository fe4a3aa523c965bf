"""How similar two texts are: ROUGE by rouge-score, BLEU by sacrebleu, GLEU by NLTK, each 0 to 1."""

from __future__ import annotations

from functools import cache
from typing import Any

from graftwork.adapters.learning.graders.grader import SimilarityMetric


def score(metric: SimilarityMetric, text: str, reference: str) -> float:
    """Return the similarity of a text to a reference; ROUGE is its F1 score."""
    match metric:
        case "bleu":
            import sacrebleu

            return float(sacrebleu.sentence_bleu(text, [reference]).score) / 100
        case "gleu":
            from nltk.translate.gleu_score import sentence_gleu

            words, expected = text.split(), reference.split()
            return float(sentence_gleu([expected], words)) if words and expected else float(words == expected)
        case _:
            name = metric.replace("rouge_l", "rougeL").replace("rouge_", "rouge")
            return float(_rouge(name).score(reference, text)[name].fmeasure)


@cache
def _rouge(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=False)
