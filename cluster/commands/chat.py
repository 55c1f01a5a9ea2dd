"""`dray chat`."""

import time
from typing import Annotated

import typer
from rich.markup import escape

from cluster.client import ServerError, stream_chat
from cluster.commands.console import Config, Key, StateDir, err, out, running_record


def chat(
    url: Annotated[str | None, typer.Option(help="Base URL of another server, ending in /v1.")] = None,
    key: Key = "",
    model: Annotated[str | None, typer.Option(help="Model to ask. Default: the first one served.")] = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Chat in the terminal. Thinking is dimmed; an empty line ends the chat."""
    if url is None or model is None:
        record = running_record(config, state_dir)
        url, model = url or record.url, model or record.models[0]
    messages: list[dict[str, str]] = []
    while True:
        try:
            question = out.input("[bold]you>[/bold] ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not question:
            return
        messages.append({"role": "user", "content": question})
        try:
            messages.append({"role": "assistant", "content": _answer(url, key, model, messages)})
        except ServerError as error:
            messages.pop()
            err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
        except KeyboardInterrupt:
            messages.pop()
            out.print("(stopped)")


def _answer(url: str, key: str, model: str, messages: list[dict[str, str]]) -> str:
    """Prints the answer as it arrives; returns its text, without the thinking."""
    start, text, tokens = time.monotonic(), "", 0
    try:
        for delta in stream_chat(url, key, model, messages):
            out.print(delta.reasoning, end="", style="dim", markup=False, highlight=False, soft_wrap=True)
            if delta.text and not text:
                out.print()
            out.print(delta.text, end="", markup=False, highlight=False, soft_wrap=True)
            text, tokens = text + delta.text, delta.tokens or tokens
    finally:
        out.print()
    if tokens:
        out.print(f"({tokens} tokens, {time.monotonic() - start:.1f} s)", style="dim", highlight=False)
    return text
