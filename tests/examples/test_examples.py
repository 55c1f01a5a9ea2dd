"""The examples, run as their readers run them, against the running service."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.ports import free_port
from tests.conftest import MODEL, Dray, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"


def environment(dray: Dray, key: str = "none") -> dict[str, str]:
    return os.environ | {"OPENAI_BASE_URL": dray.url, "OPENAI_API_KEY": key}


def run(dray: Dray, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=environment(dray),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@contextmanager
def bot(dray: Dray, key: str) -> Iterator[str]:
    """Runs the bot's backend, and yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "bot:app", "--port", str(port)]
    with subprocess.Popen(command, env=environment(dray, key), stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}/ask"

        def answers() -> bool:
            try:
                return httpx.get(url).status_code == 405
            except httpx.ConnectError:
                return False

        try:
            wait_for(answers, 120)
            yield url
        finally:
            process.terminate()


@pytest.fixture
def key(dray: Dray, http: httpx.Client) -> Iterator[str]:
    """A team's key. Afterwards the shared Dray needs no key again."""
    assert dray.run("teams", "add", "bots").returncode == 0
    key = json.loads(dray.run("keys", "create", "bots", "--json").stdout)["key"]
    wait_for(lambda: http.get("/v1/models").status_code == 401)
    yield key
    assert dray.run("teams", "remove", "bots").returncode == 0
    assert dray.run("keys", "disable", "--yes").returncode == 0
    wait_for(lambda: http.get("/v1/models").status_code == 200)


def test_the_bot_streams_answers_and_caches_them(dray: Dray, key: str) -> None:
    question = {"question": "What is 61 + 17?"}
    with bot(dray, key) as url:
        with httpx.stream("POST", url, json=question, timeout=60) as first:
            pieces = list(first.iter_text())
        assert first.headers["X-Cache"] == "miss"
        assert "78" in "".join(pieces)
        again = httpx.post(url, json=question, timeout=60)
        assert (again.headers["X-Cache"], again.text) == ("hit", "".join(pieces))
        assert httpx.post(url, json={"question": " "}).status_code == 400
        [row] = wait_for(lambda: usage(dray))
        assert (row["team"], row["requests"], row["hits"]) == ("bots", 2, 1)
    with bot(dray, "dray-wrong") as url:
        refused = httpx.post(url, json=question, timeout=60)
        assert (refused.status_code, refused.json()) == (503, {"error": "no answers at the moment"})


def usage(dray: Dray) -> list[dict[str, Any]]:
    """The bots' usage, once the routers have reported both requests; empty before."""
    rows: list[dict[str, Any]] = json.loads(dray.run("keys", "usage", "--team", "bots", "--json").stdout)
    return rows if rows and rows[0]["requests"] == 2 else []


@pytest.mark.slow
def test_the_chain_streams_and_answers_a_batch(dray: Dray) -> None:
    done = run(dray, "chain.py", "27 + 48", "20 + 22")
    assert done.returncode == 0, done.stderr
    streamed, _, batch = done.stdout.partition("\n--\n")
    assert "75" in streamed
    assert "75" in batch and "42" in batch


def test_the_batch_answers_all_and_resumes(dray: Dray, tmp_path: Path) -> None:
    questions, answers = tmp_path / "questions.csv", tmp_path / "answers.csv"
    sums = [(f"q{number}", f"What is {number + 20} + {number + 30}?", 2 * number + 50) for number in range(6)]
    questions.write_text("id,question\n" + "".join(f"{name},{text}\n" for name, text, _ in sums[:3]))
    assert run(dray, "batch.py", str(questions), str(answers), "--at-a-time", "2").returncode == 0
    with answers.open("a", newline="") as file:
        csv.writer(file).writerow(["q3", sums[3][1], "", "", "cut off"])
    questions.write_text("id,question\n" + "".join(f"{name},{text}\n" for name, text, _ in sums))
    before = answers.read_text()
    assert run(dray, "batch.py", str(questions), str(answers), "--at-a-time", "2").returncode == 0
    assert answers.read_text().startswith(before)
    with answers.open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(answers.read_text().splitlines()) == 1 + 3 + 1 + 3
    for name, _, total in sums:
        assert str(total) in rows[name]["answer"] and int(rows[name]["tokens"]) > 0 and not rows[name]["error"]


def test_a_file_is_answered_overnight(dray: Dray, tmp_path: Path) -> None:
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What is 64 + 13?"}], "temperature": 0}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    requests.write_text(json.dumps(line))
    done = run(dray, "overnight.py", str(requests), str(answers), "--pause", "0.2")
    assert done.returncode == 0, done.stderr
    answer = json.loads(answers.read_text())
    assert "77" in answer["response"]["body"]["choices"][0]["message"]["content"]
    requests.write_text("no request")
    failed = run(dray, "overnight.py", str(requests), str(answers), "--pause", "0.2")
    assert failed.returncode == 1 and "the batch is failed" in failed.stderr


@pytest.mark.slow
def test_a_failed_batch_says_so_and_writes_the_reason(dray: Dray, tmp_path: Path) -> None:
    questions, answers = tmp_path / "questions.csv", tmp_path / "answers.csv"
    questions.write_text(f'id,question\nlong,"{"word " * 3000}"\n')
    done = run(dray, "batch.py", str(questions), str(answers))
    assert done.returncode == 1 and "1 failed" in done.stderr
    with answers.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert "the messages alone are 3008" in row["error"]
