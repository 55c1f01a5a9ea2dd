"""The chat page: gradio's chat, asking Dray's API."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr
from fastapi import FastAPI

from deployments.pages.client import ApiRefused, ChatClient, ChatQuery, Progress, ServerUnreachable
from deployments.pages.i18n import EXAMPLES, TRANSLATIONS, Texts, texts_for

_MOST_AT_A_TIME = 256
_MOST_SESSIONS = 1024
_BESIDE = "beside"
"""Id of messages that stand beside an answer and are no part of the conversation."""
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
"""What the fields above and below leave, so that the question's field is always in sight."""
_HEAD = """<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
%3Cpath d='M1 4h11v6H1z' fill='%23b45309'/%3E%3Ccircle cx='4' cy='12' r='2.5'/%3E%3Ccircle cx='11' cy='12' r='2.5'/%3E\
%3C/svg%3E">"""

Message = dict[str, Any]
said = gr.I18n(**TRANSLATIONS)


def gradio_app(api_url: str) -> FastAPI:
    """The page as an ASGI application. api_url: base URL of the API, ending in /v1."""
    page = chat_page(ChatClient(api_url))
    page.state_session_capacity = _MOST_SESSIONS
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(), page, path="/", i18n=said, css=_CSS, head=_HEAD, footer_links=[], run_history=False, max_file_size=0
    )
    return app


def chat_page(api: ChatClient) -> gr.Blocks:
    """The page. Each browser's conversation is its own; nothing of it is kept."""

    async def answer(
        question: str,
        history: list[Message],
        model: str | None,
        key: str | None,
        temperature: float | None,
        most_tokens: float | None,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[list[Message], Any], None]:
        words = texts_for(request.headers.get("accept-language", ""))
        turns = (*conversation(history), {"role": "user", "content": question})
        wish = ChatQuery(model or "", turns, temperature, int(most_tokens) if most_tokens else None)
        progress = Progress()
        try:
            async with aclosing(api.ask(wish, _trimmed(key))) as coming:
                async for progress in coming:
                    yield messages(progress, words), gr.skip()
        except ApiRefused as refusal:
            shown = [*messages(progress, words, ended=True), _beside(_why(refusal, _trimmed(key), words))]
            yield shown, gr.update(visible=True) if refusal.status == 401 else gr.skip()
        except ServerUnreachable as away:
            reason = words.lost if away.begun else words.away
            yield [*messages(progress, words, ended=True), _beside(reason)], gr.skip()

    async def look(model: str | None, key: str | None) -> tuple[Any, Any]:
        """The models that there are, and whether the field for the key is needed."""
        try:
            names = await api.models(_trimmed(key))
        except ApiRefused as refusal:
            return gr.update(choices=[], value=None), gr.update(visible=refusal.status == 401)
        except ServerUnreachable:
            return gr.skip(), gr.skip()
        return gr.update(choices=names, value=model if model in names else next(iter(names), None)), gr.skip()

    def stopped(history: list[Message], request: gr.Request) -> list[Message]:
        """What is left of an answer that was stopped: nothing of it goes on."""
        words = texts_for(request.headers.get("accept-language", ""))
        for message in history:
            if (message.get("metadata") or {}).get("status") == "pending":
                message["metadata"] |= {"status": "done", "title": words.thought}
        return [*history, _beside(words.stopped)]

    with gr.Blocks(title="Dray", fill_height=True, analytics_enabled=False) as page:
        with gr.Row():
            # A session knows the choices, and may outlive the process that told it of them: hence custom values.
            model = gr.Dropdown(label=said("model"), container=False, allow_custom_value=True, scale=1, min_width=200)
            key = gr.Textbox(
                label=said("key"),
                placeholder=said("key_hint"),
                type="password",
                container=False,
                visible=False,
                scale=1,
                min_width=200,
            )
        chatbot = gr.Chatbot(
            show_label=False, placeholder=said("hello"), latex_delimiters=_LATEX, buttons=["copy"], height=_HEIGHT
        )
        with gr.Accordion(said("settings"), open=False, render=False) as settings, gr.Row():
            temperature = gr.Number(
                label=said("temperature"), info=said("temperature_hint"), minimum=0, maximum=2, step=0.1, value=None
            )
            most_tokens = gr.Number(
                label=said("most_tokens"), info=said("most_tokens_hint"), minimum=1, precision=0, value=None
            )
        chat = gr.ChatInterface(
            answer,
            chatbot=chatbot,
            textbox=gr.Textbox(
                label=said("placeholder"),
                placeholder=said("placeholder"),
                show_label=False,
                submit_btn=said("ask"),
                stop_btn=said("stop"),
                autofocus=True,
            ),
            additional_inputs=[model, key, temperature, most_tokens],
            additional_outputs=[key],
            examples=[[text] for text in EXAMPLES],
            concurrency_limit=None,
            api_visibility="private",
            analytics_enabled=False,
        )
        settings.render()
        hidden = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        page.load(look, [model, key], [model, key], **hidden)
        gr.on([key.submit, key.blur], look, [model, key], [model, key], **hidden)
        chat.textbox.stop(stopped, chat.chatbot, chat.chatbot, **hidden)
    return page.queue(max_size=_MOST_AT_A_TIME, default_concurrency_limit=None)


def conversation(history: Sequence[Message]) -> tuple[dict[str, str], ...]:
    """The turns of a conversation as the API takes them: questions that have an answer, and these, without thinking."""
    turns: list[dict[str, str]] = []
    for message in history:
        metadata = message.get("metadata") or {}
        if metadata.get("title") or metadata.get("id") == _BESIDE:
            continue
        if turns and turns[-1]["role"] == message["role"]:
            turns.pop()
        turns.append({"role": message["role"], "content": _text(message["content"])})
    if turns and turns[-1]["role"] == "user":
        turns.pop()
    return tuple(turns)


def messages(progress: Progress, words: Texts, *, ended: bool = False) -> list[Message]:
    """An answer as gradio shows it: thinking that folds away when it is done, the answer, and a line about it."""
    shown: list[Message] = []
    ended = ended or bool(progress.finish)
    if progress.thinking:
        done = ended or bool(progress.text)
        metadata: dict[str, Any] = {"title": words.thinking, "status": "pending"}
        if done:
            metadata = {"title": words.thought, "status": "done", "duration": round(progress.thought_s, 1)}
        shown.append({"role": "assistant", "content": progress.thinking, "metadata": metadata})
    if progress.text:
        shown.append({"role": "assistant", "content": progress.text})
    if progress.finish:
        shown.append(_beside(f"<small>{' · '.join(_line(progress, words))}</small>"))
    return shown


def _line(progress: Progress, words: Texts) -> list[str]:
    known = progress.cache == "hit"
    told = [words.tokens.format(all=progress.tokens, thinking=progress.reasoning_tokens)]
    if progress.tokens_per_s and not known:
        told.append(words.rate.format(rate=progress.tokens_per_s))
    told.append(words.first.format(seconds=progress.first_s))
    told.append(
        {"hit": words.similar if progress.similar else words.hit, "join": words.join}.get(progress.cache, words.made)
    )
    if progress.replica and not known:
        told.append(words.replica.format(name=progress.replica))
    if progress.finish == "length":
        told.append(words.cut)
    return told


def _why(refusal: ApiRefused, key: str, words: Texts) -> str:
    if refusal.status == 401:
        return words.key_refused if key else words.key_needed
    return words.refused.format(said=refusal.said)


def _beside(text: str) -> Message:
    return {"role": "assistant", "content": text, "metadata": {"id": _BESIDE}}


def _trimmed(key: str | None) -> str:
    return (key or "").strip()


def _text(content: Any) -> str:
    """The text of a message, which gradio gives as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
