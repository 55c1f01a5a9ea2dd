"""`dray run`."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from cluster.client import ServerError
from cluster.commands.answering import WordWriter, ask, find_server
from cluster.commands.console import AsJson, Config, Key, StateDir, err, fail, out, print_json

_INTERRUPTED = 130


def run(
    question: Annotated[
        str, typer.Argument(help="The question. Text on standard input goes before it, or is the question without one.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="Model to ask. Default: the first one served.")] = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    url: Annotated[str | None, typer.Option(help="Base URL of another server, ending in /v1.")] = None,
    key: Key = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Ask one question and print the answer. Thinking goes to standard error.

    Exit code 1: there is no answer, or it was cut at the token limit; 130: stopped by Ctrl-C.
    """
    with err.status("reading standard input"):
        beside = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    prompt = "\n\n".join(part for part in (beside, question) if part)
    if not prompt:
        raise fail('there is no question; give one: dray run "…", or through a pipe')
    server = find_server(url, key, model, state_dir, config)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    try:
        writers = () if as_json else (WordWriter(out), WordWriter(err, "dim"))
        answer = ask(server, messages, *writers)
    except ServerError as error:
        raise fail(str(error)) from None
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        print_json({"model": server.model, **asdict(answer)})
    if answer.finish_reason == "length":
        raise fail("the answer was cut at the limit of tokens")
