"""Settings files and model folders from elsewhere: bounded where they are read, and what nobody verified is said."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration import SettingsError, load
from cluster.models import store
from cluster.models.catalog import Hub
from cluster.models.export import Compression
from cluster.models.folder import BUNDLED_FOLDER, ModelFolderError, open_model
from cluster.models.hubs import Listing, OnBytes, RemoteFile
from cluster.settings import ModelSettings
from deployments.common.messages import Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.encoder.model import trained_pooling
from deployments.generation import prompts

LAUGHS = "a0: &a0 {b: 1}\n" + "".join(
    f"a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in range(10))}}}\n" for n in range(1, 12)
)
LISTS = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "aliases stand for more"),
        (LISTS, "aliases stand for more"),
        ("model: &m\n  name: *m\n", "aliases stand for more"),
        ("host: '" + "a" * 2_000_000 + "'", "bytes"),
        ("[" * 100_000, "not a YAML mapping"),
    ],
    ids=["mappings", "lists", "itself", "large", "deep"],
)
def test_a_settings_file_stands_for_no_more_than_settings(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dray.yaml"
    path.write_text(text)
    started = time.thread_time()
    with pytest.raises(SettingsError, match=message):
        load(config=path)
    assert time.thread_time() - started < 20


def test_a_settings_file_may_use_aliases(tmp_path: Path) -> None:
    path = tmp_path / "dray.yaml"
    path.write_text("model: &m {replicas: 2}\nmodels: [*m, {name: other}]\n")
    assert load(config=path).settings.models[0].replicas == 2


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, '{"a": "' + "a" * 2_000_000 + '"}', "1" * 5000, ""])
def test_a_models_json_is_bounded(tmp_path: Path, name: str, text: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED_FOLDER, folder)
    (folder / name).write_text(text)
    with pytest.raises(ModelFolderError, match="not a model configuration"):
        open_model(ModelSettings(source=str(folder)), tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": "' + "a" * 2_000_000 + '"}'], ids=["deep", "large"])
def test_the_pooling_of_an_embedding_model_is_bounded(tmp_path: Path, text: str) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(text)
    with pytest.raises((ValueError, RecursionError)):
        trained_pooling(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("damage", ["large", "broken"])
def test_tokenizers_and_templates_are_bounded(tmp_path: Path, name: str, damage: str) -> None:
    folder = Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "model"))
    if damage == "large":
        with (folder / name).open("r+b") as file:
            file.truncate(65 << 20)  # without blocks on the disk
    else:
        (folder / name).write_bytes(b"\xff[[")
    model = open_model(ModelSettings(source=str(folder)), tmp_path)
    started = time.monotonic()
    with pytest.raises(ModelFolderError, match=r"bytes|no tokenizer|cannot be used"):
        prompts.PromptRenderer(model)
    assert time.monotonic() - started < 10


class Hubless:
    """A hub that lists the bundled model without checksums."""

    name: Hub = "modelscope"
    endpoint = "http://hub.invalid"

    def listing(self, repository: str, revision: str | None) -> Listing:
        files = [RemoteFile(file.name, file.stat().st_size) for file in BUNDLED_FOLDER.glob("openvino_model.*")]
        return Listing(repository, "master", tuple(files))

    def download(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        for file in files:
            shutil.copy(BUNDLED_FOLDER / file.path, folder / file.path)


class Silent:
    def begin(self, files: Sequence[RemoteFile]) -> None: ...
    def advance(self, path: str, size: int) -> None: ...
    def check(self, path: str) -> None: ...


def test_a_pull_says_which_files_no_checksum_vouches_for(tmp_path: Path) -> None:
    stages: list[str] = []
    store.obtain("org/name", Compression("int8"), tmp_path, Hubless(), Silent(), stages.append)
    assert any("has no tokenizer.json. The weights stay as they are" in stage for stage in stages)
    [said] = [stage for stage in stages if "not verified" in stage]
    assert "openvino_model.bin" in said and "openvino_model.xml" in said


def test_a_models_own_code_is_never_run_or_asked_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED_FOLDER, folder)
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Theirs: pass\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = json.loads((folder / "config.json").read_text()) | {"model_type": "theirs"}
    (folder / "config.json").write_text(json.dumps(theirs))

    def asked(*args: Any) -> str:
        pytest.fail("it asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    model = open_model(ModelSettings(source=str(folder)), tmp_path)
    question = GenerationRequest((Message("user", "鸡 1+1?"),), Sampling(1))
    bundled = open_model(ModelSettings(source=str(BUNDLED_FOLDER)), tmp_path)
    # The class is nobody's business: tokenizer.json has all that there is to know.
    assert prompts.PromptRenderer(model).render(question) == prompts.PromptRenderer(bundled).render(question)
    assert not (tmp_path / "ran").exists()
