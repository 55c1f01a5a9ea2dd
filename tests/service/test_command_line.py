"""`dray ps`, `dray run`, `dray chat` and `dray logs` with a Dray that runs."""

import json
import secrets
import subprocess
import time

import httpx

from tests.conftest import MODEL, Dray, wait_for


def test_ps_shows_replicas_with_what_they_use(dray: Dray) -> None:
    done = dray.run("ps", "--json")
    assert done.returncode == 0, done.stderr
    replicas = json.loads(done.stdout)
    assert {replica["replica"] for replica in replicas} == {each["replica"] for each in dray.status()["replicas"]}
    for replica in replicas:
        assert replica["model"] == MODEL and replica["cores"]
        assert 20 * 2**20 < replica["memory_bytes"] < 2**33
        assert replica["streams"] >= 0 and replica["waiting"] >= 0
        assert time.time() - 7200 < replica["since"] < time.time()
    shown = dray.run("ps").stdout
    assert MODEL in shown and "ago" in shown


def test_run_and_chat_answer_in_a_pipe(dray: Dray) -> None:
    answer = dray.run("run", "What is 3 + 4?")
    assert answer.returncode == 0 and "7" in answer.stdout and answer.stderr.strip(), "thinking is on standard error"
    report = json.loads(dray.run("run", "What is 3 + 4?", "--json").stdout)
    assert "7" in report["text"] and report["thinking"] and report["tokens"] > 1
    command, question = dray.command("chat"), "What is 3 + 4?\n"
    chat = subprocess.run(command, env=dray.environment, input=question, capture_output=True, text=True, check=False)
    assert chat.returncode == 0 and "7" in chat.stdout and "tokens, " in chat.stdout
    refused = dray.run("run", "hi", "--model", "gpt-9")
    assert (refused.returncode, refused.stdout) == (1, "") and MODEL in refused.stderr


def test_logs_have_the_lines_of_routers(dray: Dray, http: httpx.Client) -> None:
    mark = f"id-{secrets.token_hex(8)}"
    http.post("/v1/chat/completions", json={"model": "none", "messages": []}, headers={"x-request-id": mark})

    def lines() -> list[str]:
        return [line for line in dray.run("logs", "--json").stdout.splitlines() if mark in line]

    (line,) = wait_for(lines)
    record = json.loads(line)
    assert record["message"] == "request not answered" and record["request_id"] == mark
    assert any("request not answered" in shown and mark in shown for shown in dray.run("logs").stdout.splitlines())
