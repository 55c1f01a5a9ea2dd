"""Which exact model a folder holds: its record, how its weights are stored, and its fingerprint."""

import json
from collections.abc import Iterator
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

GRAPH_FILE = "openvino_model.xml"
WEIGHTS_FILE = "openvino_model.bin"
MANIFEST = "dray-model.json"
_FINGERPRINTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_SAMPLE_BYTES = 1 << 20
_SAMPLES = 64
_MAX_JSON_BYTES = 1 << 20
"""Of the JSON files that are read here; those of real models have a few kilobytes."""


class StoredWeights(StrEnum):
    """How a folder stores its weights, as far as it decides in which arithmetic a processor can use them."""

    INT8_ASYMMETRIC = "int8-asymmetric"
    INT8_SYMMETRIC_SMOOTHED = "int8-symmetric-smoothed"


class Recipe(msgspec.Struct, frozen=True):
    """What a conversion depends on, beside the processor's rounding.

    source: fingerprint of the model that was converted. calibration: digest of the text it was smoothed on.
    """

    converter: int
    source: str
    alpha: float
    calibration: str


class Conversion(msgspec.Struct, frozen=True):
    """A conversion in the folder's record.

    written: digest of the graph and the weights that it wrote. tokens: of the text. matrices: how many were rounded.
    smoothed: how many of their inputs were smoothed.
    """

    recipe: Recipe
    written: str
    tokens: int
    matrices: int
    smoothed: int


class _Record(msgspec.Struct, frozen=True):
    """The fields of `dray-model.json` that are read back; it has more."""

    weights: StoredWeights = StoredWeights.INT8_ASYMMETRIC
    conversion: Conversion | None = None


def stored_weights(folder: Path) -> StoredWeights:
    """How the weights are stored, by the folder's record. Without one they count as asymmetric."""
    return _record(folder).weights


def fingerprint(folder: Path) -> str:
    """Identifies this exact model: weights, tokenizer, template, defaults.

    Small files are hashed whole. Of the weights, only the size and 64 evenly spaced samples of 1 MiB are hashed: that
    takes milliseconds for gigabytes and still tells quantizations and fine-tunes apart.

    Converted weights are the same model wherever they were converted, although each processor rounds the text's
    activations in its own way. So while they are as they were written, the recipe stands for them.
    """
    conversion = _record(folder).conversion
    is_as_written = conversion is not None and conversion.written == graph_digest(folder)
    digest = blake2b(digest_size=16)
    if conversion is not None and is_as_written:
        digest.update(msgspec.json.encode(conversion.recipe))
    else:
        digest.update(GRAPH_FILE.encode() + (folder / GRAPH_FILE).read_bytes())
    for name in _FINGERPRINTED:
        file = folder / name
        digest.update(name.encode() + (file.read_bytes() if file.is_file() else b""))
    for file in (folder / "special_tokens_map.json", *sorted(folder.glob("additional_chat_templates/*.jinja"))):
        # Few folders have them; those without keep their fingerprints.
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    for sample in () if is_as_written else _samples(folder / WEIGHTS_FILE):
        digest.update(sample)
    return digest.hexdigest()


def graph_digest(folder: Path) -> str:
    """Of the graph and, by samples, of its weights."""
    digest = blake2b((folder / GRAPH_FILE).read_bytes(), digest_size=16)
    for sample in _samples(folder / WEIGHTS_FILE):
        digest.update(sample)
    return digest.hexdigest()


def weights_digest(folder: Path) -> str:
    """BLAKE2b of a model folder's weights, for its manifest."""
    digest = blake2b(digest_size=16)
    with (folder / WEIGHTS_FILE).open("rb") as weights:
        while chunk := weights.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def sampled_digest(file: Path) -> str:
    """Tells large files apart in milliseconds, as `fingerprint` does."""
    digest = blake2b(digest_size=16)
    for sample in _samples(file):
        digest.update(sample)
    return digest.hexdigest()


def _samples(file: Path) -> Iterator[bytes]:
    """A file's size, and 64 evenly spaced samples of 1 MiB."""
    size = file.stat().st_size
    yield size.to_bytes(8, "little")
    with file.open("rb") as content:
        for sample in range(_SAMPLES):
            content.seek(sample * max(0, size - _SAMPLE_BYTES) // max(1, _SAMPLES - 1))
            yield content.read(_SAMPLE_BYTES)


def _record(folder: Path) -> _Record:
    """The folder's record; an empty one where there is none, or another program's."""
    try:
        return msgspec.convert(read_json(folder / MANIFEST), _Record)
    except (OSError, ValueError, RecursionError, msgspec.ValidationError):
        return _Record()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a model's JSON file. Raises ValueError, RecursionError."""
    with file.open("rb") as content:
        text = content.read(_MAX_JSON_BYTES + 1)
    if len(text) > _MAX_JSON_BYTES:
        raise ValueError(f"{file.name} has more than {_MAX_JSON_BYTES} bytes")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return value
