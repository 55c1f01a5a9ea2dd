"""POST /v1/rerank and /v1/score with a real router and real models on OpenVINO; only Ray between them is left out."""

import asyncio
import json
import math
import re
import shutil
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openvino
import openvino.opset15 as operations
import pytest
import redis
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from cluster.commands.model_folders import served_by
from cluster.models.folder import BUNDLED_FOLDER, ModelFolderError, check_readable, open_model, store_folder
from cluster.models.tasks import WrongTask
from cluster.records.team_records import Quota, Team
from cluster.records.teams import add_team, create_key
from cluster.redis_server import OwnRedis
from cluster.settings import ModelSettings
from deployments.common.messages import decode_inputs, encode
from deployments.engine.encoder.batches import EncoderBatches
from deployments.engine.encoder.model import EncoderModel
from deployments.tenancy.quota_counters import current_month, quota_keys
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, running_router
from tests.service.test_embeddings import make_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "refund", "days", "cat", "open", "what", "is", "the"]
WEIGHTS = np.random.default_rng(3).normal(size=(2, len(WORDS), 1)).astype(np.float32)
"""Of a token, by its type."""


def make_cross_encoder(folder: Path, labels: int = 1) -> str:
    """Writes a small but real cross-encoder with random weights: a logit that each token of each type moves."""
    folder.mkdir()
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [operations.parameter([-1, -1], np.int64, name=name) for name in names]
    for parameter, name in zip(inputs, names, strict=True):
        parameter.output(0).set_names({name})
    ids, mask, types = inputs
    flat = operations.add(operations.multiply(types, operations.constant(np.int64(len(WORDS)))), ids)
    table = operations.constant(np.repeat(WEIGHTS.reshape(-1, 1), labels, axis=1))
    each = operations.gather(table, flat, operations.constant(np.int64(0)))
    shown = operations.multiply(each, operations.unsqueeze(operations.convert(mask, "f32"), np.int64(2)))
    logits = operations.reduce_sum(shown, operations.constant(np.int64(1)))
    openvino.save_model(openvino.Model([operations.result(logits)], inputs), folder / "openvino_model.xml")
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "max_position_embeddings": 16}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(WORDS[:4])
    # As a real file does; it must not cut what is served.
    tokenizer.enable_truncation(8)
    tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copy(BUNDLED_FOLDER / "tokenizer_config.json", folder)
    return str(folder)


def expected(query: str, document: str) -> float:
    """The sigmoid of the pair's logit, calculated here."""
    first, second = ([WORDS.index(word) for word in text.split()] for text in (query, document))
    logit = WEIGHTS[0, [2, *first, 3]].sum() + WEIGHTS[1, [*second, 3]].sum()
    return float(1 / (1 + math.exp(-logit)))


@dataclass
class Encoders(Engines):
    """A handle on a real model in this process. largest: tokens of the longest text that it got."""

    batches: EncoderBatches | None = None
    largest: list[int] = field(default_factory=list)

    def remote(self, payload: bytes) -> Any:
        self.requests += 1
        return Call(self, payload)


@dataclass
class Call:
    """A call through the handle."""

    encoders: Encoders
    payload: bytes

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._run().__await__()

    async def _run(self) -> bytes:
        if self.encoders.error is not None:
            raise self.encoders.error
        inputs = decode_inputs(self.payload)
        self.encoders.largest.append(max(len(text.ids) for text in inputs))
        assert self.encoders.batches is not None
        return encode(await self.encoders.batches.run(inputs))


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@dataclass(frozen=True)
class Service:
    """A router with an encoder, and a client of a team with a quota."""

    client: httpx.AsyncClient
    encoders: Encoders
    store: redis.Redis

    async def post(self, path: str, **body: object) -> httpx.Response:
        return await self.client.post(path, json={"model": "ranker", **body})


@asynccontextmanager
async def serving(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, folder: str, tokens: int = 1000, **settings: Any
) -> AsyncIterator[Service]:
    """tokens: the team's quota, in a minute and in a month."""
    model = {"name": "ranker", "source": folder, "task": "rerank", **settings.pop("model", {})}
    opened = open_model(ModelSettings.model_validate(model), Path(folder))
    encoders = Encoders(batches=EncoderBatches(EncoderModel(opened, 1, EXACT)))
    with redis.Redis.from_url(server.url) as store:
        store.flushall()
        add_team(store, Team("search", 0.0, quota=Quota(tokens_per_minute=tokens, tokens_per_month=tokens)))
        key = create_key(store, "search").secret
        models = [{"name": MODEL}, model]
        async with (
            running_router(monkeypatch, server.url, engines=encoders, models=models, **settings) as router,
            httpx.AsyncClient(base_url=router.url, headers={"Authorization": f"Bearer {key}"}, timeout=20) as client,
        ):
            yield Service(client, encoders, store)


EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
SIZE = 8
PIECES = [*"abcdefghijklmnopqrstuvwxyz", "yes", "no"]
MARKS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
VOCABULARY = {text: number for number, text in enumerate([*PIECES, *MARKS, "[UNK]"])}
EMBEDDED = np.random.default_rng(4).normal(size=(len(VOCABULARY), SIZE)).astype(np.float32)
HEAD = np.random.default_rng(5).normal(size=(len(VOCABULARY), SIZE)).astype(np.float32)


def make_language_model(folder: Path, *, yes: str = "yes") -> str:
    """Writes a small causal model with random weights: a token's state is the sum of the embeddings up to it, at their
    positions. Its tokenizer has letters, the words of an answer, and the control tokens of Qwen."""
    folder.mkdir()
    inputs = {name: operations.parameter([-1, -1], np.int64, name=name) for name in ("input_ids", "position_ids")}
    for name, parameter in inputs.items():
        parameter.output(0).set_names({name})
    each = operations.gather(operations.constant(EMBEDDED), inputs["input_ids"], operations.constant(np.int64(0)))
    places = operations.convert(operations.unsqueeze(inputs["position_ids"], np.int64(2)), "f32")
    weighted = operations.divide(each, operations.add(places, np.float32(1)))
    states = operations.cum_sum(weighted, operations.constant(np.int64(1)))
    logits = operations.matmul(states, operations.constant(HEAD), False, True)
    model = openvino.Model([operations.result(logits)], list(inputs.values()))
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 400}
    (folder / "config.json").write_text(json.dumps(config))
    known = {yes if text == "yes" else text: number for text, number in VOCABULARY.items()}
    tokenizer = Tokenizer(models.WordLevel(known, "[UNK]"))
    words = pre_tokenizers.Split(Regex("yes|no|[a-z]|[^a-z]"), "isolated")
    tokenizer.pre_tokenizer = words
    tokenizer.add_special_tokens(MARKS)
    tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copy(BUNDLED_FOLDER / "tokenizer_config.json", folder)
    return str(folder)


def ids_of(text: str, marks: list[str]) -> list[int]:
    """Tokens of a text in which these are control tokens."""
    found = re.findall("|".join([*map(re.escape, marks), "yes", "no", "[a-z]", "[^a-z]"]), text)
    return [VOCABULARY.get(piece, VOCABULARY["[UNK]"]) for piece in found]


def answered(query: str, document: str) -> float:
    """The probability of "yes" rather than "no", as the model card of Qwen3-Reranker has it, calculated here."""
    before = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    instruction = "Given a web search query, retrieve relevant passages that answer the query"
    after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    said = ids_of(f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}", [])
    ids = [*ids_of(before, MARKS), *said, *ids_of(after, MARKS)]
    state = (EMBEDDED[ids] / np.arange(1, len(ids) + 1)[:, None]).sum(0)
    no, yes = (float(HEAD[VOCABULARY[word]] @ state) for word in ("no", "yes"))
    return math.exp(yes) / (math.exp(yes) + math.exp(no))


DOCUMENTS = ["the cat is open", "refund", "days days days refund", "the the"]


def test_documents_are_sorted_by_the_models_scores(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with serving(server, monkeypatch, make_cross_encoder(tmp_path / "m")) as service:
            query = "what is the refund"
            scores = [expected(query, document) for document in DOCUMENTS]
            order = sorted(range(4), key=lambda index: -scores[index])
            for path in ("/v1/rerank", "/v2/rerank"):
                body = (await service.post(path, query=query, documents=DOCUMENTS)).json()
                assert [result["index"] for result in body["results"]] == order
                for result in body["results"]:
                    assert result["relevance_score"] == pytest.approx(scores[result["index"]], abs=1e-4)
                    assert "document" not in result
            # Three tokens mark a pair, and the query is read again for each document.
            tokens = sum(3 + 4 + len(document.split()) for document in DOCUMENTS)
            assert body["model"] == "ranker" and body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
            objects = [{"text": document, "title": "x"} for document in DOCUMENTS]
            best = (
                await service.post("/v1/rerank", query=query, documents=objects, top_n=2, return_documents=True)
            ).json()["results"]
            assert [result["document"] for result in best] == [{"text": DOCUMENTS[index]} for index in order[:2]]

    asyncio.run(work())


@pytest.mark.parametrize("unknown", ["ignore", "refuse"])
def test_unknown_fields_are_named_or_refused(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unknown: str
) -> None:
    async def work() -> None:
        folder = make_cross_encoder(tmp_path / "m")
        async with serving(server, monkeypatch, folder, api={"unknown_fields": unknown}) as service:
            for path, body in (
                ("/v1/rerank", {"query": "what", "documents": ["the cat"]}),
                ("/v1/score", {"text_1": "what", "text_2": "the cat"}),
            ):
                answer = await service.post(path, **body, truncate="END", priority=0)
                if unknown == "ignore":
                    assert (answer.status_code, answer.headers["x-dray-ignored"]) == (200, "truncate")
                else:
                    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "truncate")
            documents = [{"text": "the cat", "title": "x"}]
            answer = await service.post("/v1/rerank", query="what", documents=documents)
            if unknown == "ignore":
                assert (answer.status_code, answer.headers["x-dray-ignored"]) == (200, "documents[].title")
            else:
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents[0].title")

    asyncio.run(work())


def test_pairs_are_scored_in_their_order(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(server, monkeypatch, make_cross_encoder(tmp_path / "m")) as service:
            for first, second, pairs in (
                ("cat", "open days", [("cat", "open days")]),
                ("cat", ["open", "days"], [("cat", "open"), ("cat", "days")]),
                (["cat", "open"], ["days", "cat cat"], [("cat", "days"), ("open", "cat cat")]),
            ):
                body = (await service.post("/v1/score", text_1=first, text_2=second)).json()
                assert body["object"] == "list" and [score["index"] for score in body["data"]] == list(
                    range(len(pairs))
                )
                for score, pair in zip(body["data"], pairs, strict=True):
                    assert score["object"] == "score" and score["score"] == pytest.approx(expected(*pair), abs=1e-4)

    asyncio.run(work())


def test_what_a_text_says_separates_nothing(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Control tokens in a text are unknown words, here three for each: bracket, letters, bracket."""
    text = " ".join(["[UNK]"] * 3)

    async def work() -> None:
        async with serving(server, monkeypatch, make_cross_encoder(tmp_path / "m")) as service:
            first, second = "cat [SEP] open", "days [CLS]"
            body = (await service.post("/v1/score", text_1=first, text_2=second)).json()
            wanted = expected(f"cat {text} open", f"days {text}")
            assert body["data"][0]["score"] == pytest.approx(wanted, abs=1e-4)

    asyncio.run(work())


def test_a_language_model_answers_yes_or_no(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Qwen3-Reranker: many documents of several lengths, and control tokens that they only spell."""
    documents = [*("days" * length + "ab" for length in range(1, 20)), "a<|im_end|>b", "yes", "no 是"]

    async def work() -> None:
        folder = make_language_model(tmp_path / "m")
        async with serving(server, monkeypatch, folder, tokens=10**6) as service:
            query = "what is the refund"
            body = (await service.post("/v1/score", text_1=query, text_2=documents)).json()
            for score, document in zip(body["data"], documents, strict=True):
                assert score["score"] == pytest.approx(answered(query, document), abs=1e-3), document
            best = (await service.post("/v1/rerank", query=query, documents=documents)).json()["results"][0]
            assert best["index"] == max(range(len(documents)), key=lambda index: answered(query, documents[index]))
            refused = await service.post("/v1/rerank", query=query, documents=["a" * 500])
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "documents"

    asyncio.run(work())


def test_a_language_model_that_cannot_rank_is_refused_before_it_is_served(tmp_path: Path) -> None:
    model = open_model(ModelSettings(source=make_language_model(tmp_path / "m", yes="y"), task="rerank"), tmp_path)
    with pytest.raises(ModelFolderError, match=r"only if it is a Qwen3-Reranker; this one has no token 'yes'"):
        check_readable(model)


def test_a_language_model_of_the_catalog_that_ranks_generates_nothing(tmp_path: Path) -> None:
    """Its files do not say what it is for."""
    folder = store_folder("qwen3-reranker-0.6b", "int8", tmp_path)
    make_language_model(folder)
    with pytest.raises(ModelFolderError, match="trained to rerank; set task: rerank"):
        open_model(ModelSettings(source="qwen3-reranker-0.6b"), tmp_path)
    assert served_by("qwen3-reranker-0.6b", folder).endswith("task: rerank} to models in dray.yaml")
    ranker = open_model(ModelSettings(source="qwen3-reranker-0.6b", task="rerank"), tmp_path)
    assert ranker.ranks_by_answer
    check_readable(ranker)


def test_the_same_question_is_scored_once(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(server, monkeypatch, make_cross_encoder(tmp_path / "m")) as service:
            encoders, month = service.encoders, quota_keys("search", current_month())[3]
            body = {"query": "what is", "documents": DOCUMENTS}
            first = await service.post("/v1/rerank", **body)
            again = await service.post("/v1/rerank", **body)
            assert [first.headers["x-dray-cache"], again.headers["x-dray-cache"]] == ["miss", "hit"]
            assert again.json()["results"] == first.json()["results"] and "age" in again.headers
            assert again.json()["usage"] == first.json()["usage"]
            # The scores are of the texts, whichever route asks for them.
            scored = await service.post("/v1/score", text_1="what is", text_2=DOCUMENTS)
            assert scored.headers["x-dray-cache"] == "hit" and encoders.requests == 1
            scores = {result["index"]: result["relevance_score"] for result in first.json()["results"]}
            assert [score["score"] for score in scored.json()["data"]] == [scores[index] for index in range(4)]
            # What a score depends on: texts, their order, and where documents are cut.
            for other in ({"documents": DOCUMENTS[::-1]}, {"query": "what"}, {"max_tokens_per_doc": 2}):
                assert (await service.post("/v1/rerank", **body | other)).headers["x-dray-cache"] == "miss"
            charged = int(service.store.get(month) or 0)
            assert (await service.post("/v1/rerank", **body, top_n=1)).headers["x-dray-cache"] == "hit"
            assert int(service.store.get(month) or 0) == charged
            [*keys] = service.store.scan_iter(match="dray:answer:ranker:*")
            assert len(keys) == 4 and all(0 < service.store.ttl(key) <= 86_400 for key in keys)

    asyncio.run(work())


def test_a_request_decides_about_the_cache_of_scores(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with serving(server, monkeypatch, make_cross_encoder(tmp_path / "m")) as service:

            async def ask(**headers: str) -> tuple[int, str | None]:
                body = {"model": "ranker", "text_1": "cat", "text_2": "days"}
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                response = await service.client.post("/v1/score", json=body, headers=named)
                return response.status_code, response.headers.get("x-dray-cache")

            assert await ask(Cache_Control="only-if-cached") == (504, None)
            assert await ask(Cache_Control="no-store") == (200, "bypass")
            assert await ask(X_Dray_Cache_TTL="7") == (200, "miss")
            [key] = service.store.scan_iter(match="dray:answer:ranker:*")
            assert 0 < service.store.ttl(key) <= 7
            assert await ask(Cache_Control="only-if-cached") == (200, "hit")
            assert await ask(Cache_Control="no-cache") == (200, "miss")
            assert await ask(X_Dray_Cache_TTL="x") == (400, None)
            service.store.set(key, b"garbage")
            assert await ask() == (200, "miss")
            with redis.Redis.from_url(server.url) as store:
                add_team(store, Team("others", 0.0))
                other = create_key(store, "others").secret
            async with asyncio.timeout(60):
                while (await ask(Authorization=f"Bearer {other}"))[0] == 401:  # until routers know the key
                    await asyncio.sleep(0.02)
            assert len(list(service.store.scan_iter(match="dray:answer:ranker:*"))) == 2, "a namespace of its own"

    asyncio.run(work())


def test_many_documents_in_several_batches_keep_their_scores(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with serving(server, monkeypatch, make_cross_encoder(tmp_path / "m")) as service:
            documents = [" ".join(["days"] * (1 + number % 7) + ["cat"] * (number % 3)) for number in range(100)]
            body = (await service.post("/v1/score", text_1="what is", text_2=documents)).json()
            for score, document in zip(body["data"], documents, strict=True):
                assert score["score"] == pytest.approx(expected("what is", document), abs=1e-4)
            batches = service.encoders.batches
            assert batches is not None and batches.pace > 0 and batches.waiting_tokens == 0

    asyncio.run(work())


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("/v1/rerank", {"query": "cat"}, 400, "documents"),
    ("/v1/rerank", {"query": "cat", "documents": []}, 400, "documents"),
    ("/v1/rerank", {"query": " ", "documents": ["cat"]}, 400, "query"),
    ("/v1/rerank", {"query": "cat", "documents": ["cat", "\n"]}, 400, "documents"),
    ("/v1/rerank", {"query": "cat", "documents": [{}]}, 400, "documents[0].text"),
    ("/v1/rerank", {"query": "cat", "documents": [{"title": "cat"}]}, 400, "documents[0].title"),
    ("/v1/rerank", {"query": "cat", "documents": [7]}, 400, "documents[0]"),
    ("/v1/rerank", {"query": "cat", "documents": ["cat"] * 41}, 400, "documents"),
    ("/v1/rerank", {"query": "cat", "documents": ["cat"], "top_n": 0}, 400, "top_n"),
    ("/v1/rerank", {"query": "cat", "documents": ["cat"], "max_tokens_per_doc": 0}, 400, "max_tokens_per_doc"),
    ("/v1/rerank", {"query": "cat", "documents": ["cat"], "rank_fields": ["a"]}, 400, "rank_fields"),
    ("/v1/rerank", {"query": "cat", "documents": ["cat", "cat " * 13]}, 400, "documents"),
    ("/v1/rerank", {"query": "cat " * 1000, "documents": ["cat"] * 40}, 400, "query"),
    ("/v1/rerank", {"query": "cat", "documents": ["cat"], "model": MODEL}, 404, "model"),
    ("/v1/rerank", {"query": "cat", "documents": ["cat"], "model": "none"}, 404, "model"),
    ("/v1/score", {"text_1": "cat", "text_2": []}, 400, "text_2"),
    ("/v1/score", {"text_1": ["cat", "cat"], "text_2": ["cat"]}, 400, "text_1"),
    ("/v1/score", {"text_1": "cat", "text_2": ["cat"] * 41}, 400, "text_2"),
    ("/v1/embeddings", {"input": "cat"}, 404, "model"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "cat"}]}, 404, "model"),
]


def test_what_cannot_be_ranked_is_refused_by_name(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        folder, limits = make_cross_encoder(tmp_path / "m"), {"embedding_inputs": 40, "body_bytes": 100_000}
        api = {"unknown_fields": "refuse"}
        async with serving(server, monkeypatch, folder, limits=limits, api=api) as service:
            for path, body, status, param in REFUSED:
                response = await service.post(path, **body)
                error = response.json()["error"]
                assert (response.status_code, error["param"]) == (status, param), (body, response.text)
                assert error["type"] == "invalid_request_error" and error["message"]
            assert service.encoders.requests == 0

    asyncio.run(work())


def test_a_long_document_is_cut_where_the_request_says_so(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with serving(server, monkeypatch, make_cross_encoder(tmp_path / "m")) as service:
            documents = ["cat refund " + "days " * 50, "cat"]
            body = {"query": "what", "documents": documents, "max_tokens_per_doc": 2}
            results = (await service.post("/v1/rerank", **body)).json()["results"]
            scores = {result["index"]: result["relevance_score"] for result in results}
            assert scores[0] == pytest.approx(expected("what", "cat refund"), abs=1e-4)
            assert scores[1] == pytest.approx(expected("what", "cat"), abs=1e-4)

    asyncio.run(work())


def test_computed_tokens_are_charged(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(server, monkeypatch, make_cross_encoder(tmp_path / "m")) as service:
            month = quota_keys("search", current_month())[3]
            response = await service.post("/v1/rerank", query="what is", documents=["cat"] * 20)
            assert response.status_code == 200 and "x-ratelimit-remaining-tokens" in response.headers
            async with asyncio.timeout(60):
                while int(service.store.get(month) or 0) != 20 * 6:
                    await asyncio.sleep(0.02)
            refused = await service.post("/v1/rerank", query="what is the refund", documents=["cat"] * 200)
            assert refused.status_code == 429, refused.text
            service.encoders.error = RuntimeError("bug")
            assert (await service.post("/v1/score", text_1="cat", text_2="cat")).status_code == 500
            service.encoders.error = None
            async with asyncio.timeout(60):
                while int(service.store.get(month) or 0) != 20 * 6:
                    await asyncio.sleep(0.02)

    asyncio.run(work())


def test_an_embedding_model_scores_by_cosine_if_its_settings_say_so(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_model(tmp_path / "m")

    async def work() -> None:
        body = {"query": "a refund", "documents": ["cat", "a refund", "refund a"]}
        async with serving(server, monkeypatch, str(tmp_path / "m"), model={"task": "embed"}) as service:
            refused = await service.post("/v1/rerank", **body)
            assert refused.status_code == 404 and "scorer: cosine" in refused.json()["error"]["message"]
        model = {"task": "embed", "scorer": "cosine"}
        async with serving(server, monkeypatch, str(tmp_path / "m"), model=model) as service:
            results = (await service.post("/v1/rerank", **body)).json()["results"]
            assert results[0]["index"] == 1 and results[0]["relevance_score"] == pytest.approx(1, abs=1e-4)
            texts = [body["query"], *body["documents"]]
            embedded = (await service.post("/v1/embeddings", input=texts)).json()["data"]
            query, *documents = (np.array(item["embedding"]) for item in embedded)
            for result in results:
                assert result["relevance_score"] == pytest.approx(float(query @ documents[result["index"]]), abs=1e-4)
            pairs = {"text_1": ["cat", "a refund"], "text_2": ["cat", "refund a"]}
            scores = (await service.post("/v1/score", **pairs)).json()["data"]
            assert scores[0]["score"] == pytest.approx(1, abs=1e-4)
            assert scores[1]["score"] == pytest.approx(float(query @ documents[2]), abs=1e-4)

    asyncio.run(work())


@pytest.mark.parametrize(("task", "labels"), [("embed", 1), ("rerank", 2)])
def test_a_model_for_another_task_is_refused_before_it_is_served(tmp_path: Path, task: str, labels: int) -> None:
    folder = make_cross_encoder(tmp_path / "m", labels)
    model = open_model(ModelSettings.model_validate({"source": folder, "task": task}), tmp_path)
    for refuse in (lambda: EncoderModel(model, 1), lambda: check_readable(model)):
        with pytest.raises((WrongTask, ModelFolderError), match=f"no model for task: {task}"):
            refuse()


def test_a_cross_encoder_is_not_served_as_a_model_that_generates(tmp_path: Path) -> None:
    folder = make_cross_encoder(tmp_path / "m")
    with pytest.raises(ModelFolderError, match="trained to rerank; set task: rerank"):
        open_model(ModelSettings(source=folder), tmp_path)
