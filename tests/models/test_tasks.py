"""What a model's files say about its task, its maximum length, pooling and prompts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.models.catalog import CATALOG
from cluster.models.folder import BUNDLED_FOLDER, ModelFolderError, open_model
from cluster.models.store import _complete
from cluster.models.tasks import trained_length, trained_task
from cluster.settings import LimitSettings, ModelSettings
from deployments.api.protocol.chat import read_chat
from deployments.api.protocol.common import sampling_for
from deployments.engine.encoder.model import trained_pooling
from deployments.routing.embeddings import trained_prompts
from tests.service.test_embeddings import make_model


@pytest.mark.parametrize(
    ("architecture", "files", "task"),
    [
        ("Qwen3ForCausalLM", (), "generate"),
        ("ChatGLMModel", (), "generate"),
        ("Gemma3ForCausalLM", (), "generate"),
        ("BertModel", (), "embed"),
        ("BertForMaskedLM", (), "embed"),
        ("NewModel", ("modules.json",), "embed"),
        ("XLMRobertaModel", ("1_Pooling/config.json",), "embed"),
        ("Qwen3ForCausalLM", ("config_sentence_transformers.json",), "embed"),
        ("XLMRobertaForSequenceClassification", (), "rerank"),
        ("BertForSequenceClassification", ("config_sentence_transformers.json",), "rerank"),
        ("Something", (), None),
    ],
)
def test_a_folder_says_what_its_model_was_trained_for(
    tmp_path: Path, architecture: str, files: tuple[str, ...], task: str | None
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert trained_task(tmp_path, {"architectures": [architecture]}) == task
    assert trained_task(tmp_path, {}) == ("embed" if files else None)


@pytest.mark.parametrize(
    ("config", "tested", "length"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, {}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512}, {"max_seq_length": 256}, 256),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 8194, "pad_token_id": 1}, {}, 8192),
        ({"model_type": "roberta", "max_position_embeddings": 514}, {"max_seq_length": 514}, 512),
    ],
)
def test_the_longest_text(config: dict[str, Any], tested: dict[str, Any], length: int) -> None:
    assert trained_length(config, tested) == length


def test_a_model_that_generates_nothing_is_not_served_as_one_that_does(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    config = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 40}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match="trained to embed; set task: embed"):
        open_model(ModelSettings(source=str(tmp_path / "m")), tmp_path)
    assert open_model(ModelSettings(source=str(tmp_path / "m"), task="embed"), tmp_path).context_tokens == 40


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.task == "embed"])
def test_a_fetched_embedding_model_is_used_as_its_makers_say(tmp_path: Path, name: str) -> None:
    use = CATALOG[name].embedding
    assert use is not None
    _complete(tmp_path, name, {})
    assert trained_pooling(tmp_path) == use.pooling
    wanted = {kind: text for kind, text in (("query", use.query), ("passage", use.passage)) if text}
    assert trained_prompts(tmp_path) == wanted
    tested = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    assert tested["max_seq_length"] == CATALOG[name].context_tokens
    assert trained_task(tmp_path, {"architectures": ["Qwen3ForCausalLM"]}) == "embed"


def test_what_a_repository_says_itself_is_kept(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "mine: "}, "a": 1}')
    _complete(tmp_path, "bge-small-zh-v1.5", {})
    assert trained_pooling(tmp_path) == "mean" and trained_prompts(tmp_path) == {"query": "mine: "}


def test_the_bundled_model_is_known_to_generate(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED_FOLDER, tmp_path / "m")
    assert trained_task(tmp_path / "m", json.loads((tmp_path / "m" / "config.json").read_text())) == "generate"


@pytest.mark.parametrize(
    ("stored", "temperature", "top_p"),
    [
        (None, 0.8, 0.95),
        ({"eos_token_id": 5}, 0.8, 0.95),
        ({"do_sample": True, "temperature": 0.3}, 0.3, 0.95),
        ({"do_sample": False}, 0.0, 1.0),
    ],
)
def test_a_request_without_a_temperature_gets_the_makers(
    tmp_path: Path, stored: dict[str, Any] | None, temperature: float, top_p: float
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(BUNDLED_FOLDER, folder)
    (folder / "generation_config.json").unlink()
    if stored is not None:
        (folder / "generation_config.json").write_text(json.dumps(stored))
    _complete(folder, "phi-4-mini-reasoning", {})
    model = open_model(ModelSettings(source=str(folder)), tmp_path)
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
    sampling = sampling_for(model, LimitSettings(), None, read_chat(body, LimitSettings()))
    assert (sampling.temperature, sampling.top_p) == (temperature, top_p)
    asked = b'{"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}'
    assert sampling_for(model, LimitSettings(), None, read_chat(asked, LimitSettings())).temperature == 0
    if stored and "eos_token_id" in stored:
        assert model.generation_defaults["eos_token_id"] == 5


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.task == "generate"])
def test_each_model_of_the_catalog_has_its_makers_sampling(tmp_path: Path, name: str) -> None:
    """Where its repository names none."""
    folder = Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "m"))
    (folder / "generation_config.json").unlink()
    _complete(folder, name, {})
    model = open_model(ModelSettings(source=str(folder)), tmp_path)
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
    sampling = sampling_for(model, LimitSettings(), None, read_chat(body, LimitSettings()))
    recommended = CATALOG[name].sampling
    assert {field: getattr(sampling, field) for field in recommended} == recommended
    if not recommended:
        assert model.generation_defaults == {}, "nothing is made up"
