"""A model folder: whether it is complete, its name, how much memory it needs, and which exact model it holds."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
from tokenizers import Tokenizer

from cluster.models.bucket_url import BucketUrl, BucketUrlError, is_bucket
from cluster.models.catalog import CATALOG
from cluster.models.identity import (
    GRAPH_FILE,
    WEIGHTS_FILE,
    StoredWeights,
    fingerprint,
    read_json,
    stored_weights,
)
from cluster.models.paths import UnsafeNameError, child
from cluster.models.relevance import answer_tokens
from cluster.models.tasks import TESTED_FILE, WrongTask, check_output, trained_length, trained_task
from cluster.models.tokenizer_cost import check_cost
from cluster.settings import BUNDLED, ModelSettings, Settings

BUNDLED_FOLDER = Path(__file__).with_name("bundled")
BUNDLED_NAME = "dray-demo"
REQUIRED_FILES = (GRAPH_FILE, WEIGHTS_FILE, "config.json", "tokenizer.json", "tokenizer_config.json")


class ModelFolderError(Exception):
    """The folder cannot be served; the message says what is missing or broken."""


class UnknownModel(ModelFolderError):
    """The source is neither a folder, nor a catalog name, nor a Hub id, nor the address of a folder in a bucket."""


def is_gguf(source: str) -> bool:
    """Whether the source is a GGUF file: by its name, or any file whose path is given, as Ollama's have no suffix."""
    if is_bucket(source):
        return False
    if source.lower().endswith(".gguf"):
        return not Path(source).expanduser().is_dir()
    return source.startswith((".", "/", "~")) and Path(source).expanduser().is_file()


def is_folder(source: str) -> bool:
    """Whether the source is a path rather than a model's name."""
    if is_bucket(source):
        return False
    return source.startswith((".", "/", "~")) or Path(source).is_dir() or is_gguf(source)


def gguf_folder(file: Path, models_dir: Path) -> Path:
    """The folder in `models_dir` that a GGUF file is converted into; it need not exist."""
    return child(models_dir, f"{_gguf_name(file)}-gguf")


def _gguf_name(file: Path) -> str:
    return file.name.lower().removesuffix(".gguf")


def known_as(source: str) -> str:
    """The name under which a source is served unless the settings give another."""
    if source == BUNDLED:
        return BUNDLED_NAME
    if is_gguf(source):
        return _gguf_name(Path(source))
    if is_folder(source):
        return Path(source).expanduser().resolve().name.lower()
    return source.rstrip("/").rpartition("/")[2].lower()


def store_folder(source: str, weight: str, models_dir: Path) -> Path:
    """The folder in `models_dir` that a named model is fetched into; it need not exist.

    source: a catalog name, a Hub id (org/name) or a folder in a bucket. Raises UnknownModel for any other source.
    """
    if is_bucket(source):
        try:
            return child(models_dir, BucketUrl.parse(source).folder_name)
        except BucketUrlError as error:
            raise UnknownModel(str(error)) from None
    slug = source.replace("/", "--").lower()
    name = slug if slug.endswith(f"-{weight}-ov") else f"{slug}-{weight}"
    try:
        if source not in CATALOG:
            organization, repository = source.split("/")
            child(models_dir, organization)
            child(models_dir, repository)
        return child(models_dir, name)
    except (ValueError, UnsafeNameError):
        raise UnknownModel(
            f"{source!r} is no folder, not in the catalog (`dray models list`), no Hub id of the form org/name, "
            "and no folder in a bucket, as s3://bucket/folder"
        ) from None


def folder_of(source: str, weight: str, models_dir: Path) -> Path:
    """The folder of a source's model; it need not exist. Raises UnknownModel for a name that no model can have."""
    if source == BUNDLED:
        return BUNDLED_FOLDER
    if is_gguf(source):
        return gguf_folder(Path(source).expanduser(), models_dir)
    if is_folder(source):
        return Path(source).expanduser()
    return store_folder(source, weight, models_dir)


def is_to_be_fetched(model: ModelSettings, models_dir: Path) -> bool:
    """Whether the model is given by name, or as a GGUF file, and not in the store yet. Raises UnknownModel."""
    source = model.source
    if source == BUNDLED or (is_folder(source) and not is_gguf(source)):
        return False
    if folder_of(source, model.weight, models_dir).is_dir():
        return False
    if is_gguf(source) and not Path(source).expanduser().is_file():
        raise UnknownModel(f"the GGUF file {source} does not exist")
    return True


class KnownModel(Protocol):
    """What naming and sizing the engines of a model takes, whether the model is on this machine or not."""

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
    """A checked model folder.

    name: what clients ask for. context_tokens: maximum of prompt and completion together. created: Unix time.
    """

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
        """The sampling parameters that the model's authors recommend (generation_config.json); may be empty."""
        file = self.folder / "generation_config.json"
        return read_json(file) if file.is_file() else {}

    @cached_property
    def ranks_by_answer(self) -> bool:
        """Whether it is a causal language model that ranks documents: by its answer, yes or no."""
        config = read_json(self.folder / "config.json")
        return self.settings.task == "rerank" and trained_task(self.folder, config) == "generate"

    @cached_property
    def weights(self) -> StoredWeights:
        """How its weights are stored; those of unknown origin count as asymmetric."""
        return stored_weights(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies this exact model: weights, tokenizer, template, defaults. Part of every answer's cache key."""
        return fingerprint(self.folder)


def open_model(settings: ModelSettings, models_dir: Path) -> ServedModel:
    """Checks the folder of the model that the settings name. Raises ModelFolderError, in one line that says what to do.

    models_dir: where fetched models are kept on this machine.
    """
    source = settings.source
    folder = folder_of(source, settings.weight, models_dir)
    if not folder.is_dir():
        if is_gguf(source):
            raise ModelFolderError(f"{source} is not converted on this machine; do so with `dray models pull {source}`")
        if source == BUNDLED or is_folder(source):
            raise ModelFolderError(f"model folder {folder} does not exist")
        raise ModelFolderError(f"{source} is not on this machine; fetch it with `dray models pull {source}`")
    if missing := missing_files(folder):
        raise ModelFolderError(
            f"model folder {folder} lacks {', '.join(missing)}; create one with `dray models export`"
        )
    try:
        config = read_json(folder / "config.json")
        tested = folder / TESTED_FILE
        limit = trained_length(config, read_json(tested) if tested.is_file() else {})
        # A language model that ranks looks like any other, so its name decides where it is known.
        trained = CATALOG[source].task if source in CATALOG else trained_task(folder, config)
        _check_defaults(folder)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFolderError(f"{folder / 'config.json'} is not a model configuration ({error!r})") from None
    if settings.task == "generate" and trained in ("embed", "rerank"):
        raise ModelFolderError(
            f"the model in {folder} generates no text: it was trained to {trained}; set task: {trained} for it"
        )
    if settings.context_tokens > limit:
        raise ModelFolderError(
            f"model.context_tokens is {settings.context_tokens}, but the model in {folder} supports at most {limit}"
        )
    return ServedModel(
        settings=settings,
        name=settings.name or known_as(source),
        folder=folder.resolve(),
        context_tokens=settings.context_tokens or limit,
        created=int((folder / GRAPH_FILE).stat().st_mtime),
    )


def missing_files(folder: Path) -> list[str]:
    """The files that a model folder lacks; all of them where there is no folder yet."""
    return [name for name in REQUIRED_FILES if not (folder / name).is_file()]


def _check_defaults(folder: Path) -> None:
    if (file := folder / "generation_config.json").is_file():
        read_json(file)


def open_models(settings: Settings, models_dir: Path | None = None) -> list[ServedModel]:
    """Checks every model that the settings serve.

    models_dir: this machine's, where the settings come from another machine.
    Raises ModelFolderError, also where two models share a name.
    """
    models = [open_model(model, models_dir or settings.models_dir) for model in settings.served]
    names = [name for model in models for name in model.names]
    names += [name for model in settings.routed for name in model.given_names]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ModelFolderError(f"two models have the name {duplicates[0]!r}; give each its own `name`")
    return models


def check_readable(model: ServedModel) -> None:
    """Raises ModelFolderError where OpenVINO cannot read the model, it has another task than the settings say, or its
    tokenizer takes time without bound."""
    import openvino

    try:
        check_cost((model.folder / "tokenizer.json").read_bytes())
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise ModelFolderError(f"{model.folder / 'tokenizer.json'} cannot be used as a tokenizer: {error}") from None
    try:
        graph = openvino.Core().read_model(str(model.folder / GRAPH_FILE))
        task = "generate" if model.ranks_by_answer else model.settings.task
        check_output(model.name, task, graph.outputs[0].partial_shape)
        if model.ranks_by_answer:
            answer_tokens(Tokenizer.from_file(str(model.folder / "tokenizer.json")))
    except WrongTask as error:
        raise ModelFolderError(str(error)) from None
    except ValueError as error:
        raise ModelFolderError(f"{model.name}: {error}") from None
    except RuntimeError as error:
        raise ModelFolderError(
            f"model folder {model.folder} is broken: {str(error).strip().splitlines()[-1]}"
        ) from None


def private_memory(model: KnownModel) -> int:
    """Bytes that one replica needs for itself: its repacked weights, KV cache and runtime.

    Measured on the 1.5B shape at INT8: 1.06 times the weights and 0.1 GB private to a replica, beside the KV cache.
    """
    kv_cache_mb = model.settings.kv_cache_mb if model.settings.task == "generate" else 0
    return repacked_weights(model) + (kv_cache_mb + 150) * 2**20


def repacked_weights(model: KnownModel) -> int:
    """Bytes of the copy of the weights that an engine multiplies by."""
    return int(model.weights_bytes * 1.06)


def memory_needed(model: KnownModel) -> int:
    """Bytes that all replicas of a model need on one machine; they share the memory-mapped weights."""
    return model.weights_bytes + model.settings.replicas * private_memory(model)
