"""The messages that the chat page sends, and how it shows an answer."""

import asyncio
import re
from dataclasses import asdict, replace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Mount

pytest.importorskip("gradio", reason="the chat page needs the extra `page`")

import gradio as gr

from deployments.pages.attachment import File
from deployments.pages.chat import gradio_app
from deployments.pages.client import ChatClient, PageModel, Progress
from deployments.pages.conversation import Answer, Conversation, Turn, read
from deployments.pages.display import Message, answer_messages, chat_messages, turn_of
from deployments.pages.examples import examples
from deployments.pages.fields import DEFAULT_MAX_TOKENS, Fields, default_updates
from deployments.pages.file_texts import CHINESE_FILES, ENGLISH_FILES
from deployments.pages.i18n import CHINESE, ENGLISH, texts_for
from deployments.pages.models import Models
from tests.cluster.streams import serving

DONE = Progress("because", "42", "miss", False, "stop", 0.5, 0.8, 1.5, 11, 6)


def text(message: Message) -> str:
    [part] = message["content"]
    return str(part["text"])


def test_only_answered_questions_and_their_answers_are_sent() -> None:
    stopped = Answer("m", Progress(thinking="hm"), stopped=True)
    answered = Turn("what?", (Answer("m", error="no"), Answer("m", DONE)), shown=1)
    talk = Conversation("1", (Turn("never answered"), Turn("stopped", (stopped,)), answered, Turn("refused")))
    assert talk.messages("Be brief.") == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "refused"},
    )
    assert Conversation().messages("") == ()


def test_a_conversation_survives_the_browser() -> None:
    talk = Conversation("1", (Turn("what?", (Answer("m", DONE, rating="up"), Answer("m", error="no")), shown=1),))
    assert read(talk.json()) == talk
    for broken in ("", "no json", '{"turns": 1}', "[]", None, 5):
        assert read(broken) == Conversation()


def test_an_edited_question_drops_what_came_after_it() -> None:
    talk = Conversation("1", (Turn("a", (Answer("m", DONE),)), Turn("b", (Answer("m", DONE),)), Turn("c")))
    shown = chat_messages(talk, ENGLISH)
    index = [message["role"] for message in shown].index("user", 1)
    assert [turn.question for turn in talk.edited("B", turn_of(talk, ENGLISH, index)).turns] == ["a", "B"]


def test_thinking_is_open_until_the_answer_begins() -> None:
    [thinking, line] = answer_messages(Answer("m", Progress(thinking="hm", first_s=0.1, tokens=1)), ENGLISH)
    assert thinking["metadata"] == {"title": "Thinking", "status": "pending"}
    assert "1 token (0 thinking)" in text(line)
    thought, answer, line = answer_messages(Answer("m", DONE), ENGLISH)
    assert thought["metadata"] == {"title": "Thought", "status": "done", "duration": 0.8}
    assert text(answer) == "42"
    assert "m · 11 tokens (6 thinking) · 10 tokens/s · first token after 0.50 s · generated now" in text(line)


def test_an_answer_without_text_says_why() -> None:
    cut = Progress("hm", "", "miss", False, "length", 0.5, 0.8, 1.5, 8, 8)
    _, notice, line = answer_messages(Answer("m", cut, limit=8), ENGLISH)
    assert "all 8 tokens went into the thinking" in text(notice) and "cut off at the token limit" in text(line)
    [error] = answer_messages(Answer("m", error="<b>&"), ENGLISH)
    assert 'role="alert">&lt;b&gt;&amp;<' in text(error)


def test_formulas_are_the_models_alone_and_code_has_none() -> None:
    def shown(answer: str) -> str:
        return text(answer_messages(Answer("m", Progress(text=answer, finish="stop")), ENGLISH)[0])

    assert shown(r"\(a\) costs $5 and $10") == "\u2063\\(a\\)\u2063 costs $5 and $10"
    assert shown("$$x$$ and\n```\necho $$ \\( \\)\n```\n`$$` \\[y\\]") == (
        "\u2063$$x$$\u2063 and\n```\necho $$ \\( \\)\n```\n`$$` \u2063\\[y\\]\u2063"
    )
    asked = chat_messages(Conversation("1", (Turn("\\(a\\) \u2063$$x$$\u2063 `\\n`"),)), ENGLISH)
    assert text(asked[0]) == "\\\\(a\\\\) $$x$$ `\\n`"


def test_a_curated_answer_says_who_approved_it() -> None:
    curated = Progress(text="42", cache="curated", finish="stop", first_s=0.1, took_s=0.2, tokens=9, author="Ann <b>")
    for progress, words in (
        (curated, "approved by people (Ann &lt;b&gt;)"),
        (replace(curated, author=""), "approved by people"),
        (replace(curated, similar=True), "approved by people, for a similar question (Ann"),
    ):
        *_, line = answer_messages(Answer("m", progress), ENGLISH)
        assert words in text(line) and "tokens/s" not in text(line) and "generated" not in text(line)
    *_, line = answer_messages(Answer("m", curated), CHINESE)
    assert "人工审定" in text(line)


def test_a_file_and_the_parts_that_an_answer_quotes_are_shown_as_text() -> None:
    file, passage = File("<b>`a` \u2063$$x$$\u2063.txt", "text"), "# <i>one</i> \u2063\\(a\\)\u2063"
    answer = Answer("m", DONE, source="a <b>", passages=(passage,))
    question, _, _, quoted, _ = chat_messages(Conversation("1", (Turn("what?", (answer,), file=file),)), ENGLISH)
    assert text(question) == '<div class="dray-file">&lt;b&gt;`a` $$x$$.txt</div>\n\nwhat?'
    assert "<p>From a &lt;b&gt;</p><blockquote># &lt;i&gt;one&lt;/i&gt; \\(a\\)</blockquote>" in text(quoted)
    assert "\n" not in text(quoted)


def test_the_examples_are_for_the_language_and_the_model() -> None:
    names = ("dray-demo", "smollm2-135m-instruct", "deepseek-r1-distill-qwen-1.5b", "qwen3-0.6b", "phi3", "v2.135m")
    for texts in (ENGLISH, CHINESE):
        offered = {name: examples(PageModel(name), texts) for name in names}
        assert all(len(set(questions)) == 4 for questions in offered.values())
        assert len({*offered.values()}) == 3
        bundled, small, usual = list(offered.values())[:3]
        assert bundled != small != usual == offered["qwen3-0.6b"] == offered["phi3"] == offered["v2.135m"]
        assert examples(None, texts) == ()
    assert examples(PageModel("dray-demo"), CHINESE)[0].startswith("一个笼子")


def test_the_fields_start_with_the_models_defaults() -> None:
    temperature, top_p = default_updates(PageModel("m", 0.6, 0.95), ENGLISH)
    assert (temperature["value"], top_p["value"]) == (0.6, 0.95)
    assert "default: 0.6" in temperature["info"] and "default: 0.95" in top_p["info"]
    unknown = default_updates(None, ENGLISH)
    assert [update["value"] for update in unknown] == [None, None], "the server's defaults, whatever model comes"


def test_a_model_that_is_chosen_brings_its_own_defaults() -> None:
    """The second one is advised 0.6, as its generation_config says and the API lists it."""
    listed = tuple(
        {"id": name, "task": "generate", "max_model_len": 99, "default_parameters": {"temperature": t, "top_p": p}}
        for name, t, p in (("greedy", 0.0, 1.0), ("thinker", 0.6, 0.95))
    )
    request = gr.Request(headers={"accept-language": "en"}, cookies={})

    async def chosen(url: str) -> tuple[Any, ...]:
        models = Models(ChatClient(url))
        first = await models.choose(None, "", request)
        assert first[0]["value"] == "greedy" and [update["value"] for update in first[2:4]] == [0.0, 1.0]
        kept = await models.choose("thinker", "", request)
        assert kept[0]["value"] == "thinker" and "value" not in kept[2], "what the person set stays"
        return await models.defaults("thinker", "", request)

    with serving(models=listed) as url:
        temperature, top_p, _ = asyncio.run(chosen(url))
    assert (temperature["value"], top_p["value"]) == (0.6, 0.95)
    assert "default: 0.6" in temperature["info"] and "default: 0.95" in top_p["info"]


def test_an_emptied_limit_is_the_default_which_its_field_names() -> None:
    with gr.Blocks():
        fields = Fields()
        fields.add_settings()
    values: dict[Any, Any] = dict.fromkeys(fields.kept)
    assert fields.chosen(values, ENGLISH).max_tokens == DEFAULT_MAX_TOKENS == 2048
    assert fields.chosen(values | {fields.max_tokens: 8}, ENGLISH).max_tokens == 8
    for texts in (ENGLISH, CHINESE):
        assert str(DEFAULT_MAX_TOKENS) in texts.labels.max_tokens_hint


def test_each_answer_of_a_conversation_says_which_model_wrote_it() -> None:
    turns = tuple(Turn(question, (Answer(model, DONE),)) for question, model in (("a", "small"), ("b", "large")))
    shown = [text(message) for message in chat_messages(Conversation("1", turns), ENGLISH)]
    assert [line.split(" · ")[0] for line in shown if line.startswith("<small>")] == ["<small>small", "<small>large"]


def test_texts_are_in_the_first_language() -> None:
    assert texts_for("zh-CN,zh;q=0.9,en;q=0.8").thought == "思考过程"
    assert texts_for("en-GB,zh;q=0.9") is texts_for("") is ENGLISH


def test_every_text_has_the_same_fields_in_both_languages() -> None:
    def flat(value: Any) -> str:
        return value if isinstance(value, str) else ""

    fields = {
        language: {name: sorted(re.findall(r"\{(\w+)", flat(text))) for name, text in texts.items()}
        for language, texts in (
            ("en", asdict(ENGLISH) | asdict(ENGLISH_FILES)),
            ("zh", asdict(CHINESE) | asdict(CHINESE_FILES)),
        )
    }
    assert fields["en"] == fields["zh"]
    assert all(asdict(texts.labels).keys() == asdict(ENGLISH.labels).keys() for texts in (ENGLISH, CHINESE))


def test_an_open_page_looks_for_events_at_most_ten_times_a_second() -> None:
    async def made() -> FastAPI:
        return gradio_app(ChatClient("http://127.0.0.1:1/v1"))  # in an event loop, as Serve makes it

    [page] = [route for route in asyncio.run(made()).routes if isinstance(route, Mount)]
    queue = page.app.blocks._queue  # type: ignore[attr-defined]
    assert queue.sleep_when_free >= 0.1 and queue.progress_update_sleep_when_free >= 1
