"""Curated answers and feedback through a running Dray and its command."""

import json
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_cache import ask, new_question
from tests.service.test_faults import redis_process


def test_a_corrected_answer_is_given_from_then_on(dray: Dray, http: httpx.Client, tmp_path: Path) -> None:
    question, imported = new_question(), new_question()
    file = tmp_path / "faq.csv"
    file.write_bytes(f"\ufeffquestion,answer\r\n{imported},打开设置。\r\n".encode())
    done = dray.run("answers", "import", str(file))
    assert done.returncode == 0, done.stderr
    given = wait_for(lambda: (a := ask(http, imported)).headers["x-dray-cache"] == "curated" and a)
    assert given.json()["choices"][0]["message"]["content"] == "打开设置。"
    ask(http, question)
    vote = {"id": ask(http, question).json()["id"], "rating": "down", "correction": "Ask Ann."}
    voted = http.post(f"{dray.url}/feedback", json=vote)
    assert voted.status_code == 201, voted.text
    done = dray.run("feedback", "accept", voted.json()["id"])
    assert done.returncode == 0, done.stderr
    given = wait_for(lambda: (a := ask(http, question)).headers["x-dray-cache"] == "curated" and a)
    assert given.json()["choices"][0]["message"]["content"] == "Ask Ann."
    listed = json.loads(dray.run("answers", "list", "--json").stdout)
    assert {imported, question} <= {row["question"] for row in listed if not row["outdated"]}
    verified = dray.run("audit", "verify", "--json")
    assert verified.returncode == 0 and json.loads(verified.stdout)["entries"] >= 2


def import_one(dray: Dray, folder: Path, question: str, answer: str) -> None:
    file = folder / "one.jsonl"
    file.write_text(json.dumps({"question": question, "answer": answer}))
    done = dray.run("answers", "import", str(file))
    assert done.returncode == 0, done.stderr


def test_a_router_that_was_killed_gives_what_was_imported_with_its_first_answer(
    dray: Dray, http: httpx.Client, tmp_path: Path
) -> None:
    question = new_question()
    import_one(dray, tmp_path, question, "Ask Ann.")
    for router in dray.processes("ServeReplica:dray:router"):
        router.kill()

    def first_answer() -> httpx.Response | None:
        with suppress(httpx.TransportError):  # the connection of the router that was killed
            body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
            if (answer := http.post("/v1/chat/completions", json=body)).status_code == 200:
                return answer
        return None

    assert wait_for(first_answer, 60).headers["x-dray-cache"] == "curated"


@pytest.mark.slow
def test_curated_answers_survive_their_redis_and_votes_meanwhile_are_refused(
    dray: Dray, http: httpx.Client, tmp_path: Path
) -> None:
    question = new_question()
    import_one(dray, tmp_path, question, "Ask Ben.")
    given = wait_for(lambda: (a := ask(http, question)).headers["x-dray-cache"] == "curated" and a)
    vote = {"id": given.json()["id"], "rating": "down", "correction": "Ask Cay."}
    server = redis_process(dray, "teams")
    server.suspend()
    for _ in range(3):
        assert ask(http, question).headers["x-dray-cache"] == "curated"
    refused = http.post("/v1/feedback", json=vote)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "feedback_unavailable")
    listed = dray.run("answers", "list")
    assert listed.returncode == 1 and "Redis" in listed.stderr, listed.stderr
    server.kill()

    def restarted() -> bool:
        with suppress(ValueError, psutil.Error):  # there is none at the moment
            return redis_process(dray, "teams").pid != server.pid
        return False

    wait_for(restarted, 60)
    voted = wait_for(lambda: (v := http.post("/v1/feedback", json=vote)).status_code == 201 and v)
    assert ask(http, question).headers["x-dray-cache"] == "curated"
    listed = json.loads(dray.run("answers", "list", "--search", question, "--json").stdout)
    assert [row["answer"] for row in listed] == ["Ask Ben."]
    done = dray.run("feedback", "accept", voted.json()["id"])
    assert done.returncode == 0, done.stderr
    wait_for(lambda: ask(http, question).json()["choices"][0]["message"]["content"] == "Ask Cay.")
