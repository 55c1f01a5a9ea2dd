"""An embedding model beside a generating model: OpenAI's client and LangChain get vectors from it."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import openvino
import openvino.opset15 as operations
import pytest

from cluster.models.folder import BUNDLED_FOLDER
from cluster.ports import free_port
from tests.conftest import RABBITS, Dray
from tests.judges.judge import JudgedTransport

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for each of two models")

SIZE = 24
TABLE = np.random.default_rng(5).normal(size=(2050, SIZE)).astype(np.float32)


def make_model(folder: Path) -> None:
    """Writes a small but real OpenVINO model: a vector for each token, with the bundled model's tokenizer."""
    folder.mkdir()
    ids, mask = (operations.parameter([-1, -1], np.int64, name=name) for name in ("input_ids", "attention_mask"))
    for parameter, name in ((ids, "input_ids"), (mask, "attention_mask")):
        parameter.output(0).set_names({name})
    vectors = operations.gather(operations.constant(TABLE), ids, operations.constant(np.int64(0)))
    weights = operations.unsqueeze(operations.convert(mask, "f32"), operations.constant(np.int64(2)))
    hidden = operations.multiply(vectors, weights)
    hidden.output(0).set_names({"last_hidden_state"})
    openvino.save_model(openvino.Model([operations.result(hidden)], [ids, mask]), folder / "openvino_model.xml")
    for file in BUNDLED_FOLDER.glob("*token*"):
        shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 40}))


SIMILARITY_SETTINGS = {
    "DRAY_CACHE__SIMILARITY_MODEL": "v",
    "DRAY_CACHE__SIMILARITY_THRESHOLD": "0.5",
    "DRAY_CACHE__NORMALIZE": "true",
}


@pytest.fixture(scope="module")
def both_models() -> Iterator[Dray]:
    """A Dray with a generating and an embedding model."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    make_model(folder / "tiny")
    dray = Dray(folder, free_port())
    models = [
        {"name": "bot", "cores_per_replica": 1},
        {"name": "vectors", "aliases": ["v"], "task": "embed", "source": str(folder / "tiny"), "cores_per_replica": 1},
    ]
    settings = {"DRAY_MODELS": json.dumps(models), "DRAY_LIMITS__EMBEDDING_INPUTS": "40", **SIMILARITY_SETTINGS}
    started = dray.run("up", "--detach", **settings)  # type: ignore[arg-type]
    assert started.returncode == 0, started.stderr
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def embedding_client(both_models: Dray) -> Iterator[openai.OpenAI]:
    # Its types name httpx2 alone; it takes both.
    judged: Any = httpx.Client(transport=JudgedTransport(), timeout=120)
    with openai.OpenAI(base_url=both_models.url, api_key="none", max_retries=0, http_client=judged) as client:
        yield client


def expected(client: openai.OpenAI, text: str) -> list[float]:
    """The mean of the tokens' vectors, at length 1, calculated here."""
    tokenized = client.post("/../tokenize", body={"model": "bot", "prompt": text}, cast_to=object)
    assert isinstance(tokenized, dict)
    mean = TABLE[tokenized["tokens"]].mean(axis=0)
    return list(mean / np.linalg.norm(mean))


def test_vectors_are_those_of_the_model(embedding_client: openai.OpenAI) -> None:
    texts = ["hello", "鸡兔同笼", "What is 27 + 48?"]
    response = embedding_client.embeddings.create(model="v", input=texts)
    assert [item.index for item in response.data] == [0, 1, 2] and response.usage.prompt_tokens > 3
    for text, item in zip(texts, response.data, strict=True):
        assert item.embedding == pytest.approx(expected(embedding_client, text), abs=1e-3)
        assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-3)
    plain = embedding_client.embeddings.create(model="vectors", input="hello", encoding_format="float", dimensions=SIZE)
    assert plain.data[0].embedding == pytest.approx(response.data[0].embedding, abs=1e-6)


def test_many_texts_come_back_in_order(embedding_client: openai.OpenAI) -> None:
    texts = [f"{n} + {n}" for n in range(40)]
    together = embedding_client.embeddings.create(model="vectors", input=texts)
    single = embedding_client.embeddings.create(model="vectors", input=texts[33])
    assert together.data[33].embedding == pytest.approx(single.data[0].embedding, abs=1e-5)


def test_langchain_embeds(both_models: Dray) -> None:
    from langchain_openai import OpenAIEmbeddings

    # By default it would send token ids of OpenAI's own tokenizer.
    options: Any = {"model": "vectors", "check_embedding_ctx_length": False}
    options |= {"base_url": both_models.url, "api_key": "none"}
    client = OpenAIEmbeddings(**options)
    assert len(client.embed_query("hello")) == SIZE


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "bot", "input": "hi"}, 404, "model"),
        ({"model": "vectors", "input": []}, 400, "input"),
        ({"model": "vectors", "input": ["a", " "]}, 400, "input"),
        ({"model": "vectors", "input": [1, "a"]}, 400, "input"),
        ({"model": "vectors", "input": [1, 9999]}, 400, "input"),
        ({"model": "vectors", "input": [[1], []]}, 400, "input"),
        ({"model": "vectors", "input": [-1]}, 400, "input[0]"),
        ({"model": "vectors", "input": [1], "input_type": "query"}, 400, "input_type"),
        ({"model": "vectors", "input": ["a"] * 41}, 400, "input"),
        ({"model": "vectors", "input": "1 " * 50}, 400, "input"),
        ({"model": "vectors", "input": "a", "dimensions": 25}, 400, "dimensions"),
        ({"model": "vectors", "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
def test_an_invalid_field_is_refused_by_name(
    embedding_client: openai.OpenAI, body: dict[str, object], status: int, param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        embedding_client.post("/embeddings", body=body, cast_to=object)
    assert (refused.value.status_code, refused.value.param) == (status, param)


def test_each_model_does_its_own_task(embedding_client: openai.OpenAI, both_models: Dray) -> None:
    tasks = {model.id: model.model_dump()["task"] for model in embedding_client.models.list()}
    assert tasks == {"bot": "generate", "vectors": "embed"}
    with pytest.raises(openai.NotFoundError, match="an embedding model"):
        embedding_client.chat.completions.create(model="vectors", messages=[{"role": "user", "content": "hi"}])
    completion = embedding_client.chat.completions.create(model="bot", messages=[{"role": "user", "content": RABBITS}])
    assert "23" in str(completion.choices[0].message.content)
    assert {replica["model"] for replica in both_models.status()["replicas"]} == {"bot", "vectors"}


def test_an_incomplete_embedding_model_is_refused(another: Dray) -> None:
    make_model(another.folder / "half")
    (another.folder / "half" / "tokenizer.json").unlink()
    done = another.run("up", "--model", str(another.folder / "half"), DRAY_MODEL__TASK="embed")
    assert done.returncode == 1 and "lacks tokenizer.json" in done.stderr


def test_a_rephrased_question_is_a_hit_and_a_similar_one_with_other_numbers_is_not(both_models: Dray) -> None:
    http = httpx.Client(base_url=both_models.root, timeout=60)

    def ask(text: str, before: str = "") -> httpx.Response:
        history = [{"role": "user", "content": before}, {"role": "assistant", "content": "42"}] if before else []
        body = {"model": "bot", "messages": [*history, {"role": "user", "content": text}]}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    first = ask("What is 27 + 48?")
    assert first.headers["x-dray-cache"] == "miss"
    for text in ("Hi, can you tell me what is 27 + 48? Thanks", "What's 27 + 48?"):
        rephrased = ask(text)
        assert (rephrased.headers["x-dray-cache"], rephrased.headers["x-dray-cache-match"]) == ("hit", "similar")
        assert rephrased.json()["choices"] == first.json()["choices"]
    normalized = ask("What is  ２７ + 48")
    assert normalized.headers["x-dray-cache"] == "hit" and "x-dray-cache-match" not in normalized.headers
    for other_question in ("What is 27 + 49?", "What is 48 + 27?", "What is 27 - 48?"):
        assert ask(other_question).headers["x-dray-cache"] == "miss", other_question
    assert ask("What's 27 + 48?", before="What is 1 + 1?").headers["x-dray-cache"] == "miss"
