"""Unchanged clients of others against a real server: ``python -m tests.conformance`` writes docs/compatibility.md.

Each client's script in ``scripts/`` is what a user would write, and runs in an environment of its own. With ``--check``
the page is left alone, and the run fails where a cell has become worse.

To take newer clients, install them into an environment of their own, and write what ``pip freeze`` says into their file
in ``requirements/``; for Node, change ``node/package.json`` and run ``npm install --package-lock-only`` beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.conformance import table
from tests.conformance.clients import BUSY, CLIENTS, FEATURES, Client
from tests.conformance.environments import Environment
from tests.conformance.run import Result, run_script, script_of
from tests.conformance.server import ADAPTER, KEY, filled, running_server


def run_all(clients: tuple[Client, ...] = CLIENTS) -> list[Result]:
    """Every feature of these clients against one server, in the order of the tables."""
    environments = {client.environment: Environment(client.environment) for client in clients}
    for environment in environments.values():
        environment.make()
    usual = [feature for features in FEATURES.values() for feature in features if feature != BUSY]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as (server, base):

        def run(client: Client, features: list[str]) -> None:
            command = environments[client.environment].command(script_of(client))
            told = run_script(client, command, features, url=server.url, key=KEY, model=ADAPTER, tokenizer=base.path)
            for result in told:
                print("ok " if result.ok else "NO ", client.title, "|", result.feature, "|", result.detail, flush=True)
            results.extend(told)

        for client in clients:
            run(client, usual)
        with filled(server):
            for client in clients:
                run(client, [BUSY])
    order = [client.title for client in CLIENTS]
    return sorted(results, key=lambda result: order.index(result.client))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="Other clients, tried.")
    parser.add_argument("--only", action="append", metavar="CLIENT", help="these alone; the page is left alone")
    parser.add_argument("--check", action="store_true", help="leave the page alone; fail if a cell got worse")
    arguments = parser.parse_args()
    if arguments.only:
        run_all(tuple(client for client in CLIENTS if client.title in arguments.only))
        return
    results = run_all()
    if not arguments.check:
        table.write(results)
    elif worse := table.worse(table.read(), table.cells_of(results)):
        sys.exit("\n".join(worse))


if __name__ == "__main__":
    main()
