"""A request for a generated answer, ready to be answered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.responses import Response

from deployments.api.response_keeper import ResponseKeeper
from deployments.api.responses import AnswerWriter, replay, replay_and_keep
from deployments.common.types import GenerationResult
from deployments.generation.context import RequestContext
from deployments.generation.endpoint import ModelEndpoint


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """An authenticated and parsed request, whose answer is not stored. Nothing is charged for it yet.

    contexts: one for each of its prompts. headers: of its response, whatever the answer is. choices: the models that
    may answer, the preferred one first. at: the same request for another of them. keep: stores the response; None: it
    is not stored. background: whether its client does not wait for it.
    """

    contexts: tuple[RequestContext, ...]
    writer: AnswerWriter
    stream: bool
    headers: Mapping[str, str]
    choices: tuple[ModelEndpoint, ...]
    at: Callable[[ModelEndpoint], "PreparedRequest"]
    keep: ResponseKeeper | None = None
    background: bool = False

    async def replay(self, stored: GenerationResult, headers: dict[str, str]) -> Response:
        """The response with this answer."""
        headers = {**headers, **self.headers}
        if self.keep is not None:
            return await replay_and_keep(stored, self.writer, self.stream, headers, self.keep)
        return replay(stored, self.writer, self.stream, headers)
