"""Renderings of the server's answers for people, with rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graftwork.clients.cli.context import CONTROL_CHARACTERS
from graftwork.clients.http.calls import shorten
from graftwork.clients.types.adapters import Adapter, AdapterEvent, AdapterLimits, Version
from graftwork.clients.types.audit import AuditEntry
from graftwork.clients.types.feedback import Feedback
from graftwork.clients.types.interactions import ErasureResult, Interaction
from graftwork.clients.types.keys import Key, KeyUsage, Limits
from graftwork.clients.types.log_policies import LogPolicy, LogPolicyList


def adapters(found: Iterable[Adapter]) -> RenderableType:
    """Render a table of adapters."""
    table = _table("Adapter", "Live", "Other aliases", "Versions", "Resident", "Age", right=("Requests", "Tokens"))
    for adapter in found:
        others = ", ".join(
            f"{alias} → {number}" for alias, number in sorted(adapter.aliases.items()) if alias != "live"
        )
        table.add_row(
            adapter.name,
            _or_dash(adapter.aliases.get("live")),
            others or "–",
            str(sum(version.retired_at is None for version in adapter.versions)),
            _or_dash(adapter.residency),
            format_age(adapter.created_at),
            f"{adapter.requests:,}",
            f"{adapter.tokens:,}",
        )
    return table if table.row_count else Text("No adapters yet. Push one: graftwork adapters push NAME FOLDER")


def adapter(shown: Adapter) -> RenderableType:
    """Render an adapter with its versions, the newest first, in 80 columns."""
    table = _table("Version", "Aliases", "Resident", "Age", right=("Rank", "Size", "Load", "Requests", "Tokens"))
    for version in sorted(shown.versions, key=lambda version: version.version, reverse=True):
        aliases = ", ".join(shown.aliases_of(version.version))
        table.add_row(
            version.id if version.verified else f"{version.id} *",
            aliases or ("retired" if version.retired_at else "–"),
            _or_dash(version.residency),
            format_age(version.created_at),
            str(version.rank),
            format_size(version.num_bytes),
            "–" if version.load_ms is None else f"{version.load_ms:.0f} ms",
            f"{version.requests:,}",
            f"{version.tokens:,}",
            style="dim" if version.retired_at else None,
        )
    head = Text.assemble((shown.name, "bold"), f" · {shown.requests:,} requests · {shown.tokens:,} tokens")
    if all(version.verified for version in shown.versions):
        return Group(head, table)
    return Group(head, table, Text("* its files do not say which base they were trained on", style="dim"))


def pushed(version: Version) -> RenderableType:
    """Render a version that was pushed."""
    facts = f" · rank {version.rank} · {format_size(version.num_bytes)} · {version.digest.removeprefix('sha256:')[:12]}"
    return Text.assemble((version.id, "bold"), facts)


def event(happened: AdapterEvent) -> RenderableType:
    """Render an event of an adapter in one line."""
    where = f"{happened.name}@{happened.alias}" if happened.alias else happened.name
    return Text.assemble((where, "bold"), f" {_move(happened)}")


def history(events: Iterable[AdapterEvent]) -> RenderableType:
    """Render a table of an adapter's events."""
    table = _table("When", "What", "Alias", "Version", "By", "Reason")
    for happened in events:
        table.add_row(
            format_time(happened.at),
            happened.action,
            _or_dash(happened.alias),
            _move(happened),
            happened.actor,
            happened.reason or "",
        )
    return table


def retired(version: Version) -> RenderableType:
    """Render a version that was retired."""
    return Text.assemble((version.id, "bold"), " is retired: requests that name it are refused from now on")


def audit(found: Iterable[AuditEntry]) -> RenderableType:
    """Render a table of changes."""
    table = _table("When", "Who", "Key", "Did", "To", "Ended", "From")
    for entry in found:
        table.add_row(
            format_time(entry.at),
            entry.actor,
            entry.key_id,
            entry.action,
            entry.target,
            entry.outcome,
            entry.remote or "–",
            style=None if entry.outcome == "done" else "dim",
        )
    return table if table.row_count else Text("Nothing was changed.")


def standing(limits: Limits, used: KeyUsage | AdapterLimits) -> RenderableType:
    """Render what a key or an adapter used, beside its limits."""
    table = _table("", "Requests", "of", "Tokens", "of")
    for name, usage, requests, tokens in (
        ("this minute", used.minute, limits.requests_per_minute, limits.tokens_per_minute),
        ("today", used.day, None, limits.tokens_per_day),
        ("this month", used.month, None, limits.tokens_per_month),
    ):
        table.add_row(name, f"{usage.requests}", f"{requests or '–'}", f"{usage.tokens}", f"{tokens or '–'}")
    table.add_row("at once", f"{used.open}", f"{limits.concurrent or '–'}", "", "")
    return table


def keys(found: Iterable[Key]) -> RenderableType:
    """Render a table of API keys."""
    table = _table("Id", "Name", "Role", "For", "Limits", "Created", "Ends", "Revoked")
    for key in found:
        limits = {name: getattr(key.limits, name) for name in key.limits.__dataclass_fields__}
        table.add_row(
            key.id,
            key.name,
            key.role,
            "all" if key.adapters is None else ", ".join(key.adapters),
            ", ".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None) or "–",
            format_time(key.created_at),
            format_time(key.expires_at) if key.expires_at else "–",
            format_time(key.revoked_at) if key.revoked_at else "–",
            style="dim" if key.revoked_at else None,
        )
    return table if table.row_count else Text("No keys. Make one: graftwork keys create NAME --role app")


def sent(kept: Feedback) -> RenderableType:
    """Render feedback that was sent."""
    return Text.assemble((f"feedback {kept.id}", "bold"), f" on {kept.adapter}: ", _plain(_feedback_values(kept)))


def feedback(found: Sequence[Feedback]) -> RenderableType:
    """Render a table of feedback."""
    table = _table("Id", "When", "Adapter", "Arm", "Said", "By", "Of the answer")
    for row in found:
        table.add_row(
            str(row.id),
            format_time(row.at),
            row.adapter,
            _arm(row),
            _plain(_feedback_values(row)),
            _plain(_or_dash(row.user)),
            Text(f"{row.interaction_id} [{row.choice}]" if row.choice else row.interaction_id),
        )
    return table if found else Text("Nothing was said yet. Say something: graftwork feedback send ID --thumb up")


def interactions(found: Sequence[Interaction]) -> RenderableType:
    """Render interactions in two lines each, so that ids are not wrapped."""
    table = _table("Interaction", "Age", "Adapter", "Arm", "Status", right=("Tokens", "Seconds"))
    for row in found:
        table.add_row(
            Group(
                _plain(shorten(_prompt_rows(row)[-1][1] if _prompt_rows(row) else "", 60), "bold"), Text(row.id, "dim")
            ),
            format_age(row.created_at),
            row.adapter,
            _arm(row),
            row.status,
            f"{row.usage.total_tokens:,}",
            f"{row.timings.total_ms / 1e3:.1f}",
        )
    return table if found else Text("No interactions are logged that fit.")


def interaction(shown: Interaction) -> RenderableType:
    """Render an interaction with its prompt, answers and feedback."""
    timings = shown.timings
    facts = [
        f"{format_time(shown.created_at)} · {shown.adapter} (as {shown.model})",
        f"{shown.usage.prompt_tokens:,} + {shown.usage.completion_tokens:,} tokens",
        *([] if timings.queue_ms is None else [f"queued {timings.queue_ms:.0f} ms"]),
        *([] if timings.first_token_ms is None else [f"first token {timings.first_token_ms:.0f} ms"]),
        f"{timings.total_ms:.0f} ms in all",
        *([] if shown.user is None else [f"user {shown.user}"]),
        *([] if shown.experiment is None else [f"experiment {shown.experiment}, arm {_arm(shown)}"]),
    ]
    parts: list[RenderableType] = [Text(shown.id, style="bold"), _plain(" · ".join(facts))]
    if shown.status != "ok":
        parts.append(_plain(f"{shown.status}: {shown.error or 'the client left'}", "red"))
    for role, text in _prompt_rows(shown):
        parts += [Text(f"\n{role}", style="dim"), _plain(text)]
    for completion in shown.completions:
        number = f" {completion.index}" if len(shown.completions) > 1 else ""
        parts += [Text(f"\nanswer{number} ({completion.finish_reason or 'broken off'})", style="dim")]
        parts += [_plain(completion.text)]
    for row in shown.feedback:
        parts.append(_plain(f"\n{format_time(row.at)} {_or_dash(row.user)}: {_feedback_values(row)}", "cyan"))
    return Group(*parts)


def erased(gone: ErasureResult) -> RenderableType:
    """Render the result of an erasure."""
    parts: list[RenderableType] = [
        Text(f"{gone.interactions} interactions, and the words of {gone.feedback} pieces of feedback, are gone.")
    ]
    if gone.learned_from:
        parts.append(Text(f"Learned from them: {', '.join(gone.learned_from)}", style="yellow"))
    if gone.continued:
        parts.append(Text(f"Continue a version that did: {', '.join(gone.continued)}", style="yellow"))
    return Group(*parts)


def log_policies(found: LogPolicyList) -> RenderableType:
    """Render a table of log policies."""
    table = _table("Of", "Logged", "Kept", "Asked", "By", "Since")
    default = found.default
    table.add_row("everything else", _yes_or_no(default.log), _days(default.retention_days, "for good"), "–", "–", "–")
    for policy in found:
        table.add_row(
            f"{policy.scope} {policy.subject}",
            _yes_or_no(policy.log),
            _days(policy.retention_days, "by default"),
            "–" if policy.ask_feedback is None else f"{policy.ask_feedback:.3g}",
            policy.actor,
            format_time(policy.updated_at),
        )
    return table


def policy_set(policy: LogPolicy) -> RenderableType:
    """Render a log policy that was set."""
    logged = "is logged" if policy.log else "is not logged"
    kept = f", kept {_days(policy.retention_days, 'by default')}" if policy.log else ""
    asked = f"; users are asked for feedback on {policy.ask_feedback:.3g} of the answers" if policy.ask_feedback else ""
    return Text.assemble((f"{policy.scope} {policy.subject}", "bold"), f" {logged}{kept}{asked}")


def policy_removed(policy: LogPolicy) -> RenderableType:
    """Render a log policy that was removed."""
    return Text.assemble((f"{policy.scope} {policy.subject}", "bold"), " is logged by the server's default again")


def _plain(text: str, style: str = "") -> Text:
    """Return user text without markup and without control characters."""
    return Text(text.translate(CONTROL_CHARACTERS), style=style)


def _feedback_values(row: Feedback) -> str:
    """Format all values of a feedback record in one line."""
    values = [
        *([] if row.thumb is None else [{"up": "👍", "down": "👎"}.get(row.thumb, row.thumb)]),
        *([] if row.score is None else [f"score {row.score:g}"]),
        *([] if row.preferred_over is None else [f"better than {row.preferred_over}"]),
        *([] if row.correction is None else [f"should be: {shorten(row.correction)}"]),
        *([] if row.comment is None else [f"“{shorten(row.comment)}”"]),
        *([f"{key}={value}" for key, value in (row.metadata or {}).items()]),
        *(["(asked for)"] if row.asked else []),
        *([] if row.erased_at is None else ["(words erased)"]),
    ]
    return " · ".join(values)


def _prompt_rows(row: Interaction) -> list[tuple[str, str]]:
    """Return the role and text of each message of a prompt."""
    if row.messages is not None:
        return [(str(message.get("role")), _text(message.get("content"))) for message in row.messages]
    return [("prompt", prompt if isinstance(prompt, str) else str(prompt)) for prompt in row.prompt or ()]


def _text(content: object) -> str:
    """Return the text of a message's content: a string, or a list of text parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _arm(row: Feedback | Interaction) -> str:
    return "–" if row.experiment is None else f"{row.experiment}/{row.arm}"


def _yes_or_no(logged: bool) -> str:
    return "yes" if logged else "no"


def _days(days: float | None, otherwise: str) -> str:
    return otherwise if days is None else f"{days:g} days"


def format_time(moment: datetime) -> str:
    """Format a time in the local time zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def format_age(since: datetime) -> str:
    """Format the time since ``since`` in its largest unit: ``3 d``, ``5 h``, ``12 min``, ``now``."""
    seconds = (datetime.now(UTC) - since).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "now"


def format_size(num_bytes: int) -> str:
    """Format a number of bytes with a decimal unit: ``4.9 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"


def _move(happened: AdapterEvent) -> str:
    if happened.from_version is None:
        return _or_dash(happened.to_version)
    return f"{happened.from_version} → {_or_dash(happened.to_version)}"


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=place == 0)  # names are copied from here: never in two lines
    for column in right:
        table.add_column(column, justify="right", overflow="fold")
    return table
