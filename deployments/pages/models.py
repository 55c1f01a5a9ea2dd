"""The models that a person may choose, and the sampling that each comes with."""

from typing import Any

import gradio as gr

from deployments.pages.client import ApiRefused, ChatClient, PageModel, ServerUnreachable
from deployments.pages.examples import examples
from deployments.pages.fields import default_updates
from deployments.pages.i18n import Texts
from deployments.pages.language import texts_of

_UNCHANGED = (gr.skip(), gr.skip(), gr.skip())


class Models:
    """The models of a Dray, as its API lists them."""

    def __init__(self, api: ChatClient) -> None:
        self._api = api

    async def choose(self, model: str | None, key: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Updates for a new key: of the fields for the model and the key, and those of `defaults` if the model that
        was chosen is not among those that the key may use."""
        models, needs_key = await self.known(key)
        names = [entry.name for entry in models]
        if not names:
            return gr.skip(), gr.update(visible=True) if needs_key else gr.skip(), *_UNCHANGED
        if model in names:
            return gr.update(choices=names, value=model), gr.skip(), *_UNCHANGED
        return gr.update(choices=names, value=names[0]), gr.skip(), *_updates(models[0], texts_of(request))

    async def defaults(self, model: str | None, key: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Updates for a model that was just chosen: of the temperature, top-p, and the chatbot with its examples."""
        models, _ = await self.known(key)
        chosen = next((entry for entry in models if entry.name == model), None)
        return _updates(chosen, texts_of(request)) if chosen else _UNCHANGED

    async def known(self, key: str | None) -> tuple[list[PageModel], bool]:
        """The models to choose from, and whether a key is required that is not there."""
        try:
            return await self._api.models((key or "").strip()), False
        except ApiRefused as refusal:
            return [], refusal.status == 401
        except ServerUnreachable:
            return [], False


def welcome(model: PageModel | None, texts: Texts) -> dict[str, Any]:
    """What an empty conversation shows."""
    return {"placeholder": texts.hello, "examples": [{"text": example} for example in examples(model, texts)]}


def _updates(model: PageModel, texts: Texts) -> tuple[Any, ...]:
    return (*default_updates(model, texts), gr.update(**welcome(model, texts)))
