"""Batches on a running Dray: the bundled model answers each line, and (slow) once, whatever is killed meanwhile."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import openai
import psutil
import pytest

from tests.conftest import MODEL, Dray, wait_for

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
KILLED = ("ServeReplica:dray:router", "deployments.engine.core", "ServeReplica:engine", "redis/teams")


def line(number: int, question: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    body = {"model": MODEL, "messages": messages, "max_tokens": tokens, "temperature": 0}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body}


def jsonl(lines: Iterator[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def test_a_batch_through_openais_client_and_the_command(dray: Dray, client: openai.OpenAI, tmp_path: Path) -> None:
    sums = {number: f"What is {number} + {number + 7}?" for number in range(36)}
    file = tmp_path / "requests.jsonl"
    file.write_bytes(jsonl(line(number, question, 200) for number, question in sums.items()))
    uploaded = client.files.create(file=file, purpose="batch")
    made = client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")

    def completed() -> bool:
        batch = client.batches.retrieve(made.id)
        assert batch.status in ("validating", "in_progress", "finalizing", "completed"), batch
        return batch.status == "completed"

    wait_for(completed, 120)
    batch = client.batches.retrieve(made.id)
    assert batch.output_file_id is not None and batch.error_file_id is None
    answers = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"line-{number}" for number in sums]
    asked = client.chat.completions.create(**line(5, sums[5], 200)["body"])
    same = answers[5]["response"]["body"]["choices"][0]["message"]["content"]
    assert same == asked.choices[0].message.content

    shown = json.loads(dray.run("batch", "show", made.id, "--json").stdout)
    assert shown["request_counts"] == {"total": 36, "completed": 36, "failed": 0}
    assert made.id in dray.run("batch", "list").stdout
    target = tmp_path / "answers.jsonl"
    assert dray.run("batch", "download", made.id, "--to", str(target)).returncode == 0
    assert [json.loads(text) for text in target.read_text().splitlines()] == answers
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("no request\n")
    submitted = json.loads(dray.run("batch", "submit", str(wrong), "--json").stdout)
    wait_for(lambda: dray.run("batch", "show", submitted["id"]).returncode == 1)
    report = dray.run("batch", "show", submitted["id"]).stdout
    assert "failed" in report and "line 1" in report
    refused = dray.run("batch", "cancel", submitted["id"])
    assert refused.returncode == 1 and "Cannot cancel" in refused.stderr


def kill_one(dray: Dray, kind: str, chance: random.Random) -> bool:
    """Kills a process of this kind; whether there was one."""
    found = dray.processes(kind) if kind != "redis/teams" else teams_redis(dray)
    for process in chance.sample(found, min(1, len(found))):
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
            return True
    return False


def teams_redis(dray: Dray) -> list[psutil.Process]:
    """The Redis server that has the teams' data open."""
    folder = str(dray.folder / "d")
    return [
        process
        for process in dray.processes("")
        if "server" in process.name() and any(file.path.startswith(folder) for file in process.open_files())
    ]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_each_of_ten_thousand_lines_is_answered_once_whatever_dies(another: Dray) -> None:
    """Routers, engines, replicas and Redis are killed, and the whole Dray goes down and comes up once."""
    lines, chance = int(os.environ.get("BATCH_LINES", "10000")), random.Random(7)
    assert another.run("up", "--detach", DRAY_ROUTER__REPLICAS="2").returncode == 0
    retrying = openai.OpenAI(base_url=another.url, api_key="none", max_retries=30, timeout=60)
    content = jsonl(line(number, f"What is {number % 3000} + 5?", 12) for number in range(lines))
    file = retrying.files.create(file=("in.jsonl", content), purpose="batch")
    made = retrying.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")

    def progress() -> int:
        counts = retrying.batches.retrieve(made.id).request_counts
        return counts.completed if counts is not None else 0

    killed, restarted = 0, False
    deadline, next_kill = time.monotonic() + 1300, 0.0
    while (batch := retrying.batches.retrieve(made.id)).status != "completed":
        assert time.monotonic() < deadline and batch.status in ("validating", "in_progress", "finalizing"), batch
        done = progress()
        if not restarted and done > lines // 2:
            restarted = True
            assert another.run("down").returncode == 0
            assert another.run("up", "--detach", DRAY_ROUTER__REPLICAS="2").returncode == 0
        elif time.monotonic() > next_kill and done:
            killed += kill_one(another, KILLED[killed % len(KILLED)], chance)
            next_kill = time.monotonic() + 8
        time.sleep(0.5)
    assert restarted and killed >= len(KILLED)
    counts = batch.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (lines, lines, 0)
    assert batch.output_file_id is not None and batch.error_file_id is None
    answers = [json.loads(text) for text in retrying.files.content(batch.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"line-{number}" for number in range(lines)]
    texts: dict[int, set[str]] = {}
    for number, answer in enumerate(answers):
        message = answer["response"]["body"]["choices"][0]["message"]
        texts.setdefault(number % 3000, set()).add(json.dumps(message))
    assert all(len(same) == 1 for same in texts.values()), "equal questions have equal answers"
