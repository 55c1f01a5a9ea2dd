"""A conversation of the chat page, as the browser keeps it: questions, and the answers to each."""

from typing import Any

import msgspec

from deployments.pages.attachment import File
from deployments.pages.client import Progress


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer, or as much of it as arrived.

    model: its name. limit: the token limit it was asked with. error: why there is no answer, or no more of it.
    stopped: the person stopped it. rating: "up", "down" or empty. source: the name of the file that it is about;
    passages: what it quotes of that file, or rests on.
    """

    model: str = ""
    progress: Progress = Progress()
    limit: int = 0
    error: str = ""
    stopped: bool = False
    rating: str = ""
    source: str = ""
    passages: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        return bool(self.progress.finish or self.error or self.stopped)


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question and its answers, of which one is shown. shown: its index. file: what was attached."""

    question: str
    answers: tuple[Answer, ...] = ()
    shown: int = 0
    file: File | None = None

    @property
    def prompt(self) -> str:
        """The question as the model reads it."""
        return self.file.above(self.question) if self.file else self.question

    @property
    def answer(self) -> Answer | None:
        """The answer that is shown."""
        return self.answers[min(max(self.shown, 0), len(self.answers) - 1)] if self.answers else None

    def with_answer(self, answer: Answer) -> "Turn":
        """The turn with one answer more, which is shown."""
        return msgspec.structs.replace(self, answers=(*self.answers, answer), shown=len(self.answers))

    def with_shown(self, answer: Answer) -> "Turn":
        """The turn with another version of the answer that is shown."""
        answers = tuple(answer if index == self.shown else other for index, other in enumerate(self.answers))
        return msgspec.structs.replace(self, answers=answers)

    def turned(self, step: int) -> "Turn":
        """The turn that shows the next answer, or with -1 the previous one."""
        return msgspec.structs.replace(self, shown=min(max(self.shown + step, 0), max(len(self.answers) - 1, 0)))


class Conversation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Turns, oldest first. id: a name that the browser gave it."""

    id: str = ""
    turns: tuple[Turn, ...] = ()

    def with_last(self, turn: Turn) -> "Conversation":
        """The conversation with another version of its last turn."""
        return msgspec.structs.replace(self, turns=(*self.turns[:-1], turn))

    def asking(self, question: str, file: File | None = None) -> "Conversation":
        """The conversation with a new question, and the file beside it."""
        return msgspec.structs.replace(self, turns=(*self.turns, Turn(question, file=file)))

    def edited(self, question: str, index: int) -> "Conversation":
        """The conversation with another question in this turn, and none after it. Its file stays."""
        file = self.turns[index].file if index < len(self.turns) else None
        return msgspec.structs.replace(self, turns=self.turns[:index]).asking(question, file)

    @property
    def file(self) -> File | None:
        """The file that the last question is about: its own, or the last one before it."""
        return next((turn.file for turn in reversed(self.turns) if turn.file), None)

    def messages(self, system: str) -> tuple[dict[str, str], ...]:
        """The conversation as the API takes it, up to its last question; without thinking and unanswered questions.

        system: the system prompt; may be empty.
        """
        messages = [{"role": "system", "content": system}] if system else []
        for turn in self.turns[:-1]:
            if turn.answer is not None and turn.answer.progress.text:
                messages.append({"role": "user", "content": turn.prompt})
                messages.append({"role": "assistant", "content": turn.answer.progress.text})
        messages.extend({"role": "user", "content": turn.prompt} for turn in self.turns[-1:])
        return tuple(messages)

    def json(self) -> str:
        """The conversation as JSON, which `read` reads."""
        return msgspec.json.encode(self).decode()


def read(text: Any) -> Conversation:
    """The conversation that a browser sent; an empty one if it is none."""
    try:
        return msgspec.json.decode(text or "{}", type=Conversation)
    except (msgspec.DecodeError, TypeError):
        return Conversation()
