"""POST /v1/embeddings with token ids, prompts, fewer dimensions, many texts; a real router and OpenVINO model."""

import asyncio
import base64
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from cluster.redis_server import OwnRedis
from deployments.engine.encoder.batches import batches
from tests.conftest import redis_server
from tests.deployments.api.test_rerank import Service, serving
from tests.service.test_embeddings import SIZE, TABLE, make_model

EMBED = {"task": "embed"}
PROMPTS = {"query": "find: ", "document": "text: "}


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


def ids_of(folder: Path, text: str) -> list[int]:
    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


def mean(ids: list[int], size: int = SIZE) -> Any:
    """The mean of the tokens' vectors, cut to a size, at length 1, calculated here."""
    vector = TABLE[ids].mean(axis=0)[:size]
    return vector / np.linalg.norm(vector)


async def vectors(service: Service, **body: object) -> list[list[float]]:
    response = await service.post("/v1/embeddings", **body)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [item["embedding"] for item in data]


def test_token_ids_are_embedded_as_they_are(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    make_model(folder)

    async def work() -> None:
        async with serving(server, monkeypatch, str(folder), model=EMBED) as service:
            ids = ids_of(folder, "a refund")
            [by_text] = await vectors(service, input="a refund")
            for given in (ids, [ids]):
                [by_ids] = await vectors(service, input=given)
                assert by_ids == pytest.approx(by_text, abs=1e-6)
            first, second = await vectors(service, input=[ids, [7, 8, 9]])
            assert first == pytest.approx(by_text, abs=1e-6) and second == pytest.approx(mean([7, 8, 9]), abs=1e-3)
            refused = await service.post("/v1/embeddings", input=[[100_257]])
            assert refused.status_code == 400 and "check_embedding_ctx_length" in refused.json()["error"]["message"]
            too_long = await service.post("/v1/embeddings", input=[[1] * 41])
            assert too_long.json()["error"]["code"] == "context_length_exceeded"

    asyncio.run(work())


@pytest.mark.parametrize("unknown", ["ignore", "refuse"])
def test_unknown_fields_are_named_or_refused(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unknown: str
) -> None:
    folder = tmp_path / "m"
    make_model(folder)

    async def work() -> None:
        api = {"unknown_fields": unknown}
        async with serving(server, monkeypatch, str(folder), model=EMBED, api=api) as service:
            answer = await service.post("/v1/embeddings", input="a refund", truncate_prompt_tokens=None, truncate="END")
            if unknown == "ignore":
                assert (answer.status_code, answer.headers["x-dray-ignored"]) == (200, "truncate")
            else:
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, "truncate")

    asyncio.run(work())


def test_a_vector_is_cut_and_brought_to_length_1_again(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    make_model(folder)

    async def work() -> None:
        async with serving(server, monkeypatch, str(folder), model=EMBED) as service:
            wanted = mean(ids_of(folder, "a refund"), 5)
            [short] = await vectors(service, input="a refund", dimensions=5)
            assert short == pytest.approx(wanted, abs=1e-3)
            response = await service.post("/v1/embeddings", input="a refund", dimensions=5, encoding_format="base64")
            decoded = array("f", base64.b64decode(response.json()["data"][0]["embedding"]))
            assert list(decoded) == pytest.approx(wanted, abs=1e-3)

    asyncio.run(work())


def test_the_makers_prompt_stands_before_a_text(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    make_model(folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))

    async def work() -> None:
        async with serving(server, monkeypatch, str(folder), model=EMBED | {"scorer": "cosine"}) as service:
            [plain] = await vectors(service, input="a refund")
            assert plain == pytest.approx(mean(ids_of(folder, "a refund")), abs=1e-3)
            query, passage = (mean(ids_of(folder, f"{prompt}a refund")) for prompt in PROMPTS.values())
            for names, wanted in (
                (("query", "search_query"), query),
                (("passage", "document", "search_document"), passage),
            ):
                for name in names:
                    [vector] = await vectors(service, input="a refund", input_type=name)
                    assert vector == pytest.approx(wanted, abs=1e-3)
            [score] = (await service.post("/v1/score", text_1="a refund", text_2="a refund")).json()["data"]
            assert score["score"] == pytest.approx(float(query @ passage), abs=1e-3)

    asyncio.run(work())


def test_512_texts_of_mixed_lengths_come_back_in_their_order(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    make_model(folder)

    async def work() -> None:
        async with serving(server, monkeypatch, str(folder), tokens=100_000, model=EMBED) as service:
            given = [[1 + number % 2000] * (1 + number * 7 % 39) for number in range(512)]
            for ids, vector in zip(given, await vectors(service, input=given), strict=True):
                assert vector == pytest.approx(mean(ids), abs=1e-3)

    asyncio.run(work())


def test_batches_have_texts_of_similar_lengths() -> None:
    lengths = [1 + number * 7 % 500 for number in range(512)]
    found = list(batches(lengths))
    assert sorted(index for batch in found for index in batch) == list(range(512))
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in found)
    assert padded < 1.1 * sum(lengths)
    assert all(len(batch) <= 16 for batch in found)
    assert list(batches([8192, 9000, 100, 3000, 3001])) == [[2, 3], [4], [0], [1]], "memory for a batch is bounded"
