"""Files of batches that are damaged for good while the batch runs, and stores that fail for a while: each batch ends,
with all that can be read, and an error that says what cannot. With a real router, real files and a real Redis.
"""

import asyncio
import base64
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from cluster.objects.folder import FolderStore
from cluster.records.batches import batch_key
from cluster.records.sealing import OVERHEAD
from cluster.redis_server import OwnRedis
from cluster.settings import PRIVACY_KEYS
from deployments.batches import service
from tests.cluster.objects.buckets import Bucket, bucket
from tests.conftest import redis_server
from tests.deployments.batches.batch_files import batch_router, ended, jsonl, line, lines_of, objects, submit
from tests.deployments.routers import Engines, Response
from tests.deployments.waiting import until

KEY = base64.b64encode(os.urandom(32)).decode()
COUNT = 100
"""Requests: four chunks, of which the last one is short."""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


@pytest.fixture(params=["plain", "encrypted"])
def encrypted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "encrypted":
        monkeypatch.setenv(PRIVACY_KEYS, KEY)
    else:
        monkeypatch.delenv(PRIVACY_KEYS, raising=False)
    monkeypatch.setattr(service, "LEASE_S", 2.0)
    return bool(request.param == "encrypted")


def asked(count: int = COUNT) -> bytes:
    """Lines of 4 KB, so that each chunk has encrypted pieces of its own."""
    lines = (line(f"q{n:03}", messages=[{"role": "user", "content": f"What is {n}?"}]) for n in range(count))
    return b"".join(jsonl(each).rstrip().ljust(3999) + b"\n" for each in lines)


def ids(lines: list[dict[str, Any]]) -> list[str]:
    return [each["custom_id"] for each in lines]


def numbered(*numbers: int) -> list[str]:
    return [f"q{number:03}" for number in numbers]


@dataclass
class Gated(Engines):
    """Engines that answer the first requests at once, and the others when they may."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    free: int = 0

    def remote(self, payload: bytes) -> Response:
        response = super().remote(payload)
        if self.requests > self.free:
            response.engines = Engines(blocked=self.gate)
        return response


class Damaged:
    """A batch that stops between its chunks, so that its files can be damaged there."""

    def __init__(
        self, router: Any, client: openai.AsyncOpenAI, folder: Path, gate: asyncio.Event, batch: Batch
    ) -> None:
        self.router, self.client, self.folder, self.gate, self.batch = router, client, folder, gate, batch

    @property
    def parts(self) -> list[Path]:
        return sorted((self.folder / "batches" / "parts").glob(f"{self.batch.id}-*"))

    @property
    def input(self) -> Path:
        [path] = (self.folder / "batches" / "files").glob(f"{self.batch.input_file_id}*")
        return path

    async def end(self) -> tuple[Batch, list[str], dict[str, str]]:
        """The batch once it has ended, what is answered, and the code of the error of what is not."""
        self.gate.set()
        batch = await ended(self.client, self.batch)
        errors = await lines_of(self.client, batch.error_file_id)
        return (
            batch,
            ids(await lines_of(self.client, batch.output_file_id)),
            {e["custom_id"]: e["error"]["code"] for e in errors},
        )


async def started(
    server: OwnRedis,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    work: Callable[[Damaged], Any],
    *,
    chunks: int = 1,
    **beside: Any,
) -> None:
    """Does the work at a batch of which so many chunks are answered, and the next one waits for its engines."""
    engines = Gated(free=32 * chunks)
    settings: dict[str, Any] = {"cache": {"enabled": False}, "batches": {"lines_at_a_time": 32, **beside}}
    async with batch_router(server, monkeypatch, folder, engines=engines, **settings) as (router, client):
        batch = await submit(client, asked())
        store = router.router._batches.store

        async def waits() -> bool:
            return len(await store.parts(batch.id)) == chunks and engines.requests > 32 * chunks

        await until(waits)
        await work(Damaged(router, client, folder, engines.gate, batch))
        await until(lambda: not [name for name in objects(folder) if name.startswith("parts/")])


def flip(path: Path, place: int) -> None:
    """Changes one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_lines_that_are_damaged_before_they_are_asked_are_named_and_the_others_answered(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypted: bool
) -> None:
    async def work(batch: Damaged) -> None:
        # In the last line: it is still JSON, but asks something else.
        plain = batch.input.read_bytes().find(b"What is 99?")
        flip(batch.input, batch.input.stat().st_size - 3000 if encrypted else plain + 8)
        state, answered, errors = await batch.end()
        assert state.status == "failed" and state.failed_at and state.errors is not None and state.errors.data
        [problem] = state.errors.data
        assert (problem.code, problem.line) == ("file_damaged", 97)
        assert "97 to 100" in (problem.message or "") and "Upload" in (problem.message or "")
        assert answered == numbered(*range(96)) and errors == {}
        assert state.request_counts is not None
        assert (state.request_counts.total, state.request_counts.completed, state.request_counts.failed) == (100, 96, 0)

    asyncio.run(started(server, monkeypatch, tmp_path, work))


@pytest.mark.parametrize("how", ["removed", "cut off", "emptied"])
def test_an_input_file_that_is_gone_ends_the_batch_with_what_was_answered(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypted: bool, how: str
) -> None:
    async def work(batch: Damaged) -> None:
        if how == "removed":
            batch.input.unlink()
        else:
            os.truncate(batch.input, 0 if how == "emptied" else 150_000)
        state, answered, errors = await batch.end()
        assert state.status == "failed" and state.errors is not None and state.errors.data
        [problem] = state.errors.data
        # The second chunk had been read.
        assert (problem.code, problem.line) == ("file_damaged", 65) and "65 to 100" in (problem.message or "")
        assert answered == numbered(*range(64)) and errors == {}

    asyncio.run(started(server, monkeypatch, tmp_path, work))


@pytest.mark.parametrize("how", ["removed", "flipped", "cut off"])
def test_answers_that_are_damaged_before_the_end_have_an_error_line_each(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypted: bool, how: str
) -> None:
    async def work(batch: Damaged) -> None:
        part = batch.parts[1]
        if how == "removed":
            part.unlink()
        elif how == "flipped":
            flip(part, part.stat().st_size // 2)
        else:
            os.truncate(part, part.stat().st_size - 1)
        state, answered, errors = await batch.end()
        assert state.status == "failed" and state.errors is not None and state.errors.data
        [problem] = state.errors.data
        assert (problem.code, problem.line) == ("file_damaged", 33) and "33 to 64" in (problem.message or "")
        assert answered == numbered(*range(32), *range(64, 100))
        assert errors == dict.fromkeys(numbered(*range(32, 64)), "answer_lost")
        counts = state.request_counts
        assert counts is not None and (counts.total, counts.completed, counts.failed) == (100, 68, 32)

    asyncio.run(started(server, monkeypatch, tmp_path, work, chunks=2))


def test_all_files_of_a_batch_are_removed(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypted: bool
) -> None:
    async def work(batch: Damaged) -> None:
        shutil.rmtree(tmp_path / "batches")
        state, answered, errors = await batch.end()
        assert state.status == "failed" and state.errors is not None and state.errors.data
        assert sorted(problem.line or 0 for problem in state.errors.data) == [1, 1, 65]
        assert answered == numbered(*range(32, 64)) and errors == {}
        # A download says so too, and not that it should be tried again.
        with pytest.raises(openai.InternalServerError) as refused:
            await batch.client.files.content(batch.batch.input_file_id)
        assert (refused.value.status_code, refused.value.body["code"]) == (500, "file_damaged")  # type: ignore[index]

    asyncio.run(started(server, monkeypatch, tmp_path, work))


def test_a_cancelled_batch_ends_though_its_files_are_damaged(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypted: bool
) -> None:
    async def work(batch: Damaged) -> None:
        batch.input.unlink()
        await batch.client.batches.cancel(batch.batch.id)
        await ended(batch.client, batch.batch)
        state, answered, _ = await batch.end()
        assert state.status == "cancelled" and state.errors is not None and state.errors.data
        assert answered == numbered(*range(32))

    asyncio.run(started(server, monkeypatch, tmp_path, work))


def test_a_file_that_is_damaged_before_it_is_checked_fails_its_batch(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypted: bool
) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            router.router._batches._runner._closed = True
            batch = await submit(client, asked())
            [path] = (tmp_path / "batches" / "files").glob(f"{batch.input_file_id}*")
            os.truncate(path, 65_536 + OVERHEAD)
            router.router._batches._runner._closed = False
            batch = await ended(client, batch)
            assert batch.status == "failed" and batch.errors is not None and batch.errors.data
            assert batch.errors.data[0].code == "file_damaged"

    asyncio.run(work())


def test_damage_in_a_bucket(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PRIVACY_KEYS, raising=False)

    async def work(batch: Damaged, ours: Bucket) -> None:
        ours.remove(ours.names(f"parts/{batch.batch.id}")[0])
        [uploaded] = ours.names("files/")
        ours.put(uploaded, ours.content(uploaded)[:300_000])
        state, answered, errors = await batch.end()
        assert state.status == "failed" and state.errors is not None and state.errors.data
        assert [(problem.code, problem.line) for problem in state.errors.data] == [
            ("file_damaged", 97),
            ("file_damaged", 1),
        ]
        assert answered == numbered(*range(32, 96))
        assert errors == dict.fromkeys(numbered(*range(32)), "answer_lost")

    with bucket(monkeypatch) as ours:
        beside = {"url": ours.url}
        asyncio.run(started(server, monkeypatch, tmp_path, lambda batch: work(batch, ours), chunks=2, **beside))
        assert not [*objects(tmp_path)]


async def overdue(router: Any, batch_id: str) -> None:
    """Lets the time for a batch be over."""
    await router.router._teams.execute("HSET", batch_key("batch", batch_id), "created_at", 1000, "expires_at", 2000)


def test_a_key_that_stays_missing_ends_the_batch_when_its_time_is_over(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PRIVACY_KEYS, KEY)
    monkeypatch.setattr(service, "LEASE_S", 2.0)

    async def work(batch: Damaged) -> None:
        other = base64.b64encode(os.urandom(32)).decode()
        monkeypatch.setenv(PRIVACY_KEYS, other)
        batch.gate.set()
        store = batch.router.router._batches.store

        async def second() -> bool:
            return len(await store.parts(batch.batch.id)) == 2

        await until(second)
        assert (await batch.client.batches.retrieve(batch.batch.id)).status == "in_progress"
        await overdue(batch.router, batch.batch.id)
        state, answered, errors = await batch.end()
        assert state.status == "expired" and state.errors is not None and state.errors.data
        assert {problem.code for problem in state.errors.data} == {"file_unreadable"}
        # The second chunk's answers are encrypted with the key that is there.
        assert answered == numbered(*range(32, 64)) and errors == {}
        assert state.request_counts is not None and state.request_counts.completed == 32

    asyncio.run(started(server, monkeypatch, tmp_path, work))


@pytest.mark.parametrize("mended", [True, False], ids=["mended", "not mended"])
def test_an_output_that_cannot_be_written_is_tried_until_the_time_is_over(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypted: bool, mended: bool
) -> None:
    async def work(batch: Damaged) -> None:
        files, aside = tmp_path / "batches" / "files", tmp_path / "aside"
        runner, store = batch.router.router._batches._runner, batch.router.router._batches.store
        remove = FolderStore.write

        def in_the_way(objects: FolderStore, name: str, content: Any) -> int:
            """The first output finds a file where the folder was."""
            if name.startswith("files/") and files.is_dir() and not aside.exists():
                shutil.copytree(files, aside)
                shutil.rmtree(files)
                files.write_bytes(b"no folder")
            return remove(objects, name, content)

        monkeypatch.setattr(FolderStore, "write", in_the_way)

        async def tried() -> bool:
            return aside.exists() and not runner._tasks and (await store.get(batch.batch.id)).status == "finalizing"

        batch.gate.set()
        await until(tried)
        if mended:
            files.unlink()
            aside.rename(files)
            aside.mkdir()
            state, answered, _ = await batch.end()
            assert (state.status, answered) == ("completed", numbered(*range(100)))
            return
        await overdue(batch.router, batch.batch.id)
        state, answered, errors = await batch.end()
        assert state.status == "failed" and state.errors is not None and state.errors.data
        assert state.errors.data[0].code == "output_not_written" and (answered, errors) == ([], {})
        shutil.rmtree(tmp_path / "batches" / "parts")  # which is the sweeper's work

    asyncio.run(started(server, monkeypatch, tmp_path, work))
