"""The messages that the chat page sends, and how it shows an answer."""

import asyncio
import re
from dataclasses import asdict

import pytest
from fastapi import FastAPI
from starlette.routing import Mount

pytest.importorskip("gradio", reason="the chat page needs the extra `page`")

from deployments.pages.chat import Message, conversation, gradio_app, messages
from deployments.pages.client import Progress
from deployments.pages.i18n import CHINESE, ENGLISH, texts_for

DONE = Progress("because", "42", "miss", False, "stop", 0.5, 0.8, 1.5, 11, 6)


def user(text: str) -> Message:
    return {"role": "user", "content": [{"type": "text", "text": text}], "metadata": None}


def test_only_answered_questions_and_their_answers_are_sent() -> None:
    stopped = Progress(thinking="hm")
    history = [
        user("never answered"),
        *messages(stopped, ENGLISH, ended=True),
        user("what?"),
        *messages(DONE, ENGLISH),
        user("refused"),
    ]
    assert conversation(history) == (
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": "42"},
    )
    assert conversation([]) == ()


def test_thinking_is_open_until_the_answer_begins() -> None:
    [thinking] = messages(Progress(thinking="hm"), ENGLISH)
    assert thinking["metadata"] == {"title": "Thinking", "status": "pending"}
    thought, answer, line = messages(DONE, ENGLISH)
    assert thought["metadata"] == {"title": "Thought", "status": "done", "duration": 0.8}
    assert answer["content"] == "42"
    assert "11 tokens (6 thinking) · 10 tokens/s · first token after 0.50 s · generated now" in line["content"]


def test_texts_are_in_the_first_language() -> None:
    assert texts_for("zh-CN,zh;q=0.9,en;q=0.8").thought == "思考过程"
    assert texts_for("en-GB,zh;q=0.9") is texts_for("") is ENGLISH


def test_every_text_has_the_same_fields_in_both_languages() -> None:
    fields = {
        language: {name: sorted(re.findall(r"\{(\w+)", text)) for name, text in texts.items()}
        for language, texts in (("en", asdict(ENGLISH)), ("zh", asdict(CHINESE)))
    }
    assert fields["en"] == fields["zh"]


def test_an_open_page_looks_for_events_at_most_ten_times_a_second() -> None:
    async def made() -> FastAPI:
        return gradio_app("http://127.0.0.1:1/v1")  # in an event loop, as Serve makes it

    [page] = [route for route in asyncio.run(made()).routes if isinstance(route, Mount)]
    queue = page.app.blocks._queue  # type: ignore[attr-defined]
    assert queue.sleep_when_free >= 0.1 and queue.progress_update_sleep_when_free >= 1
