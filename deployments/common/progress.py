"""How far a request has come, noted while it is served and read when it ends."""

from dataclasses import dataclass

from deployments.common.errors import shortened
from deployments.common.types import Usage

_MAX_TEXT = 500
"""Characters."""


@dataclass(slots=True)
class RequestProgress:
    """What administrators see of a request besides its status.

    cache: how it got its answer; empty: not yet. queue_s: seconds that it waited for an engine. first_token_s: seconds
    from its start to its first token. code: of its error; empty: none. question, answer: how they begin, if the
    settings keep texts.
    """

    cache: str = ""
    stream: bool = False
    queue_s: float | None = None
    first_token_s: float | None = None
    prompt: int = 0
    completion: int = 0
    code: str = ""
    question: str = ""
    answer: str = ""

    def count(self, usage: Usage) -> None:
        """Notes the tokens of its answer."""
        self.prompt, self.completion = usage.prompt_tokens, usage.completion_tokens

    def keep_texts(self, question: str, answer: str) -> None:
        """Keeps how both begin."""
        self.question, self.answer = shortened(question, _MAX_TEXT), shortened(answer, _MAX_TEXT)
