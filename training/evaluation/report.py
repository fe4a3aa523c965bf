"""How an evaluation and its verdict look: on a terminal, and as one HTML page. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from rich.console import Console
from rich.table import Table

from graftwork.training.evaluation.evaluation import Evaluation, ModelMeasurement
from graftwork.training.evaluation.gates import GateDecision

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0;width:100%}td,th{border-bottom:1px solid #ddd;padding:.35rem .6rem;
text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
.bad{color:#a4161a}.good{color:#1b6e3c}pre{white-space:pre-wrap;margin:0;font:inherit}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}
.bad{color:#ff8a80}.good{color:#8fd3a5}}
"""


def print_report(console: Console, evaluation: Evaluation, verdict: GateDecision) -> None:
    """Numbers, gates, and answers side by side."""
    table = Table(title=_counted(evaluation))
    table.add_column("")
    models = _models(evaluation)
    for name in models:
        table.add_column(name, justify="right")
    for row in _numbers(models):
        table.add_row(*row)
    console.print(table)
    for gate in verdict.gates:
        console.print(f"{'passed ' if gate.passed else 'REFUSED'}  {gate.message}", markup=False, highlight=False)
    for part in evaluation.examples:
        console.print(f"\n{part.question}\n  right: {part.expected}", markup=False, highlight=False)
        for name, answer in part.answers.items():
            console.print(f"  {name}: {answer}", markup=False, highlight=False)


def render_page(name: str, evaluation: Evaluation, verdict: GateDecision) -> str:
    """The same as one page that needs nothing else."""
    models = _models(evaluation)
    head = "".join(f"<th>{escape(part)}</th>" for part in ("", *models))
    numbers = "".join(
        f"<tr><td>{escape(label)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
        for label, *cells in _numbers(models)
    )
    gates = "".join(
        f"<tr><td class={'good' if gate.passed else 'bad'}>{'passed' if gate.passed else 'refused'}</td>"
        f"<td>{escape(gate.message)}</td></tr>"
        for gate in verdict.gates
    )
    classes = "".join(
        f"<tr><td>{escape(part.label)}</td><td class=n>{part.num_rows}</td><td class=n>{part.against:.2f}</td>"
        f"<td class=n>{part.candidate:.2f}</td></tr>"
        for part in evaluation.slices
    )
    answers = "".join(
        f"<tr><td><pre>{escape(part.question)}</pre></td><td><pre>{escape(part.expected)}</pre></td>"
        + "".join(f"<td><pre>{escape(part.answers[model])}</pre></td>" for model in models)
        + "</tr>"
        for part in evaluation.examples
    )
    changed = ", ".join(f"{escape(model)} {share:.0%}" for model, share in evaluation.bias.changed.items())
    title = f"{escape(name)}: {'passed' if verdict.passed else 'refused'}"
    sections = [
        f"<h1>{title}</h1><p>{_counted(evaluation)}.</p><table><tr>{head}</tr>{numbers}</table><h2>Gates</h2><table>{gates}</table>",
        f"<p>Divergence from what it would replace: {evaluation.kl_to_parent:.4f} nats a token, at least.</p>",
        f"<h2>Names and pronouns</h2><p>Answers that change when nothing else does, of {evaluation.bias.num_pairs} "
        f"pairs: {changed or 'no pair to ask'}.</p>",
    ]
    if classes:
        sections.append(
            f"<h2>Classes</h2><table><tr><th></th><th>rows</th><th>before</th><th>candidate</th></tr>{classes}</table>"
        )
    columns = "".join(f"<th>{escape(part)}</th>" for part in ("asked", "right", *models))
    sections.append(f"<h2>Answers</h2><table><tr>{columns}</tr>{answers}</table>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"{''.join(sections)}</html>\n"
    )


def _counted(evaluation: Evaluation) -> str:
    left_out = f", {evaluation.num_left_out} left out as too long for the server" if evaluation.num_left_out else ""
    return f"{evaluation.num_rows} held-out rows{left_out}"


def _models(evaluation: Evaluation) -> dict[str, ModelMeasurement]:
    parts = {"candidate": evaluation.candidate, "parent": evaluation.parent, "base": evaluation.base}
    return {name: part for name, part in parts.items() if part is not None}


def _numbers(models: dict[str, ModelMeasurement]) -> Iterator[tuple[str, ...]]:
    first = next(iter(models.values()))
    for metric in first.metrics:
        yield metric, *(f"{part.metrics[metric]:.3f}" for part in models.values())
    yield "loss", *(f"{part.loss:.4f}" for part in models.values())
    yield "perplexity", *(f"{part.perplexity:.2f}" for part in models.values())
    yield "loss on general text", *(f"{part.general_loss:.4f}" for part in models.values())
    if first.replay_loss is not None:
        yield (
            "loss on older rounds",
            *("–" if part.replay_loss is None else f"{part.replay_loss:.4f}" for part in models.values()),
        )
