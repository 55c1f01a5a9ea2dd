"""What `dray run` and `dray chat` share: which model to ask, and printing an answer as it arrives."""

import re
import time
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console

from cluster.client import ServerError, served_models, stream_chat
from cluster.commands.console import Config, StateDir, fail, printable, running_record

_WIDE = r"\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
_CLOSING = "。,、;:?!)」』】》"
_PIECES = re.compile(rf"[^\S\n]+|\n|[{_WIDE}][{_CLOSING}]*|[^\s{_WIDE}]+")
"""Blanks, a line's end, a character of a script without spaces with the marks that end after it, or a word."""


@dataclass(frozen=True, slots=True)
class Server:
    """Whom to ask, and which of its models. models: all that it names; empty where it does not say."""

    url: str
    key: str
    model: str
    models: tuple[str, ...]


@dataclass(slots=True)
class Answer:
    """An answer. finish_reason: empty where the server does not say. tokens: of text and thinking; 0 likewise."""

    thinking: str = ""
    text: str = ""
    finish_reason: str = ""
    tokens: int = 0
    seconds: float = 0.0


def find_server(url: str | None, key: str, model: str | None, state_dir: StateDir, config: Config) -> Server:
    """The running Dray, or the one at this URL; ends the command if it has not the model."""
    base = (url or running_record(config, state_dir).url).rstrip("/")
    try:
        models = served_models(base, key)
    except ServerError as error:
        raise fail(str(error)) from None
    if model is None and not models:
        raise fail(f"{base} does not say which models it has; give one with --model")
    chosen = model or models[0]
    if models and chosen not in models:
        raise fail(unknown_model(chosen, models))
    return Server(base, key, chosen, models)


def unknown_model(name: str, models: tuple[str, ...]) -> str:
    """What to say of a model that is not there."""
    return f"{name} is not served here; there is {', '.join(models)}"


class WordWriter:
    """Writes a stream of text to a terminal and breaks lines between words.

    A word is written once it is complete. In a pipe the text goes through as it is.
    """

    def __init__(self, console: Console, style: str = "") -> None:
        self._console, self._style = console, style
        self._wraps = console.file.isatty()
        self._column, self._blanks, self._word = 0, "", ""

    def write(self, text: str) -> None:
        if not self._wraps:
            self._print(text)
            return
        *complete, self._word = _PIECES.findall(self._word + printable(text)) or [""]
        for piece in complete:
            self._place(piece)
        if cell_len(self._word) > self._console.width:
            self._place(self._word)
            self._word = ""

    def end(self) -> None:
        """Writes what is left, and ends the line."""
        self._place(self._word)
        self._word = ""
        if self._column or not self._wraps:
            self._print("\n")
        self._column = 0

    def _place(self, piece: str) -> None:
        width = cell_len(piece)
        if piece == "\n":
            self._print("\n")
            self._column, self._blanks = 0, ""
        elif piece.isspace():
            self._blanks = piece
        elif piece:
            gap = self._blanks
            if self._column and self._column + len(gap) + width > self._console.width:
                self._print("\n")
                self._column, gap = 0, ""
            self._print(gap + piece)
            self._column, self._blanks = self._column + len(gap) + width, ""

    def _print(self, text: str) -> None:
        self._console.print(text, end="", style=self._style, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


def ask(
    server: Server, messages: list[dict[str, str]], words: WordWriter | None = None, thoughts: WordWriter | None = None
) -> Answer:
    """The answer, which is also written as it arrives. Raises ServerError, KeyboardInterrupt."""
    began, answer = time.monotonic(), Answer()
    writing: WordWriter | None = None
    try:
        for delta in stream_chat(server.url, server.key, server.model, messages):
            for part, writer in ((delta.reasoning, thoughts), (delta.text, words)):
                if part and writer is not None:
                    if writing is not writer and writing is not None:
                        writing.end()
                    writing = writer
                    writer.write(part)
            answer.thinking += delta.reasoning
            answer.text += delta.text
            answer.tokens = delta.tokens or answer.tokens
            answer.finish_reason = delta.finish_reason or answer.finish_reason
    finally:
        if writing is not None:
            writing.end()
    answer.seconds = time.monotonic() - began
    return answer
