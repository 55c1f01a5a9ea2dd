"""A model folder: is it whole, what is it called, how much does it need, and which exact model is it."""

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from cluster.models.catalog import CATALOG
from cluster.settings import BUNDLED, ModelSettings, Settings

BUNDLED_FOLDER = Path(__file__).parents[2] / "demo" / "model"
WEIGHTS_FILE = "openvino_model.bin"
MANIFEST = "dray-model.json"
_NEEDED = ("openvino_model.xml", WEIGHTS_FILE, "config.json", "tokenizer.json", "tokenizer_config.json")
_NEEDED_TO_EMBED = ("openvino_tokenizer.xml", "openvino_tokenizer.bin")
_MEANING = (
    "openvino_model.xml",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_SAMPLE_BYTES = 1 << 20
_SAMPLES = 64


class ModelFolderError(Exception):
    """The folder cannot be served; the message says what is missing or broken."""


class UnknownModel(ModelFolderError):
    """A name that is no folder, not in the catalog and no Hub id."""


def is_folder(source: str) -> bool:
    """Whether a model is given as a folder, and not by a name."""
    return source.startswith((".", "/", "~")) or Path(source).is_dir()


def known_as(source: str) -> str:
    """The name under which a source is served unless a setting gives another."""
    if source == BUNDLED:
        return "dray-demo"
    if is_folder(source):
        return Path(source).expanduser().resolve().name.lower()
    return source.rpartition("/")[2].lower()


def folder_of(source: str, weight: str, models_dir: Path) -> Path:
    """Where the model of this source is, or will be. Raises UnknownModel for a name that cannot be one."""
    if source == BUNDLED:
        return BUNDLED_FOLDER
    if is_folder(source):
        return Path(source).expanduser()
    if source not in CATALOG and source.count("/") != 1:
        raise UnknownModel(
            f"{source!r} is no folder, not in the catalog (`dray models list`), and no Hub id of the form org/name"
        )
    slug = source.replace("/", "--").lower()
    return models_dir / (slug if slug.endswith(f"-{weight}-ov") else f"{slug}-{weight}")


def is_to_be_fetched(model: ModelSettings, models_dir: Path) -> bool:
    """Whether it is named, and not on this machine. Raises UnknownModel."""
    if model.source == BUNDLED or is_folder(model.source):
        return False
    return not folder_of(model.source, model.weight, models_dir).is_dir()


class KnownModel(Protocol):
    """What names and sizes the engines of a model, on this machine or not."""

    @property
    def settings(self) -> ModelSettings: ...

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def weights_bytes(self) -> int: ...


@dataclass(frozen=True)
class ServedModel:
    """A checked model folder. name: what clients ask for. context_tokens: prompt and completion together."""

    settings: ModelSettings
    name: str
    folder: Path
    context_tokens: int
    created: int

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return (self.name, *self.settings.aliases)

    @cached_property
    def weights_bytes(self) -> int:
        return (self.folder / WEIGHTS_FILE).stat().st_size

    @cached_property
    def generation_defaults(self) -> dict[str, Any]:
        """Sampling that the model's makers recommend: generation_config.json, or nothing."""
        file = self.folder / "generation_config.json"
        return dict(json.loads(file.read_text())) if file.is_file() else {}

    @cached_property
    def fingerprint(self) -> str:
        """Names this exact model: weights, tokenizer, template, defaults. Part of every answer's cache key.

        Small files are read whole; of the weights, the size and 64 pieces of 1 MiB spread evenly, so that
        it takes milliseconds for gigabytes and another quantization or fine-tune still differs.
        """
        digest = blake2b(digest_size=16)
        for name in _MEANING:
            file = self.folder / name
            digest.update(name.encode() + (file.read_bytes() if file.is_file() else b""))
        size = self.weights_bytes
        digest.update(size.to_bytes(8, "little"))
        with (self.folder / WEIGHTS_FILE).open("rb") as weights:
            for piece in range(_SAMPLES):
                weights.seek(piece * max(0, size - _SAMPLE_BYTES) // max(1, _SAMPLES - 1))
                digest.update(weights.read(_SAMPLE_BYTES))
        return digest.hexdigest()


def open_model(settings: ModelSettings, models_dir: Path) -> ServedModel:
    """Checks the folder of the model that the settings name. Raises ModelFolderError in one line a user can act on."""
    source = settings.source
    folder = folder_of(source, settings.weight, models_dir)
    if not folder.is_dir():
        if source == BUNDLED or is_folder(source):
            raise ModelFolderError(f"model folder {folder} does not exist")
        raise ModelFolderError(f"{source} is not on this machine; fetch it with `dray models pull {source}`")
    needed = _NEEDED + (_NEEDED_TO_EMBED if settings.task == "embed" else ())
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ModelFolderError(f"model folder {folder} lacks {', '.join(missing)}; make one with `dray models export`")
    try:
        made_for = _made_for(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{folder / 'config.json'} is not a model configuration ({error!r})") from None
    if settings.context_tokens > made_for:
        raise ModelFolderError(
            f"model.context_tokens is {settings.context_tokens}, but {folder} was made for {made_for}"
        )
    return ServedModel(
        settings=settings,
        name=settings.name or known_as(source),
        folder=folder.resolve(),
        context_tokens=settings.context_tokens or made_for,
        created=int((folder / "openvino_model.xml").stat().st_mtime),
    )


def _made_for(folder: Path) -> int:
    """Tokens: of an embedding model, what its makers tested, where they say so; else what its positions allow."""
    tested = folder / "sentence_bert_config.json"
    noted = json.loads(tested.read_text()).get("max_seq_length") if tested.is_file() else None
    return int(noted or json.loads((folder / "config.json").read_text())["max_position_embeddings"])


def open_models(settings: Settings, models_dir: Path | None = None) -> list[ServedModel]:
    """Checks every model that is to be served. models_dir: this machine's, where the settings are another's.

    Raises ModelFolderError, also where two go by one name.
    """
    models = [open_model(one, models_dir or settings.models_dir) for one in settings.served]
    names = [name for model in models for name in model.names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ModelFolderError(f"two models go by the name {twice[0]!r}; give each a `name` of its own")
    return models


def private_memory(model: KnownModel) -> int:
    """Bytes that one replica needs for itself: its repacked weights, KV cache and runtime.

    Measured on the 1.5B shape at INT8: 1.06 times the weights and 0.1 GB private to a replica, beside the KV cache.
    """
    kv_cache_mb = model.settings.kv_cache_mb if model.settings.task == "generate" else 0
    return int(model.weights_bytes * 1.06) + (kv_cache_mb + 150) * 2**20


def memory_needed(model: KnownModel) -> int:
    """Bytes that all replicas need on one machine, where they share the mapped weights."""
    return model.weights_bytes + model.settings.replicas * private_memory(model)
