"""The models that a person may choose, and the sampling that each comes with."""

from typing import Any

import gradio as gr

from deployments.pages.client import ApiRefused, ChatClient, PageModel, ServerUnreachable
from deployments.pages.fields import default_updates
from deployments.pages.language import texts_of


class Models:
    """The models of a Dray, as its API lists them."""

    def __init__(self, api: ChatClient) -> None:
        self._api = api

    async def choose(self, model: str | None, key: str | None) -> tuple[Any, Any]:
        """Updates of the fields for the model and the key: the models to choose from, and whether a key is required."""
        models, needs_key = await self.known(key)
        names = [entry.name for entry in models]
        if not names:
            return gr.skip(), gr.update(visible=True) if needs_key else gr.skip()
        return gr.update(choices=names, value=model if model in names else names[0]), gr.skip()

    async def defaults(self, model: str | None, key: str | None, request: gr.Request) -> tuple[Any, Any]:
        """Updates of the temperature and top-p for a model that was just chosen."""
        models, _ = await self.known(key)
        chosen = next((entry for entry in models if entry.name == model), None)
        return default_updates(chosen, texts_of(request)) if chosen else (gr.skip(), gr.skip())

    async def known(self, key: str | None) -> tuple[list[PageModel], bool]:
        """The models to choose from, and whether a key is required that is not there."""
        try:
            return await self._api.models((key or "").strip()), False
        except ApiRefused as refusal:
            return [], refusal.status == 401
        except ServerUnreachable:
            return [], False
