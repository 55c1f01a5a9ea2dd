"""The chat page: gradio's chat interface to Dray's API."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr
from fastapi import FastAPI

from deployments.pages.client import ApiRefused, ChatClient, ChatQuery, Progress, ServerUnreachable
from deployments.pages.i18n import EXAMPLES, TRANSLATIONS, Texts, texts_for

_MAX_QUEUED = 256
_MAX_SESSIONS = 1024
_LOOK_INTERVAL_S = 0.1
_PROGRESS_INTERVAL_S = 5.0
"""The page has no progress bars."""
_NOTE = "note"
"""Id of messages about an answer, which are not part of the conversation."""
_LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]
_CSS = """
footer { display: none !important; }
.bubble-wrap { background: none !important; }
.message pre { overflow-x: auto; }
@media (max-width: 640px) { .gradio-container .main.fillable { padding: var(--spacing-md) !important; } }
.message small { font-size: var(--text-sm); opacity: 0.75; }
"""

_HEIGHT = "max(16rem, calc(100dvh - 14.5rem))"
"""Leaves room for the fields above and below, so that the question's field is always visible."""
_HEAD = """<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
%3Cpath d='M1 4h11v6H1z' fill='%23b45309'/%3E%3Ccircle cx='4' cy='12' r='2.5'/%3E%3Ccircle cx='11' cy='12' r='2.5'/%3E\
%3C/svg%3E">"""

Message = dict[str, Any]
"""A message in gradio's format."""
_label = gr.I18n(**TRANSLATIONS)


def gradio_app(api_url: str) -> FastAPI:
    """The page as an ASGI application. api_url: base URL of the API, ending in /v1."""
    page = ChatPage(ChatClient(api_url)).build()
    # Gradio looks for new events a thousand times a second, and for progress a hundred times (gradio 6).
    page._queue.sleep_when_free = _LOOK_INTERVAL_S
    page._queue.progress_update_sleep_when_free = _PROGRESS_INTERVAL_S
    page.state_session_capacity = _MAX_SESSIONS
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(),
        page,
        path="/",
        i18n=_label,
        css=_CSS,
        head=_HEAD,
        footer_links=[],
        run_history=False,
        max_file_size=0,
    )
    return app


class ChatPage:
    """The page. Each browser has its own conversation, and none is stored."""

    def __init__(self, api: ChatClient) -> None:
        self._api = api

    def build(self) -> gr.Blocks:
        """The page's layout and events."""
        with gr.Blocks(title="Dray", fill_height=True, analytics_enabled=False) as page:
            model, key = _model_and_key()
            chatbot = gr.Chatbot(
                show_label=False, placeholder=_label("hello"), latex_delimiters=_LATEX, buttons=["copy"], height=_HEIGHT
            )
            settings, temperature, max_tokens = _settings()
            chat = gr.ChatInterface(
                self.answer,
                chatbot=chatbot,
                textbox=_question(),
                additional_inputs=[model, key, temperature, max_tokens],
                additional_outputs=[key],
                examples=[[text] for text in EXAMPLES],
                concurrency_limit=None,
                api_visibility="private",
                analytics_enabled=False,
            )
            settings.render()
            hidden = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
            page.load(self.models, [model, key], [model, key], **hidden)
            gr.on([key.submit, key.blur], self.models, [model, key], [model, key], **hidden)
            chat.textbox.stop(stopped, chat.chatbot, chat.chatbot, **hidden)
        return page.queue(max_size=_MAX_QUEUED, default_concurrency_limit=None)

    async def answer(
        self,
        question: str,
        history: list[Message],
        model: str | None,
        key: str | None,
        temperature: float | None,
        max_tokens: float | None,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[list[Message], Any], None]:
        """The answer to a question while it arrives, and an update of the field for the key."""
        texts, key = _texts_for(request), (key or "").strip()
        turns = (*conversation(history), {"role": "user", "content": question})
        query = ChatQuery(model or "", turns, temperature, int(max_tokens) if max_tokens else None)
        progress = Progress()
        try:
            async with aclosing(self._api.ask(query, key)) as updates:
                async for progress in updates:
                    yield messages(progress, texts), gr.skip()
        except ApiRefused as refusal:
            shown = [*messages(progress, texts, ended=True), _note(_reason(refusal, key, texts))]
            yield shown, gr.update(visible=True) if refusal.status == 401 else gr.skip()
        except ServerUnreachable as error:
            reason = texts.lost if error.mid_answer else texts.unreachable
            yield [*messages(progress, texts, ended=True), _note(reason)], gr.skip()

    async def models(self, model: str | None, key: str | None) -> tuple[Any, Any]:
        """Updates of the fields for the model and the key: the models to choose from, and whether a key is required."""
        try:
            names = await self._api.models((key or "").strip())
        except ApiRefused as refusal:
            return gr.update(choices=[], value=None), gr.update(visible=refusal.status == 401)
        except ServerUnreachable:
            return gr.skip(), gr.skip()
        return gr.update(choices=names, value=model if model in names else next(iter(names), None)), gr.skip()


def stopped(history: list[Message], request: gr.Request) -> list[Message]:
    """The history after the user stopped an answer: its thinking no longer shows as pending."""
    texts = _texts_for(request)
    for message in history:
        if (message.get("metadata") or {}).get("status") == "pending":
            message["metadata"] |= {"status": "done", "title": texts.thought}
    return [*history, _note(texts.stopped)]


def conversation(history: Sequence[Message]) -> tuple[dict[str, str], ...]:
    """The conversation as the API takes it: answered questions and their answers, without thinking."""
    turns: list[dict[str, str]] = []
    for message in history:
        metadata = message.get("metadata") or {}
        if metadata.get("title") or metadata.get("id") == _NOTE:
            continue
        if turns and turns[-1]["role"] == message["role"]:
            turns.pop()
        turns.append({"role": message["role"], "content": _text(message["content"])})
    if turns and turns[-1]["role"] == "user":
        turns.pop()
    return tuple(turns)


def messages(progress: Progress, texts: Texts, *, ended: bool = False) -> list[Message]:
    """An answer in gradio's format: thinking, which folds when it ends, the answer's text, and a line of statistics."""
    shown: list[Message] = []
    ended = ended or bool(progress.finish)
    if progress.thinking:
        metadata: dict[str, Any] = {"title": texts.thinking, "status": "pending"}
        if ended or progress.text:
            metadata = {"title": texts.thought, "status": "done", "duration": round(progress.thought_s, 1)}
        shown.append({"role": "assistant", "content": progress.thinking, "metadata": metadata})
    if progress.text:
        shown.append({"role": "assistant", "content": progress.text})
    if progress.finish:
        shown.append(_note(f"<small>{' · '.join(_statistics(progress, texts))}</small>"))
    return shown


def _model_and_key() -> tuple[gr.Dropdown, gr.Textbox]:
    with gr.Row():
        # A session may outlive the page's process, which knew its choices; custom values keep them valid.
        model = gr.Dropdown(label=_label("model"), container=False, allow_custom_value=True, scale=1, min_width=200)
        key = gr.Textbox(
            label=_label("key"),
            placeholder=_label("key_hint"),
            type="password",
            container=False,
            visible=False,
            scale=1,
            min_width=200,
        )
    return model, key


def _settings() -> tuple[gr.Accordion, gr.Number, gr.Number]:
    with gr.Accordion(_label("settings"), open=False, render=False) as settings, gr.Row():
        temperature = gr.Number(
            label=_label("temperature"), info=_label("temperature_hint"), minimum=0, maximum=2, step=0.1, value=None
        )
        max_tokens = gr.Number(
            label=_label("max_tokens"), info=_label("max_tokens_hint"), minimum=1, precision=0, value=None
        )
    return settings, temperature, max_tokens


def _question() -> gr.Textbox:
    return gr.Textbox(
        label=_label("placeholder"),
        placeholder=_label("placeholder"),
        show_label=False,
        submit_btn=_label("ask"),
        stop_btn=_label("stop"),
        autofocus=True,
    )


def _statistics(progress: Progress, texts: Texts) -> list[str]:
    hit = progress.cache == "hit"
    counts = texts.one_token if progress.tokens == 1 else texts.tokens
    parts = [counts.format(all=progress.tokens, thinking=progress.reasoning_tokens)]
    if progress.tokens_per_s and not hit:
        parts.append(texts.rate.format(rate=progress.tokens_per_s))
    parts.append(texts.first.format(seconds=progress.first_s))
    cached = texts.similar if progress.similar else texts.hit
    parts.append({"hit": cached, "join": texts.join}.get(progress.cache, texts.generated))
    if progress.replica and not hit:
        parts.append(texts.replica.format(name=progress.replica))
    if progress.finish == "length":
        parts.append(texts.cut)
    return parts


def _reason(refusal: ApiRefused, key: str, texts: Texts) -> str:
    if refusal.status == 401:
        return texts.key_refused if key else texts.key_needed
    return texts.refused.format(message=refusal.message)


def _note(text: str) -> Message:
    return {"role": "assistant", "content": text, "metadata": {"id": _NOTE}}


def _texts_for(request: gr.Request) -> Texts:
    return texts_for(request.headers.get("accept-language", ""))


def _text(content: Any) -> str:
    """The text of a message, whose content is a list of parts when it comes from gradio."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
