"""``graftwork chat``: talk to a model on a terminal, or answer one prompt in a pipe."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftwork.clients.cli.context import CONTROL_CHARACTERS, CommandContext, api_command, print_error
from graftwork.clients.errors import GraftworkClientError

if TYPE_CHECKING:
    from graftwork.clients.client import Stream
    from graftwork.clients.endpoints.generation import ChatOptions
    from graftwork.clients.types.generation import ChatDelta

HELP = """\
/adapter NAME  let another adapter, version or alias answer from here on
/reset         forget what was said
/quit          leave, like Ctrl-D
Ctrl-C stops the answer that is being written."""


@api_command
def chat(
    remote: CommandContext,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="An adapter, version or alias. Default: the base.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Send this, print the answer, leave.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message to begin with.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = None,
) -> None:
    """Chat with a model: on a terminal, with --message, or with a prompt from a pipe.

    On a terminal /adapter NAME switches, /quit leaves, Ctrl-C stops an answer.
    """
    interactive = message is None and sys.stdin.isatty() and sys.stdout.isatty()
    if interactive and remote.json:
        raise typer.BadParameter("needs --message, or a prompt from a pipe.", param_hint="--json")
    conversation = Conversation(
        remote,
        model or remote.client.models().data[0].id,
        system,
        {"temperature": temperature, "max_tokens": max_tokens},
    )
    if interactive:
        conversation.run_interactive()
    else:
        conversation.answer_once(sys.stdin.read() if message is None else message)


class Conversation:
    """The messages so far, and the model that answers next."""

    def __init__(self, remote: CommandContext, model: str, system: str | None, options: ChatOptions) -> None:
        self._remote = remote
        self._model = model
        self._system = system
        self._options = options
        self._messages: list[dict[str, Any]] = []
        self._reset()

    def answer_once(self, prompt: str) -> None:
        """Print the answer to one prompt; errors and Ctrl-C end the command."""
        if not prompt.strip():
            raise typer.BadParameter("there is nothing to send.", param_hint="--message")
        self._messages.append({"role": "user", "content": prompt})
        if self._remote.json:
            completion = self._remote.client.chat(self._model, self._messages, **self._options)
            self._remote.print_result(completion, lambda: completion.text)
            return
        try:
            self._write(self._stream(), [])
        finally:
            typer.echo()

    def run_interactive(self) -> None:
        """Read and answer messages until /quit or the end of input. Errors are printed, and the chat continues."""
        _edit_lines()
        self._switch(self._model)
        self._remote.print_message("/help lists what else can be typed.")
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                typer.echo()
                return
            except KeyboardInterrupt:
                self._remote.print_message("\n/quit or Ctrl-D leaves.")
                continue
            if line == "/quit":
                return
            try:
                self._run_command(line) if line.startswith("/") else self._reply(line)
            except GraftworkClientError as error:
                print_error(error)

    def _run_command(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        match command, argument.strip():
            case "/adapter", "":
                self._remote.print_message(
                    "Name one of: " + ", ".join(model.id for model in self._remote.client.models())
                )
            case "/adapter", name:
                self._switch(name)
            case "/reset", _:
                self._reset()
            case _:
                self._remote.print_message(HELP)

    def _switch(self, name: str) -> None:
        model = self._remote.client.model(name)
        self._model = name
        self._remote.print_message(
            f"{name} ({model.root}) answers." if model.root not in (None, name) else f"{name} answers."
        )

    def _reset(self) -> None:
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def _reply(self, line: str) -> None:
        """Print an answer as it is streamed. An answer that Ctrl-C or an error interrupts stays in the conversation; a
        message without any answer is removed."""
        if not line:
            return
        self._messages.append({"role": "user", "content": line})
        written: list[str] = []
        started = time.monotonic()
        stream = self._stream()
        try:
            self._write(stream, written)
        except KeyboardInterrupt:
            self._remote.print_message("\n(stopped)")
        else:
            typer.echo()
            self._print_speed(stream, time.monotonic() - started)
        finally:
            if answer := "".join(written):
                self._messages.append({"role": "assistant", "content": answer})
            else:
                self._messages.pop()

    def _stream(self) -> Stream[ChatDelta]:
        return self._remote.client.chat_stream(self._model, self._messages, **self._options)

    def _write(self, stream: Stream[ChatDelta], written: list[str]) -> None:
        plain = not sys.stdout.isatty()
        with stream:
            for delta in stream:
                written.append(delta.text)
                sys.stdout.write(delta.text if plain else delta.text.translate(CONTROL_CHARACTERS))
                sys.stdout.flush()

    def _print_speed(self, stream: Stream[ChatDelta], seconds: float) -> None:
        if stream.usage is not None:
            tokens = stream.usage.completion_tokens
            pace = f"{tokens} tokens, {tokens / seconds:.1f}/s"
            self._remote.err.print(f"{stream.adapter} · {pace}", style="dim", markup=False)


def _edit_lines() -> None:
    """Enable arrow keys and history in ``input``, if the platform supports them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
