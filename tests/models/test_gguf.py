"""GGUF files: converted once into a model folder that answers as the file's model does, or refused with the reason."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.commands.downloads import obtain_all
from cluster.models.fetch import FetchError, exclusive
from cluster.models.folder import ModelFolderError, folder_of, is_to_be_fetched, known_as, open_model
from cluster.models.gguf.header import GgufError
from cluster.models.gguf.install import install_gguf
from cluster.models.paths import UnsafeNameError
from cluster.settings import ModelSettings, Settings
from deployments.common.messages import Add, EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.generation.prompts import PromptRenderer
from tests.models.test_store import snapshot

if TYPE_CHECKING:
    from tests.models import gguf_files
else:
    pytest.importorskip("gguf", reason="the extra `test` brings it")
    pytest.importorskip("openvino_genai", reason="the extra `gguf` brings it")
    from tests.models import gguf_files

IDS = [int(number) for number in np.random.default_rng(1).integers(0, len(gguf_files.TOKENS), 40)]


def silent(stage: str) -> None:
    """Takes the stages of a conversion."""


def install(model: "gguf_files.TinyModel", folder: Path, name: str = "Tiny.gguf") -> Path:
    return install_gguf(model.write(folder / name), folder / "models", silent)


def logits(folder: Path) -> Any:
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}
    compiled = openvino.Core().compile_model(str(folder / "openvino_model.xml"), "CPU", exact)
    inputs = {
        "input_ids": np.array([IDS]),
        "attention_mask": np.ones((1, len(IDS)), np.int64),
        "position_ids": np.arange(len(IDS))[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    return compiled.create_infer_request().infer(inputs)["logits"][0]


@pytest.mark.parametrize(
    ("options", "linear"),
    [
        ({"architecture": "llama"}, 1),
        ({"architecture": "llama", "metadata": gguf_files.sentencepiece()}, 1),
        ({"architecture": "qwen2"}, 1),
        ({"architecture": "qwen3"}, 1),
        ({"type": gguf_files.TensorType.Q8_0}, 1),
        ({"type": gguf_files.TensorType.Q4_0}, 1),
        ({"architecture": "llama", "divisors": np.linspace(1, 8, gguf_files.HEAD // 2, dtype=np.float32)}, 1),
        ({"metadata": {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0}}, 4),
    ],
    ids=["llama", "sentencepiece", "qwen2", "qwen3", "q8_0", "q4_0", "llama 3's positions", "linear positions"],
)
def test_the_converted_model_computes_what_the_file_says(
    options: Mapping[str, Any], linear: int, tmp_path: Path
) -> None:
    """GenAI alone is off by 0.3 here: it keeps the rotary frequencies in 16 bits, and knows nothing of scaling."""
    model = gguf_files.TinyModel(**options)
    folder = install(model, tmp_path)
    assert np.abs(logits(folder) - model.logits(IDS, linear)).max() < 0.01


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed file; its folder is models/tiny-gguf beside it."""
    file = tmp_path_factory.mktemp("gguf") / "Tiny.gguf"
    install(gguf_files.TinyModel(), file.parent)
    return file


def test_the_folder_is_a_model_of_the_store(tiny: Path) -> None:
    store = tiny.parent / "models"
    model = open_model(ModelSettings(source=str(tiny)), store)
    assert model.folder == store / "tiny-gguf" and known_as(str(tiny)) == model.name == "tiny"
    assert model.context_tokens == gguf_files.CONTEXT
    assert {file.name for file in model.folder.iterdir()} == {
        "config.json",
        "dray-model.json",
        "generation_config.json",
        "openvino_model.bin",
        "openvino_model.xml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in (store / ".partial").iterdir()] == ["tiny-gguf.lock"]
    assert not is_to_be_fetched(model.settings, store)
    environment = {"DRAY_MODELS_DIR": str(store), "COLUMNS": "200"}
    listed = CliRunner(env=environment).invoke(app, ["models", "list", "--json"])
    [entry] = json.loads(listed.stdout)["installed"]
    assert entry["name"] == "tiny-gguf" and entry["manifest"]["source"] == "Tiny.gguf"


def test_prompts_are_rendered_by_the_files_own_tokenizer_and_template(tiny: Path) -> None:
    prompts = PromptRenderer(open_model(ModelSettings(source=str(tiny)), tiny.parent / "models"))
    ids = prompts.render(GenerationRequest((Message("user", "hi<think>"),), Sampling(9))).ids
    assert prompts.decode(ids, special=True) == "<|im_start|>user\nhi<think><|im_end|>\n<|im_start|>"
    # What a user says is text, and the template's own tokens are control tokens.
    assert gguf_files.TOKENS.index("hi") in ids and gguf_files.THINK not in ids and gguf_files.EOS in ids
    assert prompts.vocabulary.thinks


def test_the_engine_generates_with_it(tiny: Path) -> None:
    model = open_model(ModelSettings(source=str(tiny), kv_cache_mb=16), tiny.parent / "models")
    assert len(answer(model, list(IDS), 8)) in range(1, 9)


def answer(model: Any, prompt: list[int], tokens: int) -> list[int]:
    engine = Engine(config_for(model, tuple(os.sched_getaffinity(0))))
    engine.add(Add(1, EngineRequest(prompt, Sampling(tokens))))
    ids: list[int] = []
    while engine.busy:
        for batch in engine.step().streams.values():
            ids += batch.ids
    return ids


def test_the_same_file_is_converted_once(tiny: Path) -> None:
    store = tiny.parent / "models"
    before = {file: file.stat().st_mtime_ns for file in (store / "tiny-gguf").iterdir()}
    stages: list[str] = []
    assert install_gguf(tiny, store, stages.append) == store / "tiny-gguf" and not stages
    assert "tiny-gguf is ready: dray up --model" in dray(tiny.parent, "pull", str(tiny)).stdout
    assert before == {file: file.stat().st_mtime_ns for file in (store / "tiny-gguf").iterdir()}


def test_another_file_of_the_same_name_is_refused(tiny: Path, tmp_path: Path) -> None:
    store, other = tiny.parent / "models", tmp_path / "TINY.gguf"
    other.write_bytes(tiny.read_bytes()[:-1] + b"\1")
    before = snapshot(store)
    with pytest.raises(GgufError, match=r"converted from another file.*dray models remove tiny-gguf"):
        install_gguf(other, store, silent)
    with pytest.raises(typer.Exit):  # `dray up` and `dray deploy` too, though a folder of this name is there
        obtain_all(Settings(model=ModelSettings(source=str(other)), models_dir=store))
    shutil.rmtree(tmp_path / "models", ignore_errors=True)
    (tmp_path / "models" / "tiny-gguf").mkdir(parents=True)
    with pytest.raises(GgufError, match="converted from another file"):
        install_gguf(other, tmp_path / "models", silent)
    assert snapshot(store) == before


def test_a_converted_model_needs_its_file_no_more(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny.parent / "models", tmp_path / "models")
    gone = tmp_path / "Tiny.gguf"
    assert install_gguf(gone, tmp_path / "models", silent) == tmp_path / "models" / "tiny-gguf"
    assert open_model(ModelSettings(source=str(gone)), tmp_path / "models").name == "tiny"
    assert dray(tmp_path, "remove", str(gone)).exit_code == 0
    assert not (tmp_path / "models" / "tiny-gguf").exists()
    for source in (str(gone), "Tiny.gguf"):
        with pytest.raises(ModelFolderError, match="does not exist"):
            is_to_be_fetched(ModelSettings(source=source), tmp_path / "models")


def test_a_file_without_a_suffix_is_known_by_its_path(tiny: Path, tmp_path: Path) -> None:
    """Ollama names its files by their hash."""
    blob = tmp_path / "sha256-0123"
    blob.symlink_to(tiny)
    assert folder_of(str(blob), "int8", tmp_path) == tmp_path / "sha256-0123-gguf"
    assert is_to_be_fetched(ModelSettings(source=str(blob)), tmp_path)
    folder = tmp_path / "model.gguf"
    folder.mkdir()
    assert folder_of(str(folder), "int8", tmp_path) == folder


def dray(home: Path, *arguments: str) -> Result:
    environment = {"DRAY_MODELS_DIR": str(home / "models"), "DRAY_STATE_DIR": str(home / "s"), "COLUMNS": "200"}
    return CliRunner(env=environment).invoke(app, ["models", *arguments])


def test_without_the_extra_the_error_says_how_to_install_it(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    result = dray(tmp_path, "pull", str(tiny))
    assert result.exit_code == 1 and "[gguf]" in result.stderr and "pip install --editable" in result.stderr
    assert not (tmp_path / "models" / "tiny-gguf").exists()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"general.architecture": "gemma"}, "architecture is 'gemma'; supported are llama, qwen2, qwen3"),
        ({"tokenizer.ggml.model": "t5"}, "kind 't5'; supported are 'gpt2' and 'llama'"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken'; supported are .*deepseek-r1-qwen.*llama-bpe.*smollm"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre must be a text"),
        ({"tokenizer.ggml.merges": ["h i", "x yz"]}, "merge 'x yz'"),
        ({"tokenizer.ggml.tokens": ["a"] * len(gguf_files.TOKENS)}, "the same token twice"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "types of 2"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id is 9999"),
        ({"qwen2.rope.scaling.type": "yarn"}, "scales its positions by 'yarn'"),
        ({"qwen2.rope.freq_base": 0.0}, "rotary frequencies"),
        ({"qwen2.expert_count": 8}, "mixture of experts"),
        ({"split.count": 3}, "one part of a model in several files"),
        ({"qwen2.block_count": 3}, r"lacks blk\.2\.attn_norm\.weight"),
        ({"qwen2.block_count": 2**31 - 1}, "layers"),
        ({"qwen2.attention.head_count": 0}, "0 heads"),
        ({"qwen2.embedding_length": 128}, "token_embd.weight has the shape"),
        ({"qwen2.context_length": "long"}, "context_length must be an integer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_models_are_refused_with_what_is_supported(
    metadata: Mapping[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(GgufError, match=reason):
        install(gguf_files.TinyModel(metadata=metadata), tmp_path)
    assert not (tmp_path / "models" / "tiny-gguf").exists()
    assert [path.name for path in (tmp_path / "models" / ".partial").iterdir()] == ["tiny-gguf.lock"]


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """GenAI refuses this file: queries of another size than the heads."""
    model = gguf_files.TinyModel(metadata={"qwen2.attention.head_count_kv": 7})
    with pytest.raises(GgufError, match="OpenVINO GenAI cannot convert"):
        install(model, tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".partial"]
    assert [path.name for path in (tmp_path / "models" / ".partial").iterdir()] == ["tiny-gguf.lock"]


def test_one_process_converts_a_file(tiny: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / ".partial" / "tiny-gguf.lock"), pytest.raises(FetchError, match="another process"):
        install_gguf(tiny, tmp_path, silent)


def test_a_full_disk_is_found_before_the_conversion(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=200 << 20))
    with pytest.raises(GgufError, match="free some space"):
        install_gguf(tiny, tmp_path / "models", silent)
    assert not (tmp_path / "models" / "tiny-gguf").exists()


@pytest.mark.parametrize("name", ["tiny-gguf", ".partial", ".partial/tiny-gguf"])
def test_nothing_is_written_through_a_link(name: str, tiny: Path, tmp_path: Path) -> None:
    store, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (store / name).parent.mkdir(parents=True)
    (store / name).symlink_to(elsewhere)
    with pytest.raises(UnsafeNameError):
        install_gguf(tiny, store, silent)
    assert not list(elsewhere.iterdir())


def test_names_cannot_lead_out_of_the_store(tiny: Path, tmp_path: Path) -> None:
    odd = tmp_path / "..\\x.gguf"
    shutil.copy(tiny, odd)
    with pytest.raises(UnsafeNameError):
        install_gguf(odd, tmp_path / "models", silent)
    assert folder_of("../../x/...gguf", "int8", tmp_path).parent == tmp_path
