"""Teams and keys through the command and HTTP: who may ask, how much, whose answers, and what was used."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import schemathesis

from cluster.launch.preflight import free_port
from deployments.api.protocol.openapi import OPERATIONS, Operation
from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_cache import new_question
from tests.service.test_openapi import look_for_failures


@pytest.fixture(scope="module")
def guarded() -> Iterator[Dray]:
    """A Dray with two routers, to which keys are given by the tests."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    dray = Dray(folder, free_port())
    started = dray.run("up", "--detach", DRAY_ROUTER__REPLICAS="2")
    assert started.returncode == 0, started.stderr
    assert "no keys: only this machine" in started.stdout
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


def told(dray: Dray, *arguments: str) -> Any:
    ended = dray.run(*arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def do(dray: Dray, *arguments: str) -> None:
    ended = dray.run(*arguments)
    assert ended.returncode == 0, ended.stderr


def ask(dray: Dray, key: str, question: str = "", **more: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question or new_question()}], **more}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # A connection of its own each time, so that both routers are asked.
    return httpx.post(f"{dray.url}/chat/completions", json=body, headers=headers, timeout=60)


def error(answer: httpx.Response) -> tuple[int, str | None]:
    said = answer.json()["error"]
    assert set(said) == {"message", "type", "param", "code"} and said["message"]
    return answer.status_code, said["code"]


@pytest.fixture(scope="module")
def key(guarded: Dray) -> str:
    """The first key: from now on all need one."""
    assert ask(guarded, "").status_code == 200
    do(guarded, "teams", "add", "support")
    made = told(guarded, "keys", "create", "support", "--label", "bot")
    wait_for(lambda: {ask(guarded, "").status_code for _ in range(6)} == {401}, 2)
    return str(made["key"])


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
    said = claude.messages.create(model=MODEL, max_tokens=500, messages=[{"role": "user", "content": "What is 2 + 3?"}])
    assert "5" in said.content[-1].text  # type: ignore[union-attr]
    for path in ("/health/ready", "/health/live", "/metrics", "/openapi.json"):
        assert httpx.get(guarded.root + path).status_code == 200, path
    for path in ("/v1/models", "/v1/usage", "/admin/keys"):
        assert error(httpx.get(guarded.root + path))[0] == 401, path


def test_a_revoked_key_is_refused_everywhere_within_a_second(guarded: Dray, key: str) -> None:
    made = told(guarded, "keys", "create", "support")
    wait_for(lambda: all(ask(guarded, made["key"]).status_code == 200 for _ in range(6)), 3)
    do(guarded, "keys", "revoke", made["id"])
    time.sleep(1)
    assert {error(ask(guarded, made["key"])) for _ in range(8)} == {(401, "invalid_api_key")}
    assert ask(guarded, key).status_code == 200


def test_rotated_and_expiring_keys(guarded: Dray, key: str) -> None:
    old = told(guarded, "keys", "create", "support", "--label", "bot", "--expires-in", "1h")
    new = told(guarded, "keys", "rotate", old["id"], "--grace", "1s")
    assert (new["team"], new["label"], new["ends"]) == ("support", "bot", old["ends"]) and new["ends"] > 0
    wait_for(lambda: ask(guarded, new["key"]).status_code == 200, 3)
    wait_for(lambda: ask(guarded, old["key"]).status_code == 401, 4)
    short = told(guarded, "keys", "create", "support", "--expires-in", "2s")
    wait_for(lambda: ask(guarded, short["key"]).status_code == 401, 4)
    for ended in (old, short):
        refused = guarded.run("keys", "rotate", ended["id"])
        assert refused.returncode == 1 and "create a new key" in refused.stderr
    listed = {one["id"]: one for one in told(guarded, "keys", "list")}
    assert listed[old["id"]]["ends"] < time.time() + 1 and listed[new["id"]]["ends"] == old["ends"]
    assert listed[old["id"]]["replaced_by"] == new["id"]
    assert not any("digest" in one or "key" in one for one in listed.values())


def test_a_team_asks_the_models_it_may(guarded: Dray, key: str) -> None:
    do(guarded, "teams", "add", "narrow", "--model", "another")
    narrow = told(guarded, "keys", "create", "narrow")["key"]
    wait_for(lambda: error(ask(guarded, narrow)) == (403, "model_not_allowed"), 3)
    time.sleep(0.5)  # until the other router knows it too
    models = httpx.get(f"{guarded.url}/models", headers={"Authorization": f"Bearer {narrow}"}).json()
    assert models["data"] == []
    do(guarded, "teams", "set", "narrow", "--model", MODEL)
    wait_for(lambda: ask(guarded, narrow).status_code == 200, 3)
    do(guarded, "teams", "remove", "narrow")
    wait_for(lambda: ask(guarded, narrow).status_code == 401, 3)


def test_teams_have_answers_of_their_own_unless_they_share(guarded: Dray, key: str) -> None:
    keys = {}
    for name, how in (("one", "--own-answers"), ("sharing-a", "--share-answers"), ("sharing-b", "--share-answers")):
        do(guarded, "teams", "add", name, how)
        keys[name] = told(guarded, "keys", "create", name)["key"]
    wait_for(lambda: all(ask(guarded, one).status_code == 200 for one in keys.values() for _ in range(4)), 5)
    question = new_question()
    seen = [ask(guarded, one, question).headers["x-dray-cache"] for one in (key, *keys.values(), key)]
    assert seen == ["miss", "miss", "miss", "hit", "hit"]
    report = told(guarded, "cache", "stats")
    assert {"team.support", "team.one", "shared"} <= {row["namespace"] for row in report["answers"]}


def test_quotas_hold_over_routers_and_say_what_is_left(guarded: Dray, key: str) -> None:
    do(guarded, "teams", "add", "bounded", "--requests-per-minute", "10", "--tokens-per-minute", "100000")
    bounded = told(guarded, "keys", "create", "bounded")["key"]
    wait_for(lambda: httpx.get(f"{guarded.url}/models", headers={"x-api-key": bounded}).status_code == 200, 3)
    time.sleep(0.5)  # until the other router knows it too
    answers = [ask(guarded, bounded, "What is 1 + 1?") for _ in range(14)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 4
    assert answers[0].headers["x-ratelimit-limit-requests"] == "10"
    assert [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers[:10]] == list(range(9, -1, -1))
    assert 0 < int(answers[0].headers["x-ratelimit-remaining-tokens"]) < 100_000
    assert error(answers[-1]) == (429, "rate_limit_exceeded")
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert ask(guarded, key).status_code == 200, "the others are not concerned"


def test_the_admin_api(guarded: Dray, key: str) -> None:
    admin = told(guarded, "keys", "create", "--admin")["key"]
    http = httpx.Client(base_url=guarded.root, headers={"Authorization": f"Bearer {admin}"}, timeout=30)
    wait_for(lambda: all(http.get("/admin/teams").status_code == 200 for _ in range(4)), 3)
    assert error(ask(guarded, admin)) == (403, "not_a_teams_key")
    theirs = httpx.get(f"{guarded.root}/admin/teams", headers={"Authorization": f"Bearer {key}"})
    assert error(theirs) == (403, "admin_key_needed")
    made = http.post("/admin/teams", json={"name": "by-http", "weight": 2, "quota": {"requests_at_a_time": 4}})
    assert made.status_code == 201 and made.json()["quota"]["requests_at_a_time"] == 4
    assert error(http.post("/admin/teams", json={"name": "by-http"}))[0] == 409
    assert error(http.post("/admin/teams", json={"name": "no spaces"}))[0] == 400
    assert error(http.post("/admin/teams", json={"name": "x", "quota": {"requests_per_minute": -1}}))[0] == 400
    assert error(http.post("/admin/teams", json={"nam": "x"}))[0] == 400
    assert http.patch("/admin/teams/by-http", json={"weight": 3}).json()["weight"] == 3
    assert error(http.patch("/admin/teams/nobody", json={"weight": 3}))[0] == 404
    fresh = http.post("/admin/keys", json={"team": "by-http", "label": "x", "expires_in_s": 3600}).json()
    wait_for(lambda: ask(guarded, fresh["key"]).status_code == 200, 3)
    again = http.post(f"/admin/keys/{fresh['id']}/rotate", json={"grace_s": 0}).json()
    assert again["ends"] == fresh["ends"] > 0 and again["label"] == "x"
    assert error(http.post(f"/admin/keys/{fresh['id']}/rotate"))[0] == 400, "it has ended"
    wait_for(lambda: ask(guarded, fresh["key"]).status_code == 401, 3)
    wait_for(lambda: ask(guarded, again["key"]).status_code == 200, 3)
    assert http.delete(f"/admin/keys/{again['id']}").status_code == 200
    wait_for(lambda: ask(guarded, again["key"]).status_code == 401, 3)
    assert error(http.delete("/admin/keys/nothing"))[0] == 404
    assert http.delete("/admin/teams/by-http").json() == {"deleted": "by-http", "keys": 2}
    usage = http.get("/v1/usage", params={"days": 1}).json()["data"]
    assert {"support"} <= {row["team"] for row in usage}
    assert error(http.get("/v1/usage", params={"days": "many"}))[0] == 400


@pytest.mark.parametrize(
    "operation",
    [one for one in OPERATIONS if one.path.startswith("/admin")],
    ids=lambda one: f"{one.method} {one.path}",
)
def test_no_request_makes_the_admin_api_fail(guarded: Dray, key: str, operation: Operation) -> None:
    admin = told(guarded, "keys", "create", "--admin")["key"]
    headers = {"Authorization": f"Bearer {admin}"}
    wait_for(lambda: all(httpx.get(f"{guarded.root}/admin/teams", headers=headers).is_success for _ in range(4)), 3)
    described = schemathesis.openapi.from_url(f"{guarded.root}/openapi.json")
    look_for_failures(described, guarded, operation, 20, headers=headers)


def test_usage_counts_what_was_made_and_what_was_saved(guarded: Dray, key: str) -> None:
    do(guarded, "teams", "add", "counted")
    mine = told(guarded, "keys", "create", "counted")["key"]
    wait_for(lambda: all(httpx.get(f"{guarded.url}/models", headers={"x-api-key": mine}).is_success for _ in range(6)))
    question = new_question()
    made = [ask(guarded, mine, question) for _ in range(3)]
    assert [one.headers["x-dray-cache"] for one in made] == ["miss", "hit", "hit"]
    usage = made[0].json()["usage"]

    def rows() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(
            f"{guarded.url}/usage", headers={"Authorization": f"Bearer {mine}"}
        ).json()["data"]
        return found if found and found[0]["requests"] == 3 else []

    [row] = wait_for(rows, 5)
    assert (row["team"], row["model"], row["hits"]) == ("counted", MODEL, 2)
    assert (row["prompt"], row["completion"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert row["saved_completion"] == 2 * usage["completion_tokens"]
    assert told(guarded, "keys", "usage", "--team", "counted", "--days", "1") == [row]


def test_keys_are_nowhere_but_with_their_owners_and_outlive_a_restart(guarded: Dray, key: str) -> None:
    secret = key.rpartition("-")[2]
    files = [path for path in guarded.folder.rglob("*") if path.is_file() and path.stat().st_size < 50_000_000]
    assert any("worker" in path.name for path in files), "Ray's logs are among them"
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert secret not in httpx.get(f"{guarded.root}/metrics").text
    do(guarded, "down")
    started = guarded.run("up", "--detach")
    assert started.returncode == 0 and "keys are needed" in started.stdout
    assert ask(guarded, "").status_code == 401 and ask(guarded, key).status_code == 200


@pytest.mark.slow
def test_listening_to_others_needs_keys(another: Dray) -> None:
    started = another.run("up", "--detach", "--host", "0.0.0.0")
    assert started.returncode == 0 and "every request is refused" in started.stdout
    assert error(ask(another, "")) == (401, "invalid_api_key")
    assert another.run("teams", "list").returncode == 0
