"""Teams and keys, through the command and over HTTP: access, quotas, answer caches and usage."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import schemathesis

from cluster.ports import free_port
from deployments.api.protocol.openapi import OPERATIONS, Operation
from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_cache import new_question
from tests.service.test_openapi import look_for_failures


@pytest.fixture(scope="module")
def guarded() -> Iterator[Dray]:
    """A Dray with two routers, whose keys the tests create."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    dray = Dray(folder, free_port())
    started = dray.run("up", "--detach", DRAY_ROUTER__REPLICAS="2")
    assert started.returncode == 0, started.stderr
    assert "No API keys yet: listening on 127.0.0.1 only" in started.stdout
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


def run_json(dray: Dray, *arguments: str) -> Any:
    done = dray.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(dray: Dray, *arguments: str) -> None:
    done = dray.run(*arguments)
    assert done.returncode == 0, done.stderr


def ask(dray: Dray, key: str, question: str = "", **more: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question or new_question()}], **more}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # A new connection for each request, so that both routers get some.
    return httpx.post(f"{dray.url}/chat/completions", json=body, headers=headers, timeout=60)


def error(answer: httpx.Response) -> tuple[int, str | None]:
    detail = answer.json()["error"]
    assert set(detail) == {"message", "type", "param", "code"} and detail["message"]
    return answer.status_code, detail["code"]


def test_without_keys_no_web_page_can_take_it_over(guarded: Dray) -> None:
    """The first test here: the fixture `key` ends the time without keys."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
    json_type, own = {"Content-Type": "application/json"}, {"Origin": guarded.root, "Sec-Fetch-Site": "same-origin"}

    def send(path: str, headers: dict[str, str], content: str = body) -> httpx.Response:
        return httpx.post(f"{guarded.root}{path}", content=content, headers=headers, timeout=60)

    for path in ("/v1/chat/completions", "/tokenize", "/admin/teams", "/admin/keys"):
        assert error(send(path, {})) == (415, "unsupported_media_type"), "a Blob without a type"
        assert error(send(path, json_type | {"Host": "rebound.example"})) == (421, "host_not_allowed")
        assert error(send(path, json_type | {"Origin": "http://evil.example"})) == (403, "origin_not_allowed")
    for path in ("/metrics", "/status/machine", "/v1/models"):
        refused = httpx.get(f"{guarded.root}{path}", headers={"Host": "rebound.example"})
        assert error(refused) == (421, "host_not_allowed")
    for path, content in (("/admin/teams", '{"name": "mine"}'), ("/admin/keys", '{"team": ""}')):
        assert error(send(path, json_type | own, content)) == (403, "admin_key_needed")
    assert run_json(guarded, "teams", "list") == [] and run_json(guarded, "keys", "list") == []
    assert send("/v1/chat/completions", json_type | own).status_code == 200, "a page of its own"
    counted = httpx.get(f"{guarded.root}/metrics").text
    assert 'status="421"' in counted and 'status="415"' in counted


@pytest.fixture(scope="module")
def key(guarded: Dray) -> str:
    """The first key. Once it exists, every request needs a key."""
    assert ask(guarded, "").status_code == 200
    run(guarded, "teams", "add", "support")
    created = run_json(guarded, "keys", "create", "support", "--label", "bot")
    wait_for(lambda: {ask(guarded, "").status_code for _ in range(6)} == {401}, 2)
    return str(created["key"])


def test_a_key_is_needed_and_works_with_every_client(guarded: Dray, key: str) -> None:
    assert error(ask(guarded, "")) == (401, "invalid_api_key")
    for wrong in (key[:-1] + ("a" if key[-1] != "a" else "b"), "dray-x", "sk-" + "a" * 40, key.upper()):
        assert error(ask(guarded, wrong)) == (401, "invalid_api_key")
    assert ask(guarded, key).status_code == 200
    client = openai.OpenAI(base_url=guarded.url, api_key=key, max_retries=0)
    assert [model.id for model in client.models.list()] == [MODEL]
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=guarded.url, api_key="wrong", max_retries=0).models.list()
    claude = anthropic.Anthropic(base_url=guarded.root, api_key=key, max_retries=0)
    answer = claude.messages.create(
        model=MODEL, max_tokens=500, messages=[{"role": "user", "content": "What is 2 + 3?"}]
    )
    assert "5" in answer.content[-1].text  # type: ignore[union-attr]
    for path in ("/health/ready", "/health/live", "/metrics", "/openapi.json"):
        assert httpx.get(guarded.root + path).status_code == 200, path
    for path in ("/v1/models", "/v1/usage", "/admin/keys"):
        assert error(httpx.get(guarded.root + path))[0] == 401, path


def test_a_revoked_key_is_refused_everywhere_within_a_second(guarded: Dray, key: str) -> None:
    revoked = run_json(guarded, "keys", "create", "support")
    wait_for(lambda: all(ask(guarded, revoked["key"]).status_code == 200 for _ in range(6)), 3)
    run(guarded, "keys", "revoke", revoked["id"])
    revoked_at = time.monotonic()
    accepted_s: list[float] = []

    def refused_everywhere() -> bool:
        for _ in range(8):  # so that both routers are asked
            sent_s = time.monotonic() - revoked_at
            answer = ask(guarded, revoked["key"])
            if answer.status_code == 200:
                accepted_s.append(sent_s)
                return False
            assert error(answer) == (401, "invalid_api_key")
        return True

    wait_for(refused_everywhere)
    assert max(accepted_s, default=0) < 1, "the key was accepted after the promised second"
    assert ask(guarded, key).status_code == 200


def test_rotated_and_expiring_keys(guarded: Dray, key: str) -> None:
    old = run_json(guarded, "keys", "create", "support", "--label", "bot", "--expires-in", "1h")
    new = run_json(guarded, "keys", "rotate", old["id"], "--grace", "1s")
    assert (new["team"], new["label"], new["ends"]) == ("support", "bot", old["ends"]) and new["ends"] > 0
    wait_for(lambda: ask(guarded, new["key"]).status_code == 200, 3)
    short = run_json(guarded, "keys", "create", "support", "--expires-in", "2s")

    def expired(key: str) -> bool:
        # The status is not enough: a router that does not know a new key yet answers 401 too.
        answer = ask(guarded, key)
        return answer.status_code == 401 and "expired" in answer.text

    for ended_key in (old, short):
        wait_for(partial(expired, ended_key["key"]), 6)
        refused = guarded.run("keys", "rotate", ended_key["id"])
        assert refused.returncode == 1 and "create a new key" in refused.stderr
    listed = {entry["id"]: entry for entry in run_json(guarded, "keys", "list")}
    assert listed[old["id"]]["ends"] < time.time() + 1 and listed[new["id"]]["ends"] == old["ends"]
    assert listed[old["id"]]["replaced_by"] == new["id"]
    assert not any("digest" in entry or "key" in entry for entry in listed.values())


def test_a_team_uses_the_models_it_is_allowed(guarded: Dray, key: str) -> None:
    run(guarded, "teams", "add", "narrow", "--model", "another")
    narrow = run_json(guarded, "keys", "create", "narrow")["key"]
    refused = (403, "model_not_allowed")
    wait_for(lambda: all(error(ask(guarded, narrow)) == refused for _ in range(6)), 3)
    models = httpx.get(f"{guarded.url}/models", headers={"Authorization": f"Bearer {narrow}"}).json()
    assert models["data"] == []
    run(guarded, "teams", "set", "narrow", "--model", MODEL)
    wait_for(lambda: ask(guarded, narrow).status_code == 200, 3)
    run(guarded, "teams", "remove", "narrow")
    wait_for(lambda: ask(guarded, narrow).status_code == 401, 3)


def test_each_team_has_its_own_answers_unless_it_shares(guarded: Dray, key: str) -> None:
    keys = {}
    flags = {"one": "--own-answers", "sharing-a": "--share-answers", "sharing-b": "--share-answers"}
    for name, flag in flags.items():
        run(guarded, "teams", "add", name, flag)
        keys[name] = run_json(guarded, "keys", "create", name)["key"]
    wait_for(lambda: all(ask(guarded, team_key).status_code == 200 for team_key in keys.values() for _ in range(4)), 5)
    question = new_question()
    results = [ask(guarded, team_key, question).headers["x-dray-cache"] for team_key in (key, *keys.values(), key)]
    assert results == ["miss", "miss", "miss", "hit", "hit"]
    report = run_json(guarded, "cache", "stats")
    assert {"team.support", "team.one", "shared"} <= {row["namespace"] for row in report["answers"]}


def test_cached_tokens_tell_nothing_of_what_other_teams_asked(guarded: Dray, key: str) -> None:
    run(guarded, "teams", "add", "curious")
    curious = run_json(guarded, "keys", "create", "curious")["key"]
    wait_for(lambda: all(ask(guarded, curious, "What is 1 + 1?").status_code == 200 for _ in range(4)), 5)
    question = new_question() + " word" * 150

    def cached(key: str, tokens: int) -> int:
        answer = ask(guarded, key, question, max_tokens=tokens)
        assert answer.headers["x-dray-cache"] != "hit"
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    cached(key, 1)
    assert cached(key, 2) >= 128, "the engine has the prompt's blocks, and the team put them there"
    assert cached(curious, 1) < 128
    assert cached(curious, 2) >= 128
    run(guarded, "teams", "remove", "curious")


def test_quotas_hold_over_routers_and_report_what_is_left(guarded: Dray, key: str) -> None:
    run(guarded, "teams", "add", "bounded", "--requests-per-minute", "10", "--tokens-per-minute", "100000")
    bounded = run_json(guarded, "keys", "create", "bounded")["key"]
    headers = {"x-api-key": bounded}
    wait_for(lambda: all(httpx.get(f"{guarded.url}/models", headers=headers).is_success for _ in range(6)), 3)
    answers = [ask(guarded, bounded, "What is 1 + 1?") for _ in range(14)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 4
    assert answers[0].headers["x-ratelimit-limit-requests"] == "10"
    assert [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers[:10]] == list(range(9, -1, -1))
    assert 0 < int(answers[0].headers["x-ratelimit-remaining-tokens"]) < 100_000
    assert error(answers[-1]) == (429, "rate_limit_exceeded")
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert ask(guarded, key).status_code == 200, "other teams are not affected"


def test_the_admin_api(guarded: Dray, key: str) -> None:
    admin = run_json(guarded, "keys", "create", "--admin")["key"]
    http = httpx.Client(base_url=guarded.root, headers={"Authorization": f"Bearer {admin}"}, timeout=30)
    wait_for(lambda: all(http.get("/admin/teams").status_code == 200 for _ in range(4)), 3)
    assert error(ask(guarded, admin)) == (403, "not_a_teams_key")
    refused = httpx.get(f"{guarded.root}/admin/teams", headers={"Authorization": f"Bearer {key}"})
    assert error(refused) == (403, "admin_key_needed")
    added = http.post("/admin/teams", json={"name": "by-http", "weight": 2, "quota": {"requests_at_a_time": 4}})
    assert added.status_code == 201 and added.json()["quota"]["requests_at_a_time"] == 4
    assert error(http.post("/admin/teams", json={"name": "by-http"}))[0] == 409
    assert error(http.post("/admin/teams", json={"name": "no spaces"}))[0] == 400
    assert error(http.post("/admin/teams", json={"name": "x", "quota": {"requests_per_minute": -1}}))[0] == 400
    assert error(http.post("/admin/teams", json={"nam": "x"}))[0] == 400
    for path, body, field in (
        ("/admin/teams", {"name": "t", "quota": {"tokens_per_month": 2**64}}, "quota.tokens_per_month"),
        ("/admin/keys", {"team": "t", "expires_in_s": 2**64}, "expires_in_s"),
        ("/admin/keys/none/rotate", {"grace_s": 2**64}, "grace_s"),
    ):
        too_large = http.post(path, json=body)
        assert error(too_large) == (400, "invalid_value") and too_large.json()["error"]["param"] == field
        assert "between -2^63 and 2^64 - 1" in too_large.json()["error"]["message"]
    assert http.patch("/admin/teams/by-http", json={"weight": 3}).json()["weight"] == 3
    assert error(http.patch("/admin/teams/nobody", json={"weight": 3}))[0] == 404
    fresh = http.post("/admin/keys", json={"team": "by-http", "label": "x", "expires_in_s": 3600}).json()
    wait_for(lambda: ask(guarded, fresh["key"]).status_code == 200, 3)
    rotated = http.post(f"/admin/keys/{fresh['id']}/rotate", json={"grace_s": 0}).json()
    assert rotated["ends"] == fresh["ends"] > 0 and rotated["label"] == "x"
    assert error(http.post(f"/admin/keys/{fresh['id']}/rotate"))[0] == 400, "it has ended"
    wait_for(lambda: ask(guarded, fresh["key"]).status_code == 401, 3)
    wait_for(lambda: ask(guarded, rotated["key"]).status_code == 200, 3)
    assert http.delete(f"/admin/keys/{rotated['id']}").status_code == 200
    wait_for(lambda: ask(guarded, rotated["key"]).status_code == 401, 3)
    assert error(http.delete("/admin/keys/nothing"))[0] == 404
    assert http.delete("/admin/teams/by-http").json() == {"deleted": "by-http", "keys": 2}
    usage = http.get("/v1/usage", params={"days": 1}).json()["data"]
    assert {"support"} <= {row["team"] for row in usage}
    assert error(http.get("/v1/usage", params={"days": "many"}))[0] == 400


@pytest.mark.parametrize(
    "operation",
    [operation for operation in OPERATIONS if operation.path.startswith("/admin")],
    ids=lambda operation: f"{operation.method} {operation.path}",
)
def test_no_request_makes_the_admin_api_fail(guarded: Dray, key: str, operation: Operation) -> None:
    admin = run_json(guarded, "keys", "create", "--admin")["key"]
    headers = {"Authorization": f"Bearer {admin}"}
    wait_for(lambda: all(httpx.get(f"{guarded.root}/admin/teams", headers=headers).is_success for _ in range(4)), 3)
    described = schemathesis.openapi.from_url(f"{guarded.root}/openapi.json")
    look_for_failures(described, guarded, operation, 8, headers=headers)


def test_usage_counts_what_was_generated_and_what_the_cache_saved(guarded: Dray, key: str) -> None:
    run(guarded, "teams", "add", "counted")
    own = run_json(guarded, "keys", "create", "counted")["key"]
    wait_for(lambda: all(httpx.get(f"{guarded.url}/models", headers={"x-api-key": own}).is_success for _ in range(6)))
    question = new_question()
    answers = [ask(guarded, own, question) for _ in range(3)]
    assert [answer.headers["x-dray-cache"] for answer in answers] == ["miss", "hit", "hit"]
    usage = answers[0].json()["usage"]

    def rows() -> list[dict[str, Any]]:
        response = httpx.get(f"{guarded.url}/usage", headers={"Authorization": f"Bearer {own}"})
        data: list[dict[str, Any]] = response.json()["data"]
        return data if data and data[0]["requests"] == 3 else []

    [row] = wait_for(rows, 5)
    assert (row["team"], row["model"], row["hits"]) == ("counted", MODEL, 2)
    assert (row["prompt"], row["completion"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert row["saved_completion"] == 2 * usage["completion_tokens"]
    assert run_json(guarded, "keys", "usage", "--team", "counted", "--days", "1") == [row]


@pytest.mark.slow
def test_secrets_are_stored_nowhere_and_keys_outlive_a_restart(guarded: Dray, key: str) -> None:
    secret = key.rpartition("-")[2]
    files = [path for path in guarded.folder.rglob("*") if path.is_file() and path.stat().st_size < 50_000_000]
    assert any("worker" in path.name for path in files), "Ray's logs are among them"
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert secret not in httpx.get(f"{guarded.root}/metrics").text
    run(guarded, "down")
    started = guarded.run("up", "--detach")
    assert started.returncode == 0 and "An API key is required" in started.stdout
    assert ask(guarded, "").status_code == 401 and ask(guarded, key).status_code == 200


@pytest.mark.slow
def test_without_its_last_key_it_stays_shut_until_keys_are_disabled(guarded: Dray, key: str) -> None:
    """The last test here: afterwards no key is left."""
    for team in run_json(guarded, "teams", "list"):
        run(guarded, "teams", "remove", team["name"])
    valid = run_json(guarded, "keys", "create", "--admin")
    assert "revoke it first" in guarded.run("keys", "remove", valid["id"]).stderr
    for admin in run_json(guarded, "keys", "list"):
        run(guarded, "keys", "revoke", admin["id"])
        run(guarded, "keys", "remove", admin["id"])
    assert run_json(guarded, "keys", "list") == []
    wait_for(lambda: "all have been removed" in ask(guarded, key).text + ask(guarded, "").text, 3)
    for _ in range(4):  # both routers
        assert ask(guarded, "").status_code == ask(guarded, key).status_code == 401
        assert httpx.get(f"{guarded.root}/admin/keys").status_code == 401
    assert guarded.run("keys", "disable", timeout=30).returncode != 0, "nobody has confirmed it"
    assert ask(guarded, "").status_code == 401
    run(guarded, "keys", "disable", "--yes")
    wait_for(lambda: {ask(guarded, "").status_code for _ in range(6)} == {200}, 5)


@pytest.mark.slow
def test_listening_beyond_loopback_needs_keys(another: Dray) -> None:
    started = another.run("up", "--detach", "--host", "0.0.0.0")
    assert started.returncode == 0 and "every request is refused" in started.stdout
    assert error(ask(another, "")) == (401, "invalid_api_key")
    assert another.run("teams", "list").returncode == 0
