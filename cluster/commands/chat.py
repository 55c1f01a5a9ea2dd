"""`dray chat`."""

import time
from typing import Annotated

import typer
from rich.markup import escape

from cluster.client import ServerError, stream_chat
from cluster.commands.console import Config, Key, StateDir, err, found, out


def chat(
    url: Annotated[str | None, typer.Option(help="Base URL of another server, ending in /v1.")] = None,
    key: Key = "",
    model: Annotated[str | None, typer.Option(help="Model to ask; the first that is served if not given.")] = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Chat in the terminal; thinking is dimmed. An empty line ends it."""
    if url is None or model is None:
        record = found(config, state_dir)
        url, model = url or record.url, model or record.models[0]
    turns: list[dict[str, str]] = []
    while True:
        try:
            question = out.input("[bold]you>[/bold] ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not question:
            return
        turns.append({"role": "user", "content": question})
        try:
            turns.append({"role": "assistant", "content": _answer(url, key, model, turns)})
        except ServerError as error:
            turns.pop()
            err.print(f"[red]error:[/red] {escape(str(error))}")
        except KeyboardInterrupt:
            turns.pop()
            out.print("\n(stopped)")


def _answer(url: str, key: str, model: str, turns: list[dict[str, str]]) -> str:
    began, text, usage = time.monotonic(), "", None
    for delta in stream_chat(url, key, model, turns):
        out.print(delta.reasoning, end="", style="dim", markup=False, highlight=False, soft_wrap=True)
        if delta.text and not text:
            out.print()
        out.print(delta.text, end="", markup=False, highlight=False, soft_wrap=True)
        text, usage = text + delta.text, delta.usage or usage
    out.print()
    if usage:
        out.print(
            f"({usage['completion_tokens']} tokens, {time.monotonic() - began:.1f} s)",
            style="dim",
            highlight=False,
        )
    return text
