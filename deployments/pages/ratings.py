"""What people think of answers."""

from typing import Any

import gradio as gr
import msgspec

from deployments.pages.answering import reason
from deployments.pages.client import ApiRefused, ChatClient, Rating, ServerUnreachable
from deployments.pages.conversation import read
from deployments.pages.display import turn_of
from deployments.pages.i18n import Texts
from deployments.pages.language import texts_of


class Ratings:
    """Thumbs up and down, and a word of why."""

    def __init__(self, api: ChatClient) -> None:
        self._api = api

    async def rate(self, text: str, key: str | None, event: gr.LikeData, request: gr.Request) -> tuple[str, Any, str]:
        """Keeps a rating, sends it, and asks why an answer was bad."""
        conversation, texts = read(text), texts_of(request)
        index = turn_of(conversation, texts, int(event.index))
        answer = conversation.turns[index].answer if conversation.turns else None
        if answer is None:
            return text, gr.update(visible=False), ""
        rating = {True: "up", False: "down"}.get(event.liked, "")
        turns = list(conversation.turns)
        turns[index] = turns[index].with_shown(msgspec.structs.replace(answer, rating=rating))
        if rating:
            await self._send(Rating(answer.progress.id, rating), key, texts)
        kept = msgspec.structs.replace(conversation, turns=tuple(turns)).json()
        return kept, gr.update(visible=rating == "down"), answer.progress.id

    async def explain(self, why: str, rated: str, key: str | None, request: gr.Request) -> tuple[str, Any]:
        """Sends why an answer was bad."""
        texts = texts_of(request)
        if why.strip() and rated and await self._send(Rating(rated, "down", reason=why.strip()), key, texts):
            gr.Info(texts.thanks, title=texts.notice)
        return "", gr.update(visible=False)

    async def _send(self, rating: Rating, key: str | None, texts: Texts) -> bool:
        """Sends a rating; whether the server took it. One that keeps no ratings is no failure."""
        try:
            await self._api.rate(rating, (key or "").strip())
        except ApiRefused as refusal:
            if refusal.status != 404:
                gr.Warning(reason(refusal, key or "", texts), title=texts.problem)
            return False
        except ServerUnreachable as error:
            gr.Warning(reason(error, key or "", texts), title=texts.problem)
            return False
        return True
