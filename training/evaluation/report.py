"""The report of an evaluation and its gates, on a terminal and as an HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import jinja2
from rich.console import Console
from rich.table import Table

from graftwork.adapters.learning.gate_results import Outcome
from graftwork.training.evaluation.evaluation import Evaluation, ModelMeasurement
from graftwork.training.evaluation.gates import GateDecision

_PAGE: Final = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
).from_string(
    """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0;width:100%}td,th{border-bottom:1px solid #ddd;padding:.35rem .6rem;
text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
.bad{color:#a4161a}.good{color:#1b6e3c}.open{color:#8a5a00}pre{white-space:pre-wrap;margin:0;font:inherit}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}
.bad{color:#ff8a80}.good{color:#8fd3a5}.open{color:#f0c060}}
</style>
<h1>{{ title }}</h1><p>{{ counted }}.</p>
<table><tr><th></th>{% for model in models %}<th>{{ model }}</th>{% endfor %}</tr>
{% for row in numbers %}
<tr><td>{{ row[0] }}</td>{% for cell in row[1:] %}<td class=n>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
<h2>Gates</h2><table>
{% for gate in gates %}
<tr><td class={{ classes[gate.outcome] }}>{{ outcomes[gate.outcome] }}</td>
<td>{{ gate.message }}</td></tr>
{% endfor %}
</table>
{% if evaluation.candidate.losses.totals %}
<p>Divergence from what it would replace: {{ "%.4f" % evaluation.kl_to_parent }} nats a token, at least.</p>
{% endif %}
<h2>Names and pronouns</h2><p>Answers that change when nothing else does, of {{ evaluation.bias.num_pairs }} pairs:
{{ changed or "no pair to ask" }}.</p>
{% if evaluation.slices %}
<h2>Classes</h2><table><tr><th></th><th>rows</th><th>right before</th><th>candidate</th></tr>
{% for part in evaluation.slices %}
<tr><td>{{ part.label }}</td><td class=n>{{ part.num_rows }}</td><td class=n>{{ part.against }}</td>
<td class=n>{{ part.candidate }}</td></tr>
{% endfor %}
</table>
{% endif %}
<h2>Answers</h2><table><tr><th>asked</th><th>right</th>{% for model in models %}<th>{{ model }}</th>{% endfor %}</tr>
{% for part in evaluation.examples %}
<tr><td><pre>{{ part.question }}</pre></td><td><pre>{{ part.expected }}</pre></td>
{% for model in models %}
<td><pre>{{ part.answers[model] }}</pre></td>
{% endfor %}
</tr>
{% endfor %}
</table></html>
"""
)


OUTCOMES: Final[Mapping[Outcome, str]] = {"pass": "passed", "refuse": "refused", "inconclusive": "inconclusive"}
"""The outcomes of gates, as people read them."""

_CLASSES: Final[Mapping[Outcome, str]] = {"pass": "good", "refuse": "bad", "inconclusive": "open"}


def print_report(console: Console, evaluation: Evaluation, verdict: GateDecision) -> None:
    """Print metrics, gates, and example answers side by side."""
    table = Table(title=_counted(evaluation))
    table.add_column("")
    models = _models(evaluation)
    for name in models:
        table.add_column(name, justify="right")
    for row in _numbers(models):
        table.add_row(*row)
    console.print(table)
    for gate in verdict.gates:
        console.print(f"{OUTCOMES[gate.outcome]:12}  {gate.message}", markup=False, highlight=False)
    for part in evaluation.examples:
        console.print(f"\n{part.question}\n  right: {part.expected}", markup=False, highlight=False)
        for name, answer in part.answers.items():
            console.print(f"  {name}: {answer}", markup=False, highlight=False)


def render_page(name: str, evaluation: Evaluation, verdict: GateDecision) -> str:
    """Render the report as a self-contained HTML page.

    Args:
        name: name of the adapter, for the title.
        evaluation: the evaluation.
        verdict: the decision of the gates.
    """
    models = _models(evaluation)
    return _PAGE.render(
        title=f"{name}: {OUTCOMES[verdict.outcome]}",
        counted=_counted(evaluation),
        models=list(models),
        numbers=list(_numbers(models)),
        gates=verdict.gates,
        outcomes=OUTCOMES,
        classes=_CLASSES,
        evaluation=evaluation,
        changed=", ".join(f"{model} {share:.0%}" for model, share in evaluation.bias.changed.items()),
    )


def _counted(evaluation: Evaluation) -> str:
    left_out = f", {evaluation.num_left_out} left out as too long for the server" if evaluation.num_left_out else ""
    judge = "" if evaluation.judged_by is None else f", judged by the grader {evaluation.judged_by}"
    return f"{evaluation.num_rows} held-out rows{left_out}{judge}"


def _models(evaluation: Evaluation) -> dict[str, ModelMeasurement]:
    parts = {"candidate": evaluation.candidate, "parent": evaluation.parent, "base": evaluation.base}
    return {name: part for name, part in parts.items() if part is not None}


def _numbers(models: dict[str, ModelMeasurement]) -> Iterator[tuple[str, ...]]:
    first = next(iter(models.values()))
    for metric in first.metrics:
        yield metric, *(f"{part.metrics[metric]:.3f}" for part in models.values())
    if first.losses.totals:
        yield "loss", *(f"{part.loss:.4f}" for part in models.values())
        yield "perplexity", *(f"{part.perplexity:.2f}" for part in models.values())
    yield "loss on general text", *(f"{part.general_loss:.4f}" for part in models.values())
    if first.replay_loss is not None:
        yield (
            "loss on older rounds",
            *("–" if part.replay_loss is None else f"{part.replay_loss:.4f}" for part in models.values()),
        )
