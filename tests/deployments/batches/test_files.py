"""Files: uploaded, described, listed, read, deleted and bounded; through OpenAI's own client, with a real Redis."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster.objects.folder import FolderStore
from cluster.records.batches import owner_key
from cluster.redis_server import OwnRedis
from deployments.batches import sweeping
from tests.conftest import redis_server
from tests.deployments.batches.batch_files import batch_router, ended, jsonl, line, objects, submit
from tests.deployments.routers import Engines
from tests.deployments.waiting import until


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


def test_a_file_is_kept_as_it_is(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (_, client):
            content = jsonl(*(line(f"f{number}") for number in range(3000))) + b'{"no": "line feed at the end"}'
            made = await client.files.create(
                file=("../../夜间.jsonl", content),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": 7200},
            )
            assert (made.object, made.purpose, made.bytes) == ("file", "batch", len(content))
            assert made.expires_at == made.created_at + 7200 and "夜间.jsonl" in made.filename
            assert await client.files.retrieve(made.id) == made
            assert (await client.files.content(made.id)).content == content
            [name] = objects(tmp_path)
            assert name == f"files/{made.id}" and (tmp_path / "batches" / name).stat().st_mode & 0o077 == 0
            assert (tmp_path / "batches").stat().st_mode & 0o077 == 0
            assert (await client.files.delete(made.id)).deleted is True
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(made.id)
            assert not [*objects(tmp_path)]

    asyncio.run(work())


def test_files_are_listed_page_by_page(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path, cache={"namespace": "listed"}) as (_, client):
            made = [await client.files.create(file=("a", b"{}\n"), purpose="batch") for _ in range(5)]
            ids = {file.id for file in made}
            for order in ("asc", "desc"):
                listed = [file.id async for file in client.files.list(limit=2, order=order)]
                assert set(listed) == ids and len(listed) == 5
            page = await client.files.list(limit=3)
            assert page.has_more and len(page.data) == 3
            assert [file async for file in client.files.list(purpose="assistants")] == []
            for wrong in ({"after": "file-none"}, {"limit": 0}, {"limit": 20_000}):
                with pytest.raises(openai.BadRequestError):
                    await client.files.list(**wrong)

    asyncio.run(work())


WRONG_UPLOADS: list[tuple[dict[str, Any], int, str | None]] = [
    ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a", b"{}")}}, 400, "purpose"),
    ({"files": {"file": ("a", b"{}")}}, 400, "purpose"),
    ({"data": {"purpose": "batch"}, "files": {"other": ("a", b"{}")}}, 400, "file"),
    ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"")}}, 400, "file"),
    ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"{}\n" * 31)}}, 400, "file"),
    ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"x" * 7000)}}, 400, "file"),
    ({"data": {"purpose": "batch"}, "files": {"file": ("a", (b"x" * 4000 + b"\n") * 6)}}, 413, "file"),
    ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"x" * 200_000)}}, 413, "file"),
    (
        {"data": {"purpose": "batch", "expires_after[anchor]": "now"}, "files": {"file": ("a", b"{}")}},
        400,
        "expires",
    ),
    (
        {
            "data": {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            "files": {"file": ("a", b"{}")},
        },
        400,
        "expires",
    ),
    ({"data": {"purpose": "batch", "file": "a text"}}, 415, None),
    ({"json": {"purpose": "batch"}}, 415, None),
    ({"content": b"--", "headers": {"content-type": "multipart/form-data"}}, 400, None),
    ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, None),
    ({"data": {"purpose": "x" * 5000}, "files": {"file": ("a", b"{}")}}, 400, None),
    ({"files": [("file", ("a", b"{}")), ("file", ("b", b"{}"))]}, 400, None),
]
"""Requests as httpx takes them, the status, and how the field begins that the refusal names."""


def test_a_wrong_upload_is_refused_and_leaves_nothing(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        limits = {"batches": {"file_bytes": 20_000, "file_lines": 30}, "limits": {"body_bytes": 2000}}
        async with (
            batch_router(server, monkeypatch, tmp_path, **limits) as (router, _),
            httpx.AsyncClient(base_url=router.url) as http,
        ):
            for form, status, param in WRONG_UPLOADS:
                refused = await http.post("/v1/files", **form)
                assert refused.status_code == status, refused.text
                assert param is None or refused.json()["error"]["param"].startswith(param), form
                assert not [*objects(tmp_path)]

    asyncio.run(work())


def test_a_team_has_only_so_many_files_and_bytes(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        for name, limits in (("few", {"files_per_team": 2}), ("small", {"bytes_per_team": 2500})):
            settings: dict[str, Any] = {"batches": limits, "cache": {"namespace": name}}
            async with batch_router(server, monkeypatch, tmp_path / name, **settings) as (_, client):
                content = b"x" * 999 + b"\n"
                made = [await client.files.create(file=("a", content), purpose="batch") for _ in range(2)]
                with pytest.raises(openai.BadRequestError, match=next(iter(limits))):
                    await client.files.create(file=("a", content), purpose="batch")
                assert len([*objects(tmp_path / name)]) == 2
                await client.files.delete(made[0].id)
                await client.files.create(file=("a", content), purpose="batch")

    asyncio.run(work())


def test_expired_files_are_gone_and_swept_but_for_those_in_use(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        settings: dict[str, Any] = {"cache": {"namespace": "expiring"}}
        async with batch_router(server, monkeypatch, tmp_path, engines=engines, **settings) as (router, client):
            free = await client.files.create(file=("a", b"{}\n"), purpose="batch")
            kept = await client.files.create(file=("a", b"{}\n"), purpose="batch")
            batch = await submit(client, jsonl(line("a")))
            key, teams = owner_key("files", "expiring"), router.router._teams
            for file_id in (free.id, batch.input_file_id):
                record = json.loads(await teams.execute("HGET", key, file_id))
                await teams.execute("HSET", key, file_id, json.dumps(record | {"expires_at": 1}))
            assert [file.id async for file in client.files.list()] == [kept.id]
            for file_id in (free.id, batch.input_file_id):
                with pytest.raises(openai.NotFoundError):
                    await client.files.content(file_id)
            await router.router._batches._sweeper.sweep()
            assert {*objects(tmp_path)} == {f"files/{kept.id}", f"files/{batch.input_file_id}"}

    asyncio.run(work())


def test_answers_that_a_dead_router_has_left_are_swept_though_the_batch_runs(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        settings: dict[str, Any] = {"cache": {"namespace": "left"}}
        async with batch_router(server, monkeypatch, tmp_path, engines=engines, **settings) as (router, client):
            assert engines.blocked is not None
            engines.blocked.set()
            known = [line(f"q{number}") for number in range(32)]
            await ended(client, await submit(client, jsonl(*known)))
            engines.blocked.clear()
            # The first chunk is answered from the cache; the second waits.
            batch = await submit(client, jsonl(*known, line("new")))
            [part] = (await until(lambda: router.router._batches.store.parts(batch.id))).values()
            await until(lambda: engines.requests == 33)
            router.router._batches._objects.write(left := f"parts/{batch.id}-000001-dead", [b"an answer"])
            sweeper, kept = router.router._batches._sweeper, {*objects(tmp_path)} - {left}
            await sweeper.sweep()
            assert left in {*objects(tmp_path)}, "it might be on the way"
            monkeypatch.setattr(sweeping, "_ORPHANED_S", -1)
            await sweeper.sweep()
            assert {*objects(tmp_path)} == kept and part.split()[0] in kept
            engines.blocked.set()
            batch = await ended(client, batch)
            assert batch.request_counts is not None and batch.request_counts.completed == 33

    asyncio.run(work())


def test_a_file_in_use_is_not_deleted(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        async with batch_router(server, monkeypatch, tmp_path, engines=engines) as (_, client):
            batch = await submit(client, jsonl(line("a")))
            with pytest.raises(openai.ConflictError, match=batch.id):
                await client.files.delete(batch.input_file_id)

    asyncio.run(work())


def test_with_several_machines_files_need_a_bucket(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path, cluster={"head": True}) as (_, client):
            with pytest.raises(openai.BadRequestError, match=r"batches\.url"):
                await client.files.create(file=("a", b"{}\n"), purpose="batch")

    asyncio.run(work())


@pytest.mark.parametrize("name", ["../x", "files/../../x", "/etc/passwd", "a/b/c", "", "files/", "files/a\n"])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    store = FolderStore(tmp_path / "o")
    for call in (lambda: store.read(name, 0, 1), lambda: store.write(name, [b"x"]), lambda: store.remove(name)):
        with pytest.raises(ValueError, match="name"):
            call()


def test_a_draft_that_fails_leaves_the_object_as_it_was(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError("disk full")

    store = FolderStore(tmp_path / "o")
    store.write("files/a", [b"whole"])
    with pytest.raises(OSError, match="disk full"):
        store.write("files/a", broken())
    assert store.read("files/a", 0, 99) == b"whole" and store.names("files") == ["files/a"]
    (tmp_path / "o" / "files" / "a").unlink()
    (tmp_path / "o" / "files" / "a").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic"):
        store.read("files/a", 0, 9)
