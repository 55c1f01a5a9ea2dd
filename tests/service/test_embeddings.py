"""An embedding model beside a generating one: OpenAI's client and LangChain get vectors of it."""

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

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for each of two models")

SIZE = 24
TABLE = np.random.default_rng(5).normal(size=(2050, SIZE)).astype(np.float32)


def make_model(folder: Path) -> None:
    """A real OpenVINO model, if a small one: a vector for each token, by the bundled model's tokenizer."""
    folder.mkdir()
    ids, mask = (operations.parameter([-1, -1], np.int64, name=name) for name in ("input_ids", "attention_mask"))
    for one, name in ((ids, "input_ids"), (mask, "attention_mask")):
        one.output(0).set_names({name})
    looked_up = operations.gather(operations.constant(TABLE), ids, operations.constant(np.int64(0)))
    shown = operations.unsqueeze(operations.convert(mask, "f32"), operations.constant(np.int64(2)))
    hidden = operations.multiply(looked_up, shown)
    hidden.output(0).set_names({"last_hidden_state"})
    openvino.save_model(openvino.Model([operations.result(hidden)], [ids, mask]), folder / "openvino_model.xml")
    for file in BUNDLED_FOLDER.glob("*token*"):
        shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 40}))


SIMILAR = {
    "DRAY_CACHE__SIMILARITY_MODEL": "v",
    "DRAY_CACHE__SIMILARITY_THRESHOLD": "0.5",
    "DRAY_CACHE__NORMALIZE": "true",
}


@pytest.fixture(scope="module")
def both() -> Iterator[Dray]:
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    make_model(folder / "tiny")
    dray = Dray(folder, free_port())
    models = [
        {"name": "bot", "cores_per_replica": 1},
        {"name": "vectors", "aliases": ["v"], "task": "embed", "source": str(folder / "tiny"), "cores_per_replica": 1},
    ]
    started = dray.run("up", "--detach", DRAY_MODELS=json.dumps(models), DRAY_LIMITS__EMBEDDING_INPUTS="40", **SIMILAR)  # type: ignore[arg-type]
    assert started.returncode == 0, started.stderr
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def asking(both: Dray) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=both.url, api_key="none", max_retries=0) as client:
        yield client


def expected(client: openai.OpenAI, text: str) -> list[float]:
    """The mean of the tokens' vectors, at length 1, by hand."""
    made = client.post("/../tokenize", body={"model": "bot", "prompt": text}, cast_to=object)
    assert isinstance(made, dict)
    mean = TABLE[made["tokens"]].mean(axis=0)
    return list(mean / np.linalg.norm(mean))


def test_vectors_are_the_models(asking: openai.OpenAI) -> None:
    texts = ["hello", "鸡兔同笼", "What is 27 + 48?"]
    made = asking.embeddings.create(model="v", input=texts)
    assert [one.index for one in made.data] == [0, 1, 2] and made.usage.prompt_tokens > 3
    for text, one in zip(texts, made.data, strict=True):
        assert one.embedding == pytest.approx(expected(asking, text), abs=1e-3)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-3)
    plain = asking.embeddings.create(model="vectors", input="hello", encoding_format="float", dimensions=SIZE)
    assert plain.data[0].embedding == pytest.approx(made.data[0].embedding, abs=1e-6)


def test_many_texts_come_back_in_order(asking: openai.OpenAI) -> None:
    texts = [f"{n} + {n}" for n in range(40)]
    made = asking.embeddings.create(model="vectors", input=texts)
    alone = asking.embeddings.create(model="vectors", input=texts[33])
    assert made.data[33].embedding == pytest.approx(alone.data[0].embedding, abs=1e-5)


def test_langchain_embeds(both: Dray) -> None:
    from langchain_openai import OpenAIEmbeddings

    # Its default would send token ids of OpenAI's own tokenizer.
    chosen: Any = {"model": "vectors", "check_embedding_ctx_length": False}
    chosen |= {"base_url": both.url, "api_key": "none"}
    client = OpenAIEmbeddings(**chosen)
    assert len(client.embed_query("hello")) == SIZE


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "bot", "input": "hi"}, 404, "model"),
        ({"model": "vectors", "input": []}, 400, "input"),
        ({"model": "vectors", "input": ["a", " "]}, 400, "input"),
        ({"model": "vectors", "input": [1, 2]}, 400, "input[0]"),
        ({"model": "vectors", "input": ["a"] * 41}, 400, "input"),
        ({"model": "vectors", "input": "1 " * 50}, 400, "input"),
        ({"model": "vectors", "input": "a", "dimensions": 7}, 400, "dimensions"),
        ({"model": "vectors", "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
def test_refused_by_name(asking: openai.OpenAI, body: dict[str, object], status: int, param: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        asking.post("/embeddings", body=body, cast_to=object)
    assert (refused.value.status_code, refused.value.param) == (status, param)


def test_each_model_does_its_own_task(asking: openai.OpenAI, both: Dray) -> None:
    assert {one.id: one.model_dump()["task"] for one in asking.models.list()} == {"bot": "generate", "vectors": "embed"}
    with pytest.raises(openai.NotFoundError, match="an embedding model"):
        asking.chat.completions.create(model="vectors", messages=[{"role": "user", "content": "hi"}])
    made = asking.chat.completions.create(model="bot", messages=[{"role": "user", "content": RABBITS}])
    assert "23" in str(made.choices[0].message.content)
    assert {one["model"] for one in both.status()["replicas"]} == {"bot", "vectors"}


def test_an_incomplete_embedding_model_is_refused(another: Dray) -> None:
    make_model(another.folder / "half")
    (another.folder / "half" / "openvino_tokenizer.xml").unlink()
    ended = another.run("up", "--model", str(another.folder / "half"), DRAY_MODEL__TASK="embed")
    assert ended.returncode == 1 and "lacks openvino_tokenizer.xml" in ended.stderr


def test_the_same_question_in_other_words_has_the_same_answer_and_a_twin_its_own(both: Dray) -> None:
    http = httpx.Client(base_url=both.root, timeout=60)

    def asked(text: str, before: str = "") -> httpx.Response:
        turns = [{"role": "user", "content": before}, {"role": "assistant", "content": "42"}] if before else []
        body = {"model": "bot", "messages": [*turns, {"role": "user", "content": text}]}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    first = asked("What is 27 + 48?")
    assert first.headers["x-dray-cache"] == "miss"
    for text in ("Hi, can you tell me what is 27 + 48? Thanks", "What's 27 + 48?"):
        other = asked(text)
        assert (other.headers["x-dray-cache"], other.headers["x-dray-cache-match"]) == ("hit", "similar")
        assert other.json()["choices"] == first.json()["choices"]
    spelled = asked("What is  ２７ + 48")
    assert spelled.headers["x-dray-cache"] == "hit" and "x-dray-cache-match" not in spelled.headers
    for twin in ("What is 27 + 49?", "What is 48 + 27?", "What is 27 - 48?"):
        assert asked(twin).headers["x-dray-cache"] == "miss", twin
    assert asked("What's 27 + 48?", before="What is 1 + 1?").headers["x-dray-cache"] == "miss"
