"""The answer cache over HTTP: a hit equals the miss, streamed or whole, and only allowed answers are stored."""

import json
import secrets
from typing import Any

import httpx
import redis

from tests.conftest import MODEL, Dray, wait_for


def ask(http: httpx.Client, question: str, **more: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], **more}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def new_question() -> str:
    """A question that no earlier test has asked, out of a million."""
    return f"What is {secrets.randbelow(1000)} + {secrets.randbelow(1000)}?"


def text_of(stream: httpx.Response) -> tuple[str, str]:
    """The thinking and the answer that the events of a stream contain."""
    lines = [line[6:] for line in stream.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    deltas = [choice["delta"] for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join((d.get("reasoning_content") or "") for d in deltas), "".join(
        (d.get("content") or "") for d in deltas
    )


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


def test_only_complete_and_deterministic_answers_are_stored(http: httpx.Client) -> None:
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


def test_request_headers_control_the_use_of_the_cache(http: httpx.Client) -> None:
    question = new_question()

    def ask_with(**headers: str) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
        return http.post("/v1/chat/completions", json=body, headers=headers)

    missing = ask_with(**{"Cache-Control": "only-if-cached"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (504, "not_cached")
    first = ask_with(**{"Cache-Control": "no-store"})
    assert first.headers["x-dray-cache"] == "bypass"
    assert ask_with(**{"X-Dray-Cache-TTL": "60"}).headers["x-dray-cache"] == "miss", "no-store has stored nothing"
    cached = ask_with(**{"Cache-Control": "only-if-cached"})
    assert cached.headers["x-dray-cache"] == "hit" and cached.json()["choices"] == first.json()["choices"]
    assert ask_with(**{"Cache-Control": "no-store"}).headers["x-dray-cache"] == "hit"
    assert ask_with(**{"Cache-Control": "max-age=3600"}).headers["x-dray-cache"] == "hit"
    wait_for(lambda: int(ask_with().headers["age"]) > 1)
    assert ask_with(**{"Cache-Control": "max-age=1"}).headers["x-dray-cache"] == "miss"
    assert int(ask_with().headers["age"]) <= 1, "the new answer replaces the old one"
    assert ask_with(**{"Cache-Control": "no-cache"}).headers["x-dray-cache"] == "miss"
    refused = ask_with(**{"X-Dray-Cache-TTL": "never"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-dray-cache-ttl")


def test_commands_show_and_clear_the_cache(dray: Dray, http: httpx.Client) -> None:
    question = new_question()
    answer = ask(http, question)
    text = answer.json()["choices"][0]["message"]["content"]
    assert answer.json()["replica"] == dray.status()["replicas"][0]["replica"]
    key = answer.headers["x-dray-cache-key"]
    assert text in dray.run("cache", "show", key).stdout
    entry = json.loads(dray.run("cache", "show", key, "--json").stdout)
    assert (entry["model"], entry["namespace"], entry["choices"][0]["text"]) == (MODEL, "default", text)
    report = json.loads(dray.run("cache", "stats", "--json").stdout)
    [row] = [row for row in report["answers"] if row["namespace"] == "default" and row["model"] == MODEL]
    assert row["answers"] >= 1 and report["requests"]["miss"] >= 1
    assert "MiB" in dray.run("cache", "stats").stdout
    assert dray.run("cache", "clear", "--model", "another").stdout == "cleared 0 answers\n"
    assert ask(http, question).headers["x-dray-cache"] == "hit"
    assert dray.run("cache", "clear", "--model", MODEL, "--namespace", "default").returncode == 0
    assert ask(http, question).headers["x-dray-cache"] == "miss"
    assert dray.run("cache", "show", "0" * 40).returncode == 1


def test_a_miss_reads_its_key_once_before_single_flight(dray: Dray, http: httpx.Client) -> None:
    """The fast path reads the key; the handler that Serve runs finds the prepared request in the ASGI scope."""
    question, commands = new_question(), list[str]()
    with redis.Redis.from_url(f"unix://{dray.folder}/s/redis/redis.sock") as store, store.monitor() as monitor:
        key = ask(http, question).headers["x-dray-cache-key"]
        ask(http, question)
        for entry in monitor.listen():
            if key in entry["command"] and entry["client_type"] != "lua":
                commands.append(entry["command"].split()[0])
            if commands.count("GET") == 2:
                break
    assert commands[:2] == ["GET", "EVALSHA"], "the lookup, then the acquisition of the flight"
    assert commands[-1] == "GET" and commands.count("GET") == 2, "the hit reads once too"
