"""Export with the real exporter: random models of each architecture in the catalog, exported and served.

Needs the extra `export`: `make test-export`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cluster.models.export import Compression, ExportError, export_model
from cluster.models.folder import BUNDLED_FOLDER, ModelFolderError, check_readable, open_model
from cluster.ports import free_port
from cluster.settings import ModelSettings
from deployments.common.messages import EncoderInput
from deployments.engine.encoder.model import EncoderModel, trained_pooling
from tests.conftest import Dray
from tests.models.hubs import Repository, stand_in

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from transformers import AutoModelForCausalLM  # noqa: E402

from cluster.models.shapes import make_random  # noqa: E402

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 2050,
    "max_position_embeddings": 512,
}
LIKE = {
    "qwen2": "deepseek-r1-distill-qwen-1.5b",
    "qwen3": "qwen3-0.6b",
    "phi3": "phi-3-mini",
    "llama": "tinyllama-1.1b",
    "smollm3": "smollm3-3b",
}
SMOOTHED = {"qwen2": 9, "qwen3": 8, "phi3": 7, "llama": 9}
"""Inputs of two layers and the head. Qwen3's head has the embedding's weights; Phi-3's values share a matrix."""


@pytest.fixture
def dray() -> Iterator[Dray]:
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    dray = Dray(folder, free_port())
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


def answers(dray: Dray, *up: str, **extra: str) -> None:
    """Serves a model and gets an answer from it."""
    started = dray.run("up", "--detach", *up, **extra)  # type: ignore[arg-type]
    assert started.returncode == 0, started.stderr
    model = httpx.get(f"{dray.url}/models").json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": "1+1=?"}], "max_tokens": 5, "temperature": 0}
    response = httpx.post(f"{dray.url}/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    assert 1 <= response.json()["usage"]["completion_tokens"] <= 5


@pytest.mark.parametrize("architecture", LIKE)
def test_each_architecture_is_exported_and_served(dray: Dray, architecture: str) -> None:
    target = dray.folder / architecture
    make_random(target, LIKE[architecture], Compression(), **SMALL)
    manifest = json.loads((target / "dray-model.json").read_text())
    assert manifest["weight"] == "int8" and LIKE[architecture] in manifest["source"]
    assert len(manifest["weights_blake2b"]) == 32 and set(manifest["versions"]) > {"openvino", "torch"}
    assert manifest["weights"] == "int8-symmetric-smoothed"
    assert manifest["conversion"]["smoothed"] == SMOOTHED[architecture]
    assert json.loads((target / "config.json").read_text())["model_type"] == architecture
    answers(dray, "--model", str(target))


def weights(folder: Path) -> Path:
    """A transformers model with random weights, of the bundled model's architecture."""
    from transformers import Qwen2Config

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SMALL, bos_token_id=0, eos_token_id=1), dtype=torch.float32)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BUNDLED_FOLDER / name, folder)
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.95}')
    return folder


def size(folder: Path) -> int:
    return (folder / "openvino_model.bin").stat().st_size


def test_weight_formats_and_their_options(tmp_path: Path) -> None:
    source = weights(tmp_path / "weights")
    sizes = {}
    for name, compression in {
        "fp16": Compression("fp16"),
        "int8": Compression("int8"),
        "int4": Compression("int4", group_size=32),
        "half": Compression("int4", group_size=32, ratio=0.5),
    }.items():
        export_model(source, tmp_path / name, compression)
        sizes[name] = size(tmp_path / name)
        assert "0.95" in (tmp_path / name / "generation_config.json").read_text()
        assert (tmp_path / name / "chat_template.jinja").is_file()
    assert sizes["int4"] < sizes["half"] < sizes["int8"] < sizes["fp16"]
    manifest = json.loads((tmp_path / "half" / "dray-model.json").read_text())
    assert (manifest["weight"], manifest["group_size"], manifest["ratio"]) == ("int4", 32, 0.5)


def test_a_tokenizer_is_kept_as_its_makers_wrote_it(tmp_path: Path) -> None:
    """Whatever class it declares: transformers would build a Llama's tokenizer and write that."""
    source = weights(tmp_path / "weights")
    config = json.loads((source / "tokenizer_config.json").read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    export_model(source, tmp_path / "out", Compression())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match="already exists"):
        export_model(weights(tmp_path / "weights"), tmp_path / "there", Compression())


def test_broken_weights_leave_nothing(tmp_path: Path) -> None:
    source = weights(tmp_path / "weights")
    (source / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ExportError, match="could not export"):
        export_model(source, tmp_path / "out", Compression())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights"]


def test_a_models_own_code_runs_only_if_allowed(tmp_path: Path) -> None:
    source = weights(tmp_path / "weights")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (source / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (source / "code.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class C(Qwen2Config):\n    model_type = 'theirs'\n"
        "class M(Qwen2ForCausalLM):\n    config_class = C\n"
    )
    with pytest.raises(ExportError, match="--trust-remote-code"):
        export_model(source, tmp_path / "out", Compression())
    assert not ran.exists()
    with pytest.raises(ExportError, match="theirs"):  # an architecture unknown to the exporter, but its code did run
        export_model(source, tmp_path / "out", Compression(), remote_code=True)
    assert ran.exists()


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_up_by_name_fetches_weights_and_exports_them(dray: Dray, tmp_path: Path, hub: str) -> None:
    with stand_in(hub) as server:
        server.repositories["Qwen/Qwen3-0.6B"] = Repository.of(weights(tmp_path / "weights"))
        variable = "HF_ENDPOINT" if hub == "huggingface" else "MODELSCOPE_ENDPOINT"
        store = dray.folder / "m"
        extra = {variable: server.url, "DRAY_MODELS_DIR": str(store), "HOME": str(tmp_path)}
        answers(dray, "--model", "qwen3-0.6b", "--source", hub, **extra)
    assert [path.name for path in store.glob("[!.]*")] == ["qwen3-0.6b-int8"]
    assert not list((store / ".partial").glob("*.weights")), "the weights are no longer needed"
    manifest = json.loads((store / "qwen3-0.6b-int8" / "dray-model.json").read_text())
    assert (manifest["source"], manifest["hub"], manifest["weight"]) == ("Qwen/Qwen3-0.6B", hub, "int8")


def test_the_command_for_random_models_names_the_known_ones(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "models", "random", str(tmp_path / "out"), "--like", "nothing"],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "deepseek-r1-distill-qwen-1.5b" in done.stderr


def test_an_exported_language_model_ranks_by_its_answer(tmp_path: Path) -> None:
    """As transformers computes the logits of Qwen3-Reranker; batches of several lengths, one after the other."""
    from transformers import Qwen3Config

    torch.manual_seed(2)
    source, out = weights(tmp_path / "weights"), tmp_path / "out"
    reference = AutoModelForCausalLM.from_config(Qwen3Config(**SMALL, head_dim=16), dtype=torch.float32).eval()
    reference.save_pretrained(source)
    export_model(source, out, Compression("fp32"))
    words = {
        word: number for number, word in enumerate(["yes", "no", "<|im_start|>", "<|im_end|>", "<think>", "</think>"])
    }
    Tokenizer(WordLevel(words, "no")).save(str(out / "tokenizer.json"))
    model = open_model(ModelSettings.model_validate({"source": str(out), "task": "rerank"}), tmp_path)
    check_readable(model)
    ranker = EncoderModel(model, 1, {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"})
    for lengths in ((3, 40, 9, 1), (17,), (5, 6)):
        batch = [[(7 * length + 31 * place) % 2050 for place in range(length)] for length in lengths]
        with torch.no_grad():
            logits = [reference(torch.tensor([ids])).logits[0, -1] for ids in batch]
        wanted = [float(row[words["yes"]] - row[words["no"]]) for row in logits]
        assert ranker.run([EncoderInput(ids) for ids in batch])[:, 0].tolist() == pytest.approx(wanted, abs=5e-3)


def encoder_weights(folder: Path, classes: str) -> Path:
    """A small BERT with random weights and the bundled model's tokenizer. classes: of transformers."""
    import transformers

    options = {"num_labels": 1} if classes.endswith("Classification") else {}
    config = transformers.BertConfig(
        vocab_size=2050,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        **options,
    )
    getattr(transformers, classes)(config).save_pretrained(folder)
    for file in BUNDLED_FOLDER.glob("*token*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize(
    ("classes", "task", "shape"), [("BertModel", "embed", (2, 64)), ("BertForSequenceClassification", "rerank", (2, 1))]
)
def test_an_encoder_is_exported_for_its_task(tmp_path: Path, classes: str, task: str, shape: tuple[int, int]) -> None:
    source = encoder_weights(tmp_path / "weights", classes)
    if task == "embed":
        (source / "1_Pooling").mkdir()
        (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
        (source / "sentence_bert_config.json").write_text('{"max_seq_length": 99}')
    export_model(source, tmp_path / "out", Compression())
    with pytest.raises(ModelFolderError, match=f"set task: {task}"):
        open_model(ModelSettings(source=str(tmp_path / "out")), tmp_path)
    settings = ModelSettings.model_validate({"source": str(tmp_path / "out"), "task": task})
    model = open_model(settings, tmp_path)
    check_readable(model)
    assert model.context_tokens == (99 if task == "embed" else 512)
    assert trained_pooling(model.folder) == ("cls" if task == "embed" else "mean")
    assert EncoderModel(model, 1).run([EncoderInput([5, 6, 7]), EncoderInput([8, 9], 1)]).shape == shape
