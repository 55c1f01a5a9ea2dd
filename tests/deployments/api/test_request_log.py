"""The request log, with a real router: what is in it, what is not, and how long."""

import asyncio
import json
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration import variable
from cluster.redis_server import OwnRedis
from cluster.settings import RequestLogSettings
from deployments.api.request_log import RequestLog
from tests.conftest import redis_server
from tests.deployments.routers import asking, chat

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
QUESTION = "I am ann@example.com, 13812345678, password: hunter2. Why?"


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_answered_requests_are_logged_without_what_is_of_a_person(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path, request_log={"enabled": True}) as client:
            for stream in (False, True):
                headers = JSON | {"x-request-id": f"r{stream}"}
                await client.post(CHAT, content=chat(QUESTION, stream=stream), headers=headers)
            await client.post("/v1/responses", json={"model": "dray-demo", "input": QUESTION, "temperature": 0})
            await client.post(CHAT, content=chat("Refused?", n=0), headers=JSON)

    monkeypatch.setenv(variable("data_dir"), str(tmp_path))
    asyncio.run(work())
    folder = tmp_path / "requests"
    logged = lines(folder)
    assert [line["how"] for line in logged] == ["miss", "hit", "hit"]
    assert {line["question"] for line in logged} == {"I am [EMAIL], [PHONE], [SECRET] Why?"}
    first = logged[0]
    assert (first["request_id"], first["model"], first["team"]) == ("rFalse", "dray-demo", "")
    assert first["completion_tokens"] == 3 and first["finish_reason"] == "stop" and first["seconds"] > 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_it_is_off_by_default(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            await client.post(CHAT, content=chat("Anything?"), headers=JSON)

    monkeypatch.setenv(variable("data_dir"), str(tmp_path))
    asyncio.run(work())
    assert not (tmp_path / "requests").exists()


def test_old_days_go_and_so_do_the_oldest_of_too_much(tmp_path: Path) -> None:
    def day(back: int) -> str:
        return f"requests-{datetime.now(UTC) - timedelta(days=back):%Y-%m-%d}.jsonl"

    for back in (40, 8, 6, 3, 1):
        (tmp_path / day(back)).write_bytes(b"x" * 400_000)
    RequestLog(RequestLogSettings(keep_days=7, max_mb=1), tmp_path)._remove_old()
    assert {file.name for file in tmp_path.iterdir()} == {day(3), day(1)}
