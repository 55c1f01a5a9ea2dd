"""Answers to the official OpenAI client are right, and the same whether streamed or whole."""

from typing import Any

import pytest

from tests.conftest import MODEL, RABBITS

QUESTIONS = [
    (RABBITS, ("23只", "12只")),
    ("如果今天是星期三\uff0c100天后是星期几\uff1f", ("星期五",)),
    ("A cage holds chickens and rabbits: 20 heads and 56 legs. How many of each?", ("12 chickens", "8 rabbits")),
    ("Today is Monday. What day will it be in 10 days?", ("Thursday",)),
    ("What is 27 + 48?", ("75",)),
    ("503 - 78 = ?", ("425",)),
    ("计算12×34", ("408",)),
    ("写一个Python函数判断回文字符串", ("[::-1]",)),
    ("请证明\uff1a任意奇数的平方减1都能被8整除", ("4k(k+1)",)),
    ("What is the capital of France?", ("demonstration",)),
]


@pytest.mark.parametrize(("question", "expected"), QUESTIONS, ids=[question[:24] for question, _ in QUESTIONS])
def test_answers_are_right_streamed_and_whole(client: Any, question: str, expected: tuple[str, ...]) -> None:
    messages = [{"role": "user", "content": question}]
    # Another limit gives another cache key, so that the second request is a miss too.
    whole = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=400)
    stream = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=401, stream=True, stream_options={"include_usage": True}
    )
    reasoning, text, usage, finish = "", "", None, None
    for chunk in stream:
        if chunk.choices:
            reasoning += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    message = whole.choices[0].message
    for part in expected:
        assert part in message.content
    assert (message.reasoning_content, message.content) == (reasoning, text)
    assert message.reasoning_content.strip() and "think>" not in message.reasoning_content + message.content
    assert whole.choices[0].finish_reason == finish == "stop"
    assert usage is not None
    assert (
        usage.completion_tokens == whole.usage.completion_tokens > usage.completion_tokens_details.reasoning_tokens > 0
    )
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 0


def test_the_last_message_of_a_conversation_is_answered(client: Any) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "2+3=5."},
        {"role": "user", "content": "What is 40 + 2?"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=300)
    assert "42" in answer.choices[0].message.content


def test_a_shared_prefix_of_two_prompts_is_computed_once(client: Any) -> None:
    system = "You are the company's internal question bot. " * 12
    for n in (61, 62):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": f"What is {n} + 7?"}]
        answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    usage = answer.usage
    assert usage.prompt_tokens > usage.prompt_tokens_details.cached_tokens >= 32
