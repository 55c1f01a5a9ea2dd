"""Files of batches that are encrypted: keys that change, are missing or wrong, and files that were changed on the disk;
through OpenAI's own client, with a real router and a real Redis."""

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.records.batches import batch_key
from cluster.records.sealing import OVERHEAD
from cluster.redis_server import OwnRedis
from cluster.settings import PRIVACY_KEYS
from deployments.batches import service
from tests.conftest import redis_server
from tests.deployments.batches.batch_files import batch_router, ended, jsonl, line, lines_of, objects, submit
from tests.deployments.routers import Engines
from tests.deployments.waiting import until

FIRST, SECOND = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
SECRET = b"zebrafink"


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


def asked(count: int, text: str = "zebrafink") -> bytes:
    return jsonl(*(line(f"q{n}", messages=[{"role": "user", "content": f"{text} {n}?"}]) for n in range(count)))


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (folder / "batches").rglob("*") if path.is_file())


async def reseal(server: OwnRedis, folder: Path, *options: str, code: int = 0) -> str:
    environment = {"DRAY_TEAMS__URL": server.url, "DRAY_DATA_DIR": str(folder), "DRAY_STATE_DIR": str(folder)}

    def run() -> str:
        done = CliRunner().invoke(app, ["privacy", "reseal", *options], env=environment)
        assert done.exit_code == code, done.output
        return done.output

    return await asyncio.to_thread(run)


def test_keys_are_turned_on_changed_and_turned_off(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (_, client):
            content = asked(5000)
            monkeypatch.delenv(PRIVACY_KEYS, raising=False)
            file = await client.files.create(file=("zebrafink.jsonl", content), purpose="batch")
            batch = await ended(client, await submit(client, asked(2), metadata={"about": "zebrafink"}))
            answers = await lines_of(client, batch.output_file_id)

            async def check() -> None:
                assert (await client.files.content(file.id)).content == content
                assert await client.files.retrieve(file.id) == file
                assert await lines_of(client, batch.output_file_id) == answers
                assert (await client.batches.retrieve(batch.id)).metadata == {"about": "zebrafink"}

            monkeypatch.setenv(PRIVACY_KEYS, FIRST)
            await check()
            assert SECRET in on_disk(tmp_path), "they were there before"
            assert "3 files of batches" in await reseal(server, tmp_path)
            assert SECRET not in on_disk(tmp_path)
            await check()
            assert "0 files of batches" in await reseal(server, tmp_path), "they are already"
            monkeypatch.setenv(PRIVACY_KEYS, f"{SECOND},{FIRST}")
            await check()
            assert "3 files of batches" in await reseal(server, tmp_path)
            monkeypatch.setenv(PRIVACY_KEYS, SECOND)
            await check()
            assert len([*objects(tmp_path)]) == 3
            # A batch of a file that was encrypted meanwhile.
            again = await client.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            assert (await ended(client, again)).status == "completed"
            assert SECRET not in on_disk(tmp_path)
            assert json.loads(await reseal(server, tmp_path, "--plain", "--json"))["files"] == 4
            monkeypatch.delenv(PRIVACY_KEYS)
            await check()

    asyncio.run(work())


def test_reseal_while_a_batch_runs(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PRIVACY_KEYS, raising=False)

    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        async with batch_router(server, monkeypatch, tmp_path, engines=engines) as (router, client):
            assert engines.blocked is not None
            engines.blocked.set()
            known = asked(32)
            await ended(client, await submit(client, known))
            engines.blocked.clear()
            # The first chunk is answered from the cache; the second waits.
            batch = await submit(client, known + asked(5, "wachtel").replace(b'"q', b'"w'))
            await until(lambda: router.router._batches.store.parts(batch.id))
            await until(lambda: engines.requests == 32 + 5)
            monkeypatch.setenv(PRIVACY_KEYS, FIRST)
            await reseal(server, tmp_path)
            assert SECRET not in on_disk(tmp_path)
            assert all(name.endswith("-sealed") for name in objects(tmp_path))
            engines.blocked.set()
            batch = await ended(client, batch)
            assert batch.status == "completed" and len(await lines_of(client, batch.output_file_id)) == 37
            assert SECRET not in on_disk(tmp_path)

    asyncio.run(work())


def test_a_wrong_key_is_an_error_that_says_so_and_loses_nothing(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            monkeypatch.setenv(PRIVACY_KEYS, FIRST)
            file = await client.files.create(file=("zebrafink.jsonl", asked(2)), purpose="batch")
            for wrong in (SECOND, ""):
                monkeypatch.setenv(PRIVACY_KEYS, wrong)
                with pytest.raises(openai.InternalServerError, match="cannot be decrypted") as refused:
                    await client.files.content(file.id)
                assert refused.value.body["code"] == "file_unreadable"  # type: ignore[index]
                assert (await client.files.retrieve(file.id)).filename == ""
            # A batch waits for the key instead of failing.
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            holders = batch_key("holders", batch.id)
            await until(lambda: router.router._teams.execute("HGET", holders, "validate"))
            await until(lambda: not router.router._batches._runner._tasks)
            assert (await client.batches.retrieve(batch.id)).status == "validating"
            monkeypatch.setenv(PRIVACY_KEYS, f"{SECOND},{FIRST}")
            assert (await client.files.content(file.id)).content == asked(2)
            assert (await ended(client, batch)).status == "completed"

    monkeypatch.setattr(service, "LEASE_S", 2.0)
    asyncio.run(work())


def test_a_file_that_was_changed_on_the_disk_is_an_error_and_fails_its_batch(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PRIVACY_KEYS, FIRST)

    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (_, client):
            file, other = [
                await client.files.create(file=("a", asked(1200, name)), purpose="batch") for name in ("ann", "bob")
            ]
            paths = [tmp_path / "batches" / "files" / f"{made.id}-sealed" for made in (file, other)]
            whole = paths[0].read_bytes()
            for changed, code in (
                (b"x" + whole[1:], "file_damaged"),
                (whole[:-1] + bytes([whole[-1] ^ 1]), "file_damaged"),
                (whole[: 65_536 + OVERHEAD], "file_damaged"),
                (paths[1].read_bytes(), "file_damaged"),
                (asked(1200, "forged"), "file_damaged"),
            ):
                paths[0].write_bytes(changed)
                with pytest.raises(openai.InternalServerError) as refused:
                    await client.files.content(file.id)
                assert refused.value.body["code"] == code, changed[:40]  # type: ignore[index]
            paths[0].write_bytes(whole[:-1])
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            batch = await ended(client, batch)
            assert batch.status == "failed" and batch.errors is not None and batch.errors.data
            assert batch.errors.data[0].code == "file_damaged"
            assert (await client.files.content(other.id)).content == asked(1200, "bob")

    asyncio.run(work())


def test_a_download_never_ends_early_without_an_error(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PRIVACY_KEYS, FIRST)

    async def work() -> None:
        async with (
            batch_router(server, monkeypatch, tmp_path) as (router, client),
            httpx.AsyncClient(base_url=router.url, timeout=30) as http,
        ):
            file = await client.files.create(file=("a", asked(10_000)), purpose="batch")
            assert (await http.get(f"/v1/files/{file.id}/content")).content == asked(10_000)
            path = tmp_path / "batches" / "files" / f"{file.id}-sealed"
            os.truncate(path, 8 * (65_536 + OVERHEAD))
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(f"/v1/files/{file.id}/content")

    asyncio.run(work())


def test_limits_count_what_was_uploaded(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PRIVACY_KEYS, FIRST)

    async def work() -> None:
        content = asked(10)
        limits: dict[str, Any] = {"file_bytes": len(content), "bytes_per_team": 2 * len(content)}
        async with batch_router(server, monkeypatch, tmp_path, batches=limits) as (_, client):
            for _ in range(2):
                made = await client.files.create(file=("a", content), purpose="batch")
                assert made.bytes == len(content)
            with pytest.raises(openai.BadRequestError, match="bytes_per_team"):
                await client.files.create(file=("a", b"{}\n"), purpose="batch")
            assert len(on_disk(tmp_path)) == 2 * (len(content) + OVERHEAD)

    asyncio.run(work())
