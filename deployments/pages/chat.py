"""The chat page: gradio's components, their events, and Dray's API behind them.

The conversations are in the browser alone (chat.js keeps them). An event brings the one that is open, and its answer
goes back there, so the page's process may end at any time. gradio's own chat interface cannot do that: it sends all
conversations with each event, and disables the question's field while an answer arrives.
"""

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import msgspec
from fastapi import FastAPI
from gradio.components import Component

from deployments.pages.answering import Answering, SaveInterval
from deployments.pages.attachment import attached
from deployments.pages.client import ChatClient
from deployments.pages.conversation import Conversation, read
from deployments.pages.display import LATEX, chat_messages, shown_ratings, turn_of
from deployments.pages.fields import DEFAULT_MAX_TOKENS, TRANSLATIONS, Fields, default_updates, effort_choices
from deployments.pages.i18n import Texts
from deployments.pages.language import texts_of
from deployments.pages.models import Models, welcome
from deployments.pages.mounting import page_app
from deployments.pages.ratings import Ratings

_MAX_QUEUED = 256
_MAX_SESSIONS = 1024
_LOOK_INTERVAL_S = 0.1
_HEIGHT = "max(14rem, calc(100dvh - 15.5rem))"
"""Leaves room for the fields above and below, so that the question's field is always visible."""
_CSS = Path(__file__).with_name("chat.css")

_label = gr.I18n(**TRANSLATIONS)
Values = Mapping[Component, Any]
Update = tuple[Any, Any, Any, Any, Any, Any]
"""Of the chatbot, the conversation, the question's field, the key's field, the attached file, and the row that asks why
an answer was bad."""


def gradio_app(api: ChatClient) -> FastAPI:
    """The page as an ASGI application."""
    page = ChatPage(api).build()
    return page_app(page, _CSS, _label, look_interval_s=_LOOK_INTERVAL_S, max_sessions=_MAX_SESSIONS)


class ChatPage:
    """The page."""

    def __init__(self, api: ChatClient) -> None:
        self._api = api
        self._answering = Answering(api)
        self._models = Models(api)

    def build(self) -> gr.Blocks:
        """The page's layout and events."""
        empty: dict[str, Any] = {"value": "", "html_template": "<div></div>"}
        with gr.Blocks(title="Dray", fill_height=True, analytics_enabled=False) as page:
            with gr.Sidebar(open=False, width=300, elem_id="sidebar"):
                self.conversation = gr.HTML(
                    "",
                    html_template="<div></div>",
                    js_on_load="dray.list(element, props, () => trigger('open'), watch)",
                )
            with gr.Row(elem_id="top"):
                gr.HTML(js_on_load="dray.header(element)", min_width=0, **empty)
                self.fields = Fields()
            self.chatbot = gr.Chatbot(
                show_label=False,
                latex_delimiters=LATEX,
                buttons=["copy"],
                height=_HEIGHT,
                editable="user",
                elem_id="chat",
            )
            with gr.Row(visible=False, elem_id="why") as self.why:
                self.reason = gr.Textbox(
                    label=_label("reason"), placeholder=_label("reason_hint"), submit_btn=_label("send"), max_lines=3
                )
            self.file = gr.HTML(
                "",
                html_template="<div></div>",
                js_on_load="drayFile.attachment(element, props, watch)",
                elem_id="attachment",
            )
            with gr.Row(elem_id="asking"):
                gr.HTML(js_on_load="drayFile.button(element)", min_width=0, **empty)
                self.question = gr.Textbox(
                    label=_label("placeholder"),
                    placeholder=_label("placeholder"),
                    show_label=False,
                    submit_btn=_label("ask"),
                    elem_id="question",
                )
            with gr.Accordion(_label("settings"), open=False):
                self.fields.add_settings()
            self.rated = gr.State("")
            self._listen(page)
        return page.queue(max_size=_MAX_QUEUED, default_concurrency_limit=None)

    def _listen(self, page: gr.Blocks) -> None:
        fields, kept = self.fields, self.fields.kept
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once = hidden | {"queue": False}
        inputs = {self.question, self.conversation, self.file, *kept}
        outputs = [self.chatbot, self.conversation, self.question, fields.key, self.file, self.why]
        answers = [
            self.question.submit(self.ask, inputs, outputs, **hidden),
            self.chatbot.retry(self.retry, inputs, outputs, **hidden),
            self.chatbot.edit(self.edit, inputs, outputs, **hidden),
            self.chatbot.example_select(self.example, inputs, outputs, **hidden),
        ]
        self.question.stop(self.stop, None, None, **at_once)
        self.chatbot.option_select(self.turn, self.conversation, outputs[:2], **at_once)
        self.conversation.open(self.open, self.conversation, outputs, cancels=answers, **at_once)
        ratings = Ratings(self._api)
        rated = [self.conversation, self.why, self.rated]
        self.chatbot.like(ratings.rate, [self.conversation, fields.key], rated, **at_once)
        said = [self.reason, self.rated, fields.key]
        explained = self.reason.submit(ratings.explain, said, [self.reason, self.why], **at_once)
        explained.then(None, js="() => dray.focus()")  # the field that had the focus is gone
        page.load(
            self.load,
            [self.conversation, *kept],
            [*outputs[:2], *kept, fields.preset],
            js="() => dray.restored()",
            **at_once,
        ).then(None, js="() => { dray.ready(); drayFile.ready(); }")
        changes = [field.change for field in kept]
        gr.on(changes, None, kept, None, js="(...values) => dray.remember(values)", **at_once)
        defaults = [fields.temperature, fields.top_p, self.chatbot]
        fields.model.input(self._models.defaults, kept[:2], defaults, **at_once)
        fields.preset.input(lambda text: text, fields.preset, fields.system, **at_once)
        gr.on(
            [fields.key.submit, fields.key.blur],
            self._models.choose,
            [fields.model, fields.key],
            [fields.model, fields.key, *defaults],
            **at_once,
        )

    async def ask(self, values: Values, request: gr.Request) -> AsyncGenerator[Update, None]:
        """A question from its field."""
        if question := (values[self.question] or "").strip():
            conversation = read(values[self.conversation]).asking(question, attached(values[self.file]))
            async for update in self._answer(conversation, values, request, asked=True):
                yield update

    async def example(self, values: Values, event: gr.SelectData, request: gr.Request) -> AsyncGenerator[Update, None]:
        """A question that was offered."""
        conversation = read(values[self.conversation]).asking(event.value["text"])
        async for update in self._answer(conversation, values, request):
            yield update

    async def edit(self, values: Values, event: gr.EditData, request: gr.Request) -> AsyncGenerator[Update, None]:
        """An earlier question in new words: what came after it goes."""
        conversation, texts = read(values[self.conversation]), texts_of(request)
        if question := event.value.strip():
            changed = conversation.edited(question, turn_of(conversation, texts, event.index))
            async for update in self._answer(changed, values, request):
                yield update

    async def retry(self, values: Values, request: gr.Request) -> AsyncGenerator[Update, None]:
        """The last question once more: a new answer, beside those before it."""
        conversation = read(values[self.conversation])
        if conversation.turns:
            async for update in self._answer(conversation, values, request, fresh=True):
                yield update

    async def _answer(
        self,
        conversation: Conversation,
        values: Values,
        request: gr.Request,
        *,
        asked: bool = False,
        fresh: bool = False,
    ) -> AsyncGenerator[Update, None]:
        """Updates while the answer to the last question arrives."""
        texts, session = texts_of(request), request.session_hash or ""
        if self._answering.busy(session):
            return
        try:
            chosen = self.fields.chosen(values, texts)
        except ValueError as error:
            raise gr.Error(str(error), title=texts.problem, print_exception=False) from None
        if not chosen.model and (models := (await self._models.known(chosen.key))[0]):
            chosen = replace(chosen, model=models[0].name)  # none was known when the page was opened
        conversation = msgspec.structs.replace(conversation, id=conversation.id or uuid.uuid4().hex)
        query = chosen.query(conversation, fresh=fresh)
        field = {"submit_btn": False, "stop_btn": texts.labels.stop} | ({"value": ""} if asked else {})
        yield gr.skip(), gr.skip(), gr.update(**field), gr.skip(), "" if asked else gr.skip(), gr.update(visible=False)
        saves = SaveInterval()
        updates = self._answering.answer(session, conversation, query, chosen.key, texts)
        async with aclosing(updates):
            async for conversation in updates:
                kept = conversation.json() if saves.due() else gr.skip()
                yield chat_messages(conversation, texts), kept, gr.skip(), gr.skip(), gr.skip(), gr.skip()
        answer = conversation.turns[-1].answer
        needs_key = answer is not None and answer.error in (texts.key_needed, texts.key_refused)
        field = {"submit_btn": texts.labels.ask, "stop_btn": False}
        yield (
            _shown(conversation, texts),
            conversation.json(),
            gr.update(**field),
            gr.update(visible=True) if needs_key else gr.skip(),
            values[self.file] if asked and needs_key else gr.skip(),  # for the same question, with a key
            gr.skip(),
        )

    def stop(self, request: gr.Request) -> None:
        """Ends the answer that is on its way."""
        self._answering.stop(request.session_hash or "")

    def turn(self, text: str, event: gr.SelectData, request: gr.Request) -> tuple[Any, str]:
        """Another answer to the last question."""
        conversation = read(text)
        if conversation.turns:
            conversation = conversation.with_last(conversation.turns[-1].turned(1 if event.value == "next" else -1))
        return _shown(conversation, texts_of(request)), conversation.json()

    def open(self, text: str, request: gr.Request) -> Update:
        """A conversation that the browser kept, or a new one."""
        texts = texts_of(request)
        field = gr.update(submit_btn=texts.labels.ask, stop_btn=False)
        return _shown(read(text), texts), gr.skip(), field, gr.skip(), gr.skip(), gr.update(visible=False)

    async def load(
        self,
        text: str,
        model: str | None,
        key: str | None,
        temperature: float | None,
        top_p: float | None,
        max_tokens: float | None,
        seed: str | None,
        effort: str | None,
        system: str | None,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        """The page as its owner left it, in the order of `Fields.kept`."""
        texts = texts_of(request)
        models, needs_key = await self._models.known(key)
        chosen = next((entry for entry in models if entry.name == model), models[0] if models else None)
        defaults = default_updates(chosen, texts)
        if chosen is None or chosen.name == model:
            for update, value in zip(defaults, (temperature, top_p), strict=True):
                update["value"] = update["value"] if value is None else value
        return (
            _shown(read(text), texts) | welcome(chosen, texts),
            text,
            gr.update(choices=[entry.name for entry in models], value=chosen.name if chosen else model),
            gr.update(value=key or "", visible=needs_key or bool(key)),
            *defaults,
            gr.update(value=max_tokens or DEFAULT_MAX_TOKENS),
            seed or "",
            gr.update(choices=effort_choices(texts), value=effort or ""),
            system or "",
            gr.update(choices=list(texts.presets), value=""),
        )


def _shown(conversation: Conversation, texts: Texts) -> dict[str, Any]:
    """An update of the chatbot."""
    update: dict[str, Any] = gr.update(
        value=chat_messages(conversation, texts), feedback_value=shown_ratings(conversation)
    )
    return update
