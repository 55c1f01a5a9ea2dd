"""`dray chat`."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated

import typer

from cluster.client import ServerError
from cluster.commands.answering import Server, WordWriter, ask, find_server, unknown_model
from cluster.commands.console import Config, Key, StateDir, fail, load_settings, out
from cluster.private_files import private_folder

_PROMPT = "you> "
_HISTORY_FILE = "chat-history"
_HELP = """\
/model [NAME]   show or change the model; the conversation goes on
/system [TEXT]  show or change the system prompt
/clear          begin a new conversation
/help           show this
/exit           end the chat, as Ctrl-D does
Ctrl-C stops an answer. Up and Down bring back earlier questions, Ctrl-R searches them."""


@dataclass(slots=True)
class Conversation:
    """A conversation, and whom it is with. turns: questions and answers in turn."""

    server: Server
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    failed: bool = False

    def ask(self, question: str) -> None:
        """Asks, and prints the answer. A question without an answer is not kept."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.turns, {"role": "user", "content": question}]
        try:
            answer = ask(self.server, first + asked, WordWriter(out), WordWriter(out, "dim"))
        except ServerError as error:
            self.failed = True
            fail(str(error))
            return
        except KeyboardInterrupt:
            out.print("(stopped)", highlight=False)
            return
        self.turns = [*asked, {"role": "assistant", "content": answer.text}]
        if answer.tokens:
            cut = ", cut at the limit of tokens" if answer.finish_reason == "length" else ""
            out.print(f"({answer.tokens} tokens, {answer.seconds:.1f} s{cut})", style="dim", highlight=False)

    def command(self, line: str) -> None:
        """Carries out a line that begins with a slash."""
        name, _, value = line.partition(" ")
        commands: dict[str, Callable[[str], str]] = {
            "/model": self._model,
            "/system": self._system,
            "/clear": self._clear,
            "/help": lambda _: _HELP,
        }
        known = commands.get(name, lambda _: f"{name} is no command; /help lists them")
        out.print(known(value.strip()), style="dim", markup=False, highlight=False)

    def _model(self, name: str) -> str:
        models = self.server.models
        if not name:
            others = f"; there is {', '.join(models)}" if models else ""
            return f"{self.server.model}{others}"
        if models and name not in models:
            return unknown_model(name, models)
        self.server = replace(self.server, model=name)
        return f"asking {name}"

    def _system(self, text: str) -> str:
        if text:
            self.system = text
        return f"system prompt: {self.system}" if self.system else "no system prompt"

    def _clear(self, _: str) -> str:
        self.turns = []
        return "a new conversation"


def chat(
    url: Annotated[str | None, typer.Option(help="Base URL of another server, ending in /v1.")] = None,
    key: Key = "",
    model: Annotated[str | None, typer.Option(help="Model to ask. Default: the first one served.")] = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Chat in the terminal; /help lists what else can be typed. Ctrl-C stops an answer, Ctrl-D ends the chat.

    In a pipe each line is a question. Exit code 1: one of them has no answer.
    """
    conversation = Conversation(find_server(url, key, model, state_dir, config), system)
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    read: Callable[[], str] = _line_editor(state_dir, config) if on_terminal else sys.stdin.readline
    if on_terminal:
        out.print(f"{conversation.server.model}; /help for help", style="dim", highlight=False, markup=False)
    while True:
        try:
            line = read()
        except EOFError:
            break
        except KeyboardInterrupt:
            if not on_terminal:
                break
            continue  # an empty line, as in a shell
        text = line.strip()
        if (not line and not on_terminal) or text == "/exit":
            break
        if text.startswith("/"):
            conversation.command(text)
        elif text:
            conversation.ask(text)
    if conversation.failed and not on_terminal:
        raise typer.Exit(1)


def _line_editor(state_dir: StateDir, config: Config) -> Callable[[], str]:
    """Reads lines with editing, and with the questions of earlier chats, which only this user can read."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    folder = private_folder(load_settings(config, state_dir=state_dir).settings.data_dir)
    file = folder / _HISTORY_FILE
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600))
    session: PromptSession[str] = PromptSession(history=FileHistory(str(file)), reserve_space_for_menu=0)
    return lambda: session.prompt(_PROMPT)
