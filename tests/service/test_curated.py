"""Curated answers and feedback through a running Dray and its command."""

import json
from pathlib import Path

import httpx

from tests.conftest import Dray, wait_for
from tests.service.test_cache import ask, new_question


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
