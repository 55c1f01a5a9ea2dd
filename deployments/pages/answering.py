"""Answers to the questions of open pages: one at a time for each page, which the person may stop."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import msgspec

from deployments.pages.client import ApiRefused, ChatClient, ChatQuery, Progress, ServerUnreachable
from deployments.pages.conversation import Answer, Conversation
from deployments.pages.i18n import Texts
from deployments.pages.passages import passages
from deployments.pages.refusals import refusal_text

_SAVE_INTERVAL_S = 1.0


class Answering:
    """The answers that are on their way, by the session of their page."""

    def __init__(self, api: ChatClient) -> None:
        self._api = api
        self._stops: dict[str, asyncio.Event] = {}

    def busy(self, session: str) -> bool:
        """Whether an answer is on its way to this page."""
        return session in self._stops

    def stop(self, session: str) -> None:
        """Ends the answer that is on its way to this page, if there is one. What has arrived of it stays."""
        if stop := self._stops.get(session):
            stop.set()

    async def answer(
        self, session: str, conversation: Conversation, query: ChatQuery, key: str, texts: Texts
    ) -> AsyncGenerator[Conversation, None]:
        """The conversation, with an answer to its last question that grows.

        Closing the generator cancels the answer.
        """
        stop = self._stops[session] = asyncio.Event()
        answer = Answer(query.model, limit=query.max_tokens or 0)
        turn = conversation.turns[-1].with_answer(answer)
        try:
            yield conversation.with_last(turn)
            try:
                async with aclosing(until(stop, self._api.ask(query, key))) as updates:
                    async for progress in updates:
                        answer = msgspec.structs.replace(answer, progress=progress)
                        yield conversation.with_last(turn.with_shown(answer))
                if not answer.ended:
                    answer = msgspec.structs.replace(answer, stopped=True)
                answer = await _with_passages(answer, conversation)
            except (ApiRefused, ServerUnreachable) as error:
                answer = msgspec.structs.replace(answer, error=reason(error, key, texts))
            yield conversation.with_last(turn.with_shown(answer))
        finally:
            del self._stops[session]


async def _with_passages(answer: Answer, conversation: Conversation) -> Answer:
    """The answer with the parts of the conversation's file that it quotes or rests on."""
    if (file := conversation.file) is None:
        return answer
    found = await asyncio.to_thread(passages, file.text, answer.progress.text)
    return msgspec.structs.replace(answer, source=file.name, passages=found)


class SaveInterval:
    """Says when the browser should save a growing answer: about once a second."""

    def __init__(self) -> None:
        self._saved_s = 0.0

    def due(self) -> bool:
        """Whether it should now."""
        now = time.monotonic()
        if now - self._saved_s < _SAVE_INTERVAL_S:
            return False
        self._saved_s = now
        return True


async def until(stop: asyncio.Event, updates: AsyncGenerator[Progress, None]) -> AsyncGenerator[Progress, None]:
    """The updates, until the event is set."""

    async def following() -> Progress | None:
        return await anext(updates, None)

    stopped = asyncio.ensure_future(stop.wait())
    upcoming: asyncio.Future[Progress | None] = stopped.get_loop().create_future()
    try:
        while not stop.is_set():
            upcoming = asyncio.ensure_future(following())
            await asyncio.wait((upcoming, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not upcoming.done() or (progress := upcoming.result()) is None:
                return
            yield progress
    finally:
        stopped.cancel()
        upcoming.cancel()
        with suppress(asyncio.CancelledError, ApiRefused, ServerUnreachable):
            await upcoming
        await updates.aclose()


def reason(error: ApiRefused | ServerUnreachable, key: str, texts: Texts) -> str:
    """Why there is no answer, for the person who asked."""
    if isinstance(error, ServerUnreachable):
        return texts.lost if error.mid_answer else texts.unreachable
    if error.status == 401:
        return texts.key_refused if key else texts.key_needed
    return texts.refused.format(message=refusal_text(error, texts))
