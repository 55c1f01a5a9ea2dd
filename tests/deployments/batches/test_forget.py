"""A user's lines leave the files of batches, also while routers work on them; with a real router and a real Redis."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.records.batch_lines import forgotten_input, is_output_of, output_id, user_of_line
from cluster.records.batches import owner_key
from cluster.records.forget import user_tag
from cluster.records.team_records import ADMIN, Team
from cluster.records.teams import add_team, create_key
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from deployments.batches import service
from deployments.batches.batch_store import BatchStore
from tests.conftest import redis_server
from tests.deployments.batches.batch_files import CHAT, batch_router, ended, jsonl, line, lines_of, submit
from tests.deployments.routers import Engines, RunningRouter
from tests.deployments.waiting import until

SECRET = "zebrafink"


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


def asked(count: int, **more: Any) -> bytes:
    """Lines of ann, whose questions have the secret, of ben, and of nobody, in turn."""
    users: list[dict[str, Any]] = [{"safety_identifier": "ann", "user": "x"}, {"user": "ben"}, {}]
    lines = []
    for number in range(count):
        user = users[number % 3]
        text = f"Where is {SECRET if 'safety_identifier' in user else 'the vault'} {number}?"
        lines.append(line(f"q{number}", messages=[{"role": "user", "content": text}], **user, **more))
    return jsonl(*lines)


def ids(count: int, *thirds: int) -> list[str]:
    """The custom ids of these thirds of the lines: 0 are ann's."""
    return [f"q{number}" for number in range(count) if number % 3 in thirds]


def custom_ids(lines: list[dict[str, Any]]) -> list[str]:
    return [each["custom_id"] for each in lines]


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (folder / "batches").rglob("*") if path.is_file())


async def forget(router: RunningRouter, server: OwnRedis, user: str = "ann", owner: str = "default") -> int:
    def work() -> int:
        with connect(server.url) as client:
            count, fault = router.router._batches.forget_lines(client, owner, user)
        assert not fault
        return int(count)

    return await asyncio.to_thread(work)


def test_lines_of_a_finished_batch_are_removed_by_the_command(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def command(*arguments: str) -> Any:
        environment = {"DRAY_TEAMS__URL": server.url, "DRAY_CACHE__URL": server.url, "DRAY_STATE_DIR": str(tmp_path)}
        done = CliRunner().invoke(app, ["forget", *arguments], env=environment)
        assert done.exit_code == 0, done.output
        return done.output

    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            content = b"\xef\xbb\xbf" + asked(90) + jsonl(line("wrong", user="ann", top_p=7)).rstrip(b"\n")
            batch = await ended(client, await submit(client, content))
            assert batch.request_counts is not None and batch.request_counts.failed == 1
            unused = await client.files.create(file=("a", asked(3)), purpose="batch")
            outputs = {file_id: await lines_of(client, file_id) for file_id in (batch.output_file_id,)}
            assert SECRET.encode() in on_disk(tmp_path)

            assert json.loads(await asyncio.to_thread(command, "ann", "--json")) == {
                "answers": 30,
                "responses": 0,
                "feedback": 0,
                "batch_lines": 30 + 1 + 30 + 1 + 1,
            }
            assert SECRET.encode() not in on_disk(tmp_path)
            kept = await lines_of(client, batch.output_file_id)
            assert kept == [each for each in outputs[batch.output_file_id] if each["custom_id"] in ids(90, 1, 2)]
            assert len(kept) == 60
            assert await lines_of(client, batch.error_file_id) == []
            assert custom_ids(await lines_of(client, batch.input_file_id)) == ids(90, 1, 2)
            assert custom_ids(await lines_of(client, unused.id)) == ids(3, 1, 2)
            # What files count is what they have now.
            for file_id in (batch.input_file_id, batch.output_file_id, batch.error_file_id, unused.id):
                assert file_id is not None
                size = len((await client.files.content(file_id)).content)
                assert (await client.files.retrieve(file_id)).bytes == size
                sizes = await router.router._teams.execute("HGET", owner_key("sizes", "default"), file_id)
                assert int(sizes) == size
            assert "0 lines of batches" in await asyncio.to_thread(command, "ann")
            # The output has no lines of ben any more, though the uploaded file is gone.
            await client.files.delete(batch.input_file_id)
            assert "31 lines of batches" in await asyncio.to_thread(command, "ben")
            assert custom_ids(await lines_of(client, batch.output_file_id)) == ids(90, 2)
            # Batches go on as before.
            assert (await ended(client, await submit(client, asked(6)))).request_counts.completed == 6  # type: ignore[union-attr]

    asyncio.run(work())


def test_what_waits_for_its_answer_ends_as_forgotten(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service, "LEASE_S", 2.0)

    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        settings = {"batches": {"lines_at_a_time": 4}}
        async with batch_router(server, monkeypatch, tmp_path, engines=engines, **settings) as (router, client):
            batch = await submit(client, asked(60))
            runner = router.router._batches._runner
            await until(lambda: engines.requests == 4 and sum(runner._left.values()) == 32)
            assert await forget(router, server) == 20
            assert SECRET.encode() not in on_disk(tmp_path)
            # Of 32 lines that the router has taken, 11 were ann's; it hears of it at the next renewal of its lease.
            await until(lambda: sum(runner._left.values()) == 21)
            assert engines.blocked is not None
            engines.blocked.set()
            batch = await ended(client, batch)
            assert batch.status == "completed" and batch.request_counts is not None
            assert (batch.request_counts.total, batch.request_counts.completed) == (60, 40)
            assert custom_ids(await lines_of(client, batch.output_file_id)) == ids(60, 1, 2)
            errors = await lines_of(client, batch.error_file_id)
            assert custom_ids(errors) == ids(60, 0)
            assert {each["error"]["code"] for each in errors} == {"forgotten"}
            # Two of ann's were being answered; no other has begun.
            assert engines.requests == 40 + 2
            assert SECRET.encode() not in on_disk(tmp_path)
            # The same file can be asked again: what is left of ann's lines is an error.
            again = await ended(client, await submit_again(client, batch.input_file_id))
            assert custom_ids(await lines_of(client, again.error_file_id)) == ids(60, 0)

    asyncio.run(work())


async def submit_again(client: openai.AsyncOpenAI, file_id: str) -> Any:
    endpoint: Any = CHAT
    return await client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h")


def test_lines_that_are_never_asked_end_as_forgotten_too(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        settings = {"batches": {"lines_at_a_time": 4}}
        async with batch_router(server, monkeypatch, tmp_path, engines=engines, **settings) as (router, client):
            batch = await submit(client, asked(60))
            await until(lambda: engines.requests == 4)
            await forget(router, server)
            await client.batches.cancel(batch.id)
            batch = await ended(client, batch)
            errors = {each["custom_id"]: each["error"]["code"] for each in await lines_of(client, batch.error_file_id)}
            assert errors == dict.fromkeys(ids(60, 1, 2), "batch_cancelled") | dict.fromkeys(ids(60, 0), "forgotten")

    asyncio.run(work())


@pytest.mark.parametrize("step", ["commit_valid", "commit_lines", "commit_output"])
def test_no_step_of_a_batch_brings_back_what_is_forgotten_at_that_moment(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    """A router has read the files, and commits what it made of them after the user was forgotten."""
    commit: Callable[..., Awaitable[bool]] = getattr(BatchStore, step)
    work_of: list[Callable[[], Awaitable[int]]] = []

    async def late(*arguments: Any) -> bool:
        if work_of:
            assert await work_of.pop()() > 0
        return await commit(*arguments)

    monkeypatch.setattr(BatchStore, step, late)

    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            work_of.append(lambda: forget(router, server))
            batch = await ended(client, await submit(client, asked(40)))
            assert batch.status == "completed" and not work_of
            assert custom_ids(await lines_of(client, batch.output_file_id)) == ids(40, 1, 2)
            errors = await lines_of(client, batch.error_file_id)
            assert custom_ids(errors) == ids(40, 0) and {each["error"]["code"] for each in errors} == {"forgotten"}
            assert SECRET.encode() not in on_disk(tmp_path)
            assert await forget(router, server) == 0

    asyncio.run(work())


def test_a_batch_that_begins_at_that_moment_does_not_lose_its_places(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        async with batch_router(server, monkeypatch, tmp_path, engines=engines) as (router, client):
            file = await client.files.create(file=("in.jsonl", asked(6)), purpose="batch")
            objects, loop = router.router._batches._objects, asyncio.get_running_loop()
            write, batches = objects.write, list[Any]()

            def slow(name: str, content: Any) -> int:
                """A batch begins after the file was found to be in no use, and before its record changes."""
                size = write(name, content)
                if not batches:
                    batches.append(asyncio.run_coroutine_threadsafe(submit_again(client, file.id), loop))
                    batches[0].result(30)
                return int(size)

            monkeypatch.setattr(objects, "write", slow)
            assert await forget(router, server) == 2
            assert engines.blocked is not None
            engines.blocked.set()
            batch = await ended(client, batches[0].result())
            assert batch.status == "completed"
            assert custom_ids(await lines_of(client, batch.output_file_id)) == ids(6, 1, 2)
            assert custom_ids(await lines_of(client, batch.error_file_id)) == ids(6, 0)

    asyncio.run(work())


def test_a_step_that_redis_does_twice_loses_nothing(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A client sends a command again when its reply was lost."""

    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            batch = await ended(client, await submit(client, asked(6)))

            def forget_twice() -> int:
                with connect(server.url) as store:
                    once = store.eval
                    store.eval = lambda *arguments: (once(*arguments), once(*arguments))[1]
                    count, fault = router.router._batches.forget_lines(store, "default", "ann")
                assert not fault
                return int(count)

            assert await asyncio.to_thread(forget_twice) == 4
            assert custom_ids(await lines_of(client, batch.output_file_id)) == ids(6, 1, 2)
            assert custom_ids(await lines_of(client, batch.input_file_id)) == ids(6, 1, 2)

    asyncio.run(work())


def test_an_admin_forgets_a_teams_user_and_no_other_teams(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with connect(server.url) as store:
        for name in ("support", "sales"):
            add_team(store, Team(name, 0.0))
        keys = {name: create_key(store, name).secret for name in ("support", "sales", ADMIN)}

    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            await until(lambda: router.router._authenticator.needs_key)
            outputs = {}
            for name in ("support", "sales"):
                own = client.with_options(api_key=keys[name])
                batch = await ended(own, await submit(own, asked(6)))
                outputs[name] = (own, batch.output_file_id)
            async with httpx.AsyncClient(base_url=router.url, timeout=30) as http:
                body, headers = {"user": "ann", "team": "support"}, {"Authorization": f"Bearer {keys[ADMIN]}"}
                done = (await http.post("/admin/forget", json=body, headers=headers)).json()
            assert done == {"answers": 2, "responses": 0, "feedback": 0, "batch_lines": 4}
            assert custom_ids(await lines_of(*outputs["support"])) == ids(6, 1, 2)
            assert custom_ids(await lines_of(*outputs["sales"])) == ids(6, 0, 1, 2)

    asyncio.run(work())


def test_who_has_the_tag_recognizes_what_came_out_and_nobody_else() -> None:
    ann, ben = user_tag("team.support", "ann"), user_tag("team.support", "ben")
    outputs = [json.dumps({"id": output_id(tag), "custom_id": "q"}).encode() for tag in (ann, ann, ben, "")]
    assert [is_output_of(each, ann) for each in outputs] == [True, True, False, False]
    assert [is_output_of(each, ben) for each in outputs] == [False, False, True, False]
    halves = {each[i : i + 8] for each in outputs[:2] for i in range(18, 50, 8)}
    assert len(halves) == 8, "two lines of one user have nothing in common"
    for wrong in (b"", b"[]", b'{"id": 7}', b"\xff", b'{"id": "batch_req_"}', b"[" * 5000):
        assert not is_output_of(wrong, ann)


LINES: list[tuple[str, str]] = [
    ('{"custom_id":"a","method":"POST","url":"/v1/rerank","body":{"user":"a"}}', "a"),
    ('{"body": {"user": "", "safety_identifier": "安"}, "custom_id": "密", "url": "/", "method": "POST"}\r', "安"),
    ('{"custom_id":"a","method":"POST","url":"/","body":{"safety_identifier":7,"user":"a"}}', "a"),
    ('\ufeff{"custom_id":"a","method":"POST","url":"/","body":{"user":"a"}}', "a"),
    ('{"custom_id":"a","method":"POST","url":"/","body":{"user":["a"]}}', ""),
    ('{"custom_id":"a","method":"POST","url":"/","body":[]}', ""),
    ('{"body":{"user":"a"}}', "a"),
    ("not json", ""),
    ("[" * 5000, ""),
]


@pytest.mark.parametrize(("text", "user"), LINES)
def test_the_user_of_a_line_and_what_stands_in_its_place(text: str, user: str) -> None:
    written = text.encode()
    assert user_of_line(written) == user
    left = forgotten_input(written)
    assert len(left) == len(written) and user_of_line(left) == ""
    if left.strip():
        assert json.loads(left)["body"] == {} and json.loads(left)["custom_id"] in text
