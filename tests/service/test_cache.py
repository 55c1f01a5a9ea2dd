"""The answer cache through HTTP: a hit equals the miss, streamed or whole, and only what may be kept is kept."""

import json
import secrets
from typing import Any

import httpx

from tests.conftest import MODEL


def ask(http: httpx.Client, question: str, **more: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], **more}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def new_question() -> str:
    """One that no earlier test has asked: there are a million of them."""
    return f"What is {secrets.randbelow(1000)} + {secrets.randbelow(1000)}?"


def text_of(stream: httpx.Response) -> tuple[str, str]:
    """Thinking and answer that a stream's events add up to."""
    lines = [line[6:] for line in stream.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    deltas = [choice["delta"] for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join(d.get("reasoning_content", "") for d in deltas), "".join(d.get("content", "") for d in deltas)


def test_a_hit_equals_the_miss_whole_and_streamed(http: httpx.Client) -> None:
    question = new_question()
    miss, hit = ask(http, question), ask(http, question)
    assert (miss.headers["x-dray-cache"], hit.headers["x-dray-cache"]) == ("miss", "hit")
    assert int(hit.headers["age"]) >= 0
    first, second = miss.json(), hit.json()
    assert first["choices"] == second["choices"] and first["usage"] == second["usage"]
    assert first["id"] != second["id"]
    streamed = ask(http, question, stream=True)
    assert streamed.headers["x-dray-cache"] == "hit"
    message = first["choices"][0]["message"]
    assert text_of(streamed) == (message["reasoning_content"], message["content"])


def test_a_stored_stream_answers_a_whole_request(http: httpx.Client) -> None:
    question = new_question()
    streamed, whole = ask(http, question, stream=True), ask(http, question)
    assert (streamed.headers["x-dray-cache"], whole.headers["x-dray-cache"]) == ("miss", "hit")
    message = whole.json()["choices"][0]["message"]
    assert text_of(streamed) == (message["reasoning_content"], message["content"])


def test_what_changes_the_answer_changes_the_key(http: httpx.Client) -> None:
    question = new_question()
    ask(http, question)
    changed: list[dict[str, Any]] = [{"max_tokens": 7}, {"stop": ["zzz"]}, {"temperature": 0.5, "seed": 1}]
    for change in changed:
        assert ask(http, question, **change).headers["x-dray-cache"] == "miss", change
    assert ask(http, question + " ").headers["x-dray-cache"] == "miss"
    unchanged: list[dict[str, Any]] = [{"seed": 5}, {"temperature": 0}, {"user": "someone"}, {"stop": []}]
    for same in unchanged:
        assert ask(http, question, **same).headers["x-dray-cache"] == "hit", same


def test_only_complete_and_deterministic_answers_are_kept(http: httpx.Client) -> None:
    question = new_question()
    for _ in range(2):
        cut = ask(http, question, max_tokens=3)
        assert cut.json()["choices"][0]["finish_reason"] == "length"
        assert cut.headers["x-dray-cache"] == "miss"
        assert ask(http, question, temperature=0.8).headers["x-dray-cache"] == "miss"
    assert ask(http, question, temperature=0.8, seed=3).headers["x-dray-cache"] == "miss"
    assert ask(http, question, temperature=0.8, seed=3).headers["x-dray-cache"] == "hit"


def test_stop_strings_end_the_answer_and_are_left_out(http: httpx.Client) -> None:
    question = new_question()
    whole = ask(http, question).json()["choices"][0]["message"]
    assert "=" in whole["content"] and "=" in whole["reasoning_content"]
    body = ask(http, question, stop="=").json()["choices"][0]
    assert body["finish_reason"] == "stop"
    assert body["message"]["content"] == whole["content"].partition("=")[0]
    assert body["message"]["reasoning_content"] == whole["reasoning_content"]
