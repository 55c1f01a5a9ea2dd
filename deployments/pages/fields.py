"""The fields of the chat page, and what a person chose in them."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from deployments.pages.client import ChatQuery, PageModel
from deployments.pages.conversation import Conversation
from deployments.pages.i18n import GRADIO_LANGUAGES, LABELS, Texts

DEFAULT_MAX_TOKENS = 2048
"""A model that repeats itself would otherwise go on up to the server's limit, for minutes."""
_MAX_SEED = 2**63 - 1
_EFFORTS = ("", "none", "low", "medium")

TRANSLATIONS = {
    name: {field: getattr(labels, field) for field in labels.__slots__}
    for language, labels in LABELS.items()
    for name in GRADIO_LANGUAGES[language]
}
"""In gradio's format."""
_label = gr.I18n(**TRANSLATIONS)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a person chose. None: the model's default."""

    model: str
    key: str
    system: str
    temperature: float | None
    top_p: float | None
    max_tokens: int
    seed: int | None
    effort: str | None

    def query(self, conversation: Conversation, *, fresh: bool) -> ChatQuery:
        """The query for an answer to the conversation's last question."""
        return ChatQuery(
            self.model,
            conversation.messages(self.system),
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            seed=secrets.randbits(31) if fresh else self.seed,
            effort=self.effort,
            fresh=fresh,
        )


class Fields:
    """The fields whose values go into a query, and which the browser keeps. Made where they are to appear."""

    def __init__(self) -> None:
        self.model = _choice(label=_label("model"), container=False, scale=2, min_width=180)
        self.key = gr.Textbox(
            label=_label("key"),
            placeholder=_label("key_hint"),
            type="password",
            container=False,
            visible=False,
            scale=1,
            min_width=180,
        )

    def add_settings(self) -> None:
        """Adds the fields that few need."""
        with gr.Row():
            self.effort = _choice(
                choices=[(name or "default", name) for name in _EFFORTS],
                label=_label("effort"),
                info=_label("effort_hint"),
                value="",
            )
            self.max_tokens = gr.Number(
                label=_label("max_tokens"),
                info=_label("max_tokens_hint"),
                minimum=1,
                precision=0,
                value=DEFAULT_MAX_TOKENS,
            )
        with gr.Row():
            self.temperature = gr.Number(
                label=_label("temperature"), info=" ", minimum=0, maximum=2, step=0.1, value=None, min_width=100
            )
            self.top_p = gr.Number(
                label=_label("top_p"), info=" ", minimum=0, maximum=1, step=0.05, value=None, min_width=100
            )
            self.seed = gr.Textbox(label=_label("seed"), info=_label("seed_hint"), max_lines=1, min_width=100)
        with gr.Row():
            self.preset = _choice(choices=[], label=_label("preset"), scale=1, min_width=200)
            self.system = gr.Textbox(
                label=_label("system"), info=_label("system_hint"), lines=2, max_lines=6, scale=3, min_width=240
            )

    @property
    def kept(self) -> list[Component]:
        """The fields that the browser keeps, in the order of its script."""
        return [
            self.model,
            self.key,
            self.temperature,
            self.top_p,
            self.max_tokens,
            self.seed,
            self.effort,
            self.system,
        ]

    def chosen(self, values: Mapping[Component, Any], texts: Texts) -> Chosen:
        """What the person chose. Raises ValueError with a message for them."""
        seed = str(values[self.seed] or "").strip()
        if seed and not (seed.isascii() and seed.isdigit() and int(seed) <= _MAX_SEED):
            raise ValueError(texts.bad_seed)
        return Chosen(
            model=values[self.model] or "",
            key=(values[self.key] or "").strip(),
            system=(values[self.system] or "").strip(),
            temperature=values[self.temperature],
            top_p=values[self.top_p],
            max_tokens=int(values[self.max_tokens] or DEFAULT_MAX_TOKENS),
            seed=int(seed) if seed else None,
            effort=values[self.effort] or None,
        )


def _choice(**options: Any) -> gr.Dropdown:
    """A dropdown. A session may outlive the page's process, which knew its choices; custom values keep them valid."""
    return gr.Dropdown(allow_custom_value=True, **options)


def default_updates(model: PageModel | None, texts: Texts) -> tuple[Any, Any]:
    """Updates of the temperature and top-p: the defaults of a model. None: while no model is known, the fields are
    empty, which stands for the server's defaults."""
    if model is None:
        return gr.update(value=None), gr.update(value=None)
    return (
        gr.update(value=model.temperature, info=texts.temperature_hint.format(default=model.temperature)),
        gr.update(value=model.top_p, info=texts.top_p_hint.format(default=model.top_p)),
    )


def effort_choices(texts: Texts) -> list[tuple[str, str]]:
    """How much thinking there may be."""
    names = (texts.effort_full, texts.effort_none, texts.effort_low, texts.effort_medium)
    return list(zip(names, _EFFORTS, strict=True))
