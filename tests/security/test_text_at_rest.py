"""With keys for it, neither Redis nor a file of a batch holds a word of a question or an answer, and all that needs the
words still works."""

import asyncio
import base64
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
import redis

from cluster.objects.folder import FolderStore
from cluster.records.activity import read_activity
from cluster.records.cache import key_of
from cluster.records.curated import list_answers, new_answer
from cluster.records.feedback import list_feedback
from cluster.records.forget import forget, user_tag
from cluster.settings import PRIVACY_KEYS
from deployments.cache.flight_store import Diverged, FlightStore, Record, flight_keys
from deployments.common.errors import ApiError
from deployments.common.messages import TokenBatch
from tests.conftest import MODEL
from tests.deployments.api.test_curated import QUESTION, Bot, run, servers
from tests.deployments.api.test_feedback import APIS, NAMED, Servers, id_of, voted
from tests.deployments.batches.batch_files import CHAT, ended, jsonl, line, lines_of, submit
from tests.deployments.cache.test_answers import store_at
from tests.service.test_embeddings import make_model

__all__ = ["servers"]

KEY, OTHER_KEY = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
SECRETS = ["zebrafink", "斑胸草雀", "quellwolke", "fahrradklingel", "mondschein"]
"""A word of the questions in two languages, of a correction, of a reason, and of a curated answer."""
GENERATED = "Ask Ben."
REPHRASED = ("How do I reset my zebrafink?", "How can I reset my zebrafink?")


def contents(client: Any) -> Iterator[bytes]:
    """Every byte that a Redis holds: names of keys, and all below them."""
    for key in client.scan_iter("*"):
        kind = client.type(key).decode()
        if kind == "string":
            yield from (key, client.get(key) or b"")
        elif kind == "hash":
            yield from (key, *itertools.chain(*client.hgetall(key).items()))
        elif kind == "set":
            yield from (key, *client.smembers(key))
        elif kind == "zset":
            yield from (key, *client.zrange(key, 0, -1))
        else:
            assert kind == "stream", f"{key!r} is a {kind}, which this test does not read"
            yield from (key, *(part for _, fields in client.xrange(key) for pair in fields.items() for part in pair))


async def conversation(bot: Bot) -> None:
    """Questions through all APIs, with all that is kept because of them."""
    await bot.put(new_answer("default", "Mondscheintarif?", "The mondschein tariff ends at six."))
    assert await bot.how("Mondscheintarif?") == "curated"
    for place, ((path, body), stream) in enumerate(itertools.product(APIS, (False, True))):
        question = f"Was kostet ein Zebrafink 斑胸草雀 {place}?"
        asked = json.loads(json.dumps(body).replace(QUESTION, question)) | {"model": MODEL, "stream": stream}
        answer = await bot.client.post(path, json=asked | NAMED[path])
        assert answer.headers["x-dray-cache"] == "miss"
        await voted(bot, id=id_of(answer), correction="Eine Quellwolke.", reason="Eine Fahrradklingel.")
        assert (await bot.client.post(path, json=asked)).headers["x-dray-cache"] == "hit"
    started = {"model": MODEL, "input": "Zebrafink im Hintergrund?", "background": True}
    response = (await bot.client.post("/v1/responses", json=started)).json()
    async with asyncio.timeout(20):
        while response["status"] != "completed":
            await asyncio.sleep(0.02)
            response = (await bot.client.get(f"/v1/responses/{response['id']}")).json()
    going_on = {"model": MODEL, "input": "Und zwei?", "previous_response_id": response["id"]}
    assert (await bot.client.post("/v1/responses", json=going_on)).status_code == 200
    assert await bot.how(REPHRASED[0]) == "miss"
    similar = await bot.chat(REPHRASED[1])
    assert (similar.headers["x-dray-cache"], similar.headers["x-dray-cache-match"]) == ("hit", "similar")
    await bot.running.router._activity.publish()
    [report] = read_activity(bot.store, time.time())
    assert any("zebrafink" in request.question for request in report.requests)


ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {"messages": [{"role": "user", "content": "Was kostet ein Zebrafink 斑胸草雀?"}]}),
    ("/v1/completions", {"prompt": "Der Zebrafink 斑胸草雀 kostet"}),
    ("/v1/responses", {"input": "Was kostet ein Zebrafink 斑胸草雀?"}),
    ("/v1/embeddings", {"model": "vectors", "input": "Zebrafink 斑胸草雀"}),
    ("/v1/rerank", {"model": "vectors", "query": "Zebrafink", "documents": ["斑胸草雀", "Quellwolke"]}),
)
"""A line of a batch for each endpoint."""


BATCH_SECRETS = {"wasserfall", "kieselstein", "ahornblatt"}
"""Words of a batch's metadata, of a file's name, and of what is wrong with a line."""


async def batches(bot: Bot) -> None:
    """Batches of all endpoints; how they are called and what is wrong with their lines has words too."""
    async with openai.AsyncOpenAI(base_url=f"{bot.running.url}/v1", api_key="none", max_retries=0) as client:
        for url, fields in ASKED:
            bodies = {"a": {"model": MODEL} | fields, "b": fields | {"model": "absent"}}
            lines = [{"custom_id": name, "method": "POST", "url": url, "body": bodies[name]} for name in bodies]
            content = "\n".join(json.dumps(one, ensure_ascii=False) for one in lines).encode()
            batch = await ended(client, await submit(client, content, url, metadata={"about": "Wasserfall"}))
            assert batch.status == "completed" and batch.metadata == {"about": "Wasserfall"}
            [answer], [error] = (
                await lines_of(client, batch.output_file_id),
                await lines_of(client, batch.error_file_id),
            )
            assert (answer["response"]["status_code"], error["response"]["status_code"]) == (200, 404)
            assert (await client.files.content(batch.input_file_id)).content == content
        batch = await ended(client, await submit(client, jsonl(line("Ahornblatt"), line("Ahornblatt"))))
        assert batch.errors is not None and batch.errors.data
        assert "Ahornblatt" in (batch.errors.data[0].message or "")
        large = jsonl(*(line(f"q{number}", prompt=f"Zebrafink {number}") for number in range(12_000)))
        file = await client.files.create(file=("Kieselstein.jsonl", large), purpose="batch")
        assert (file.filename, file.bytes) == ("Kieselstein.jsonl", len(large))
        assert (await client.files.content(file.id)).content == large


@dataclass
class Written:
    """All that was written into objects, also what was removed later, and all that temporary files have held."""

    objects: list[bytes] = field(default_factory=list)
    temporary: list[bytes] = field(default_factory=list)

    @classmethod
    def record(cls, monkeypatch: pytest.MonkeyPatch, folder: Path) -> "Written":
        """Records from now on."""
        written, write = cls(), FolderStore.write
        monkeypatch.setattr(tempfile, "tempdir", str(folder))

        def recorded(store: FolderStore, name: str, content: Iterable[bytes]) -> int:
            written.temporary.extend(temporary_files(folder))
            blocks = [*content]
            written.objects.extend((name.encode(), b"".join(blocks)))
            return write(store, name, blocks)

        monkeypatch.setattr(FolderStore, "write", recorded)
        return written


def temporary_files(folder: Path) -> Iterator[bytes]:
    """The contents of this process's open files in the folder that have no name."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            path = str(descriptor.readlink())
            if path.startswith(str(folder)) and path.endswith("(deleted)"):
                yield descriptor.read_bytes()


def found(*everything: bytes) -> set[str]:
    """The secrets that are there as they are."""
    lowered = b"\n".join(everything).decode(errors="replace").lower()
    return {word for word in (*SECRETS, *BATCH_SECRETS, GENERATED.lower()) if word in lowered}


def found_in_redis(bot: Bot, answers: Any) -> set[str]:
    """The secrets that are in Redis as they are."""
    names = {b.decode().partition("{")[0] for b in answers.scan_iter("*")}
    assert {"dray:answer:dray-demo:default:", "dray:near:", "dray:response:"} <= names, names
    assert any(name.startswith("dray:given:") for name in names)
    return found(*contents(answers), *contents(bot.store))


def settings(folder: Path) -> dict[str, Any]:
    make_model(folder / "tiny")
    models = [{"name": MODEL}, {"name": "vectors", "task": "embed", "source": str(folder / "tiny"), "scorer": "cosine"}]
    return {
        "models": models,
        "cache": {"similarity_model": "vectors", "store": "all"},
        "admin": {"request_texts_s": 600},
    }


def test_no_word_is_in_redis_or_in_files_and_all_works(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        await conversation(bot)
        await batches(bot)
        with redis.Redis.from_url(servers[0].url) as answers:
            assert found_in_redis(bot, answers) == set()
            assert found(*written.objects, *written.temporary) == set()
            assert len(written.objects) > 20 and sum(map(len, written.temporary)) > 2**20
            assert [one.question for one in list_answers(bot.store, search="MONDSCHEIN")] == ["Mondscheintarif?"]
            assert {one.correction for one in list_feedback(bot.store)} == {"Eine Quellwolke."}

            monkeypatch.setenv(PRIVACY_KEYS, OTHER_KEY)
            assert await bot.how(REPHRASED[0]) == "miss", "with a wrong key, nothing is known"
            assert list_feedback(bot.store) == []
            monkeypatch.setenv(PRIVACY_KEYS, f"{OTHER_KEY},{KEY}")
            assert {one.correction for one in list_feedback(bot.store)} == {"Eine Quellwolke."}

            forgotten = forget(bot.store, answers, user_tag("default", "ann"))
            assert forgotten.answers >= 4 and forgotten.responses == 2 and forgotten.feedback >= 4
            assert list_feedback(bot.store) == []

    monkeypatch.setenv(PRIVACY_KEYS, KEY)
    written = Written.record(monkeypatch, tmp_path)
    run(servers, monkeypatch, tmp_path, work, **settings(tmp_path))


def test_the_test_would_find_them(servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work(bot: Bot) -> None:
        await conversation(bot)
        with redis.Redis.from_url(servers[0].url) as answers:
            assert found_in_redis(bot, answers) == {*SECRETS, GENERATED.lower()}
            await batches(bot)
            assert found_in_redis(bot, answers) == {*SECRETS, *BATCH_SECRETS, GENERATED.lower()}
            assert found(*written.objects) == {"zebrafink", "斑胸草雀", "quellwolke", "ahornblatt", GENERATED.lower()}
            assert "zebrafink" in found(*written.temporary)

    written = Written.record(monkeypatch, tmp_path)
    monkeypatch.delenv(PRIVACY_KEYS, raising=False)
    run(servers, monkeypatch, tmp_path, work, **settings(tmp_path))


def test_tokens_and_errors_under_way_are_encrypted_too(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, keys = [1001, 1002, 1003, 1004], flight_keys(key_of("bot", "default", "a" * 40))
    written = msgspec.msgpack.encode(ids)[1:]

    async def fly(name: str) -> bool:
        """Generates, reads along, and fails; whether tokens and the error's text are in Redis."""
        store = store_at(servers[0].url, timeout_s=10)
        flights = FlightStore(store, "b" * 16)
        assert (await flights.acquire(keys, name)).leads
        assert await flights.publish(keys, name, [Record(0, 0, 0, TokenBatch(ids))])
        await flights.end(keys, name, [], error=ApiError(400, "No zebrafink."))
        [first, last] = await flights.read(keys, name, b"0", 1.0)
        assert first.records[0].tokens.ids == ids and last.error is not None and last.error.message == "No zebrafink."
        with redis.Redis.from_url(servers[0].url) as client:
            everything = b"\n".join(contents(client))
        if PRIVACY_KEYS in os.environ:
            monkeypatch.setenv(PRIVACY_KEYS, OTHER_KEY)
            with pytest.raises(Diverged):
                await flights.read(keys, name, b"0", 1.0)
        await store.close()
        assert (written in everything) == (b"zebrafink" in everything)
        return written in everything

    monkeypatch.delenv(PRIVACY_KEYS, raising=False)
    for key, seen in (("", True), (KEY, False)):
        with redis.Redis.from_url(servers[0].url) as client:
            client.flushall()
        if key:
            monkeypatch.setenv(PRIVACY_KEYS, key)
        assert asyncio.run(fly("c" * 16)) == seen
