"""A file beside a question: its name, and its text as the prompt has it."""

import re
from typing import Any

import msgspec

from deployments.pages.file_reader import MAX_CHARACTERS

_MAX_NAME = 120
_FENCE = re.compile("`{3,}")


class File(msgspec.Struct, frozen=True):
    """A file's name, on one line, and its text."""

    name: str
    text: str

    def above(self, question: str) -> str:
        """The prompt: the file in a block of code, as Markdown writes it, and below it the question.

        No line of the text ends the block, whose marks are longer than all in it. Control tokens are text wherever a
        client writes them (`deployments.generation.control_tokens`).
        """
        fence = "`" * max((len(marks) + 1 for marks in _FENCE.findall(self.text)), default=3)
        return f"File {self.name}:\n\n{fence}\n{self.text}\n{fence}\n\n{question}"


def plain_name(name: str) -> str:
    """The name without what is no part of a name: folders, line ends, control characters, marks of code."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(sign for sign in last if sign.isprintable() and sign != "`")
    return " ".join(shown.split())[-_MAX_NAME:] or "file"


def attached(text: Any) -> File | None:
    """The file that a browser sent beside a question; None if there is none."""
    try:
        file = msgspec.json.decode(text or "", type=File)
    except (msgspec.DecodeError, TypeError):
        return None
    return File(plain_name(file.name), file.text[:MAX_CHARACTERS])
