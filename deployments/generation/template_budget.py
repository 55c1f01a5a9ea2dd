"""What one render of a chat template may take: steps, computing time, and the sizes of texts and values."""

import time
from collections.abc import Mapping
from contextvars import ContextVar

from jinja2 import TemplateError

_MAX_STEPS = 2_000_000
_STEPS_BETWEEN_LOOKS = 50
_MAX_SECONDS = 2.0
"""Of computing time, for what is no step, such as a comparison of long texts in a loop: each takes milliseconds. A real
template takes some for megabytes of messages."""
MAX_CHARACTERS = 20_000_000
"""Of a text, and of the whole prompt: ten times what a request may bring."""
_CHARACTERS_PER_STEP = 1024
_MEMBERS_PER_STEP = 16
_MAX_MEMBERS = 500_000
"""Of a value, with all that it contains, counted as often as it contains it."""


class TemplateTooDear(TemplateError):
    """A template that takes more than any real one does."""


class Budget:
    """What one render may still take."""

    def __init__(self) -> None:
        self._steps = _MAX_STEPS
        self._until_look = 0
        self._ends_at = time.thread_time() + _MAX_SECONDS

    def take(self, steps: int = 1) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise TemplateTooDear("it takes too many steps")
        self._until_look -= steps
        if self._until_look < 0:
            self._until_look = _STEPS_BETWEEN_LOOKS
            if time.thread_time() > self._ends_at:
                raise TemplateTooDear(f"it takes more than {_MAX_SECONDS:g} seconds")

    def take_text(self, characters: int) -> None:
        """Before a text of this length is made."""
        if characters > MAX_CHARACTERS:
            raise TemplateTooDear(f"it makes a text of more than {MAX_CHARACTERS} characters")
        self.take(1 + characters // _CHARACTERS_PER_STEP)

    def take_value(self, value: object) -> None:
        """Before a value is turned into text, compared or contained in another."""
        pending, members, characters = [value], 0, 0
        while pending:
            value = pending.pop()
            members += 1
            if isinstance(value, str):
                characters += len(value)
            elif isinstance(value, Mapping):
                pending += value.keys()
                pending += value.values()
            elif isinstance(value, list | tuple | set | frozenset):
                pending += value
            if members + len(pending) > _MAX_MEMBERS:
                raise TemplateTooDear(f"it makes a value of more than {_MAX_MEMBERS} parts")
        self.take(members // _MEMBERS_PER_STEP)
        self.take_text(characters)


current_budget: ContextVar[Budget] = ContextVar("template budget")
