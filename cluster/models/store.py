"""The models that were fetched to this machine: listing, fetching and removing them."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.models import fetch as fetching
from cluster.models.buckets import CHECKSUMS, Bucket
from cluster.models.catalog import CATALOG, CatalogModel, EmbeddingUse, ready_made
from cluster.models.export import Compression, ExportError, check_export_extra, export_model, finish_int8
from cluster.models.fetch import DownloadProgress, FetchError, exclusive, fetch, matching_files
from cluster.models.folder import (
    REQUIRED_FILES,
    ModelFolderError,
    UnknownModel,
    gguf_folder,
    is_gguf,
    store_folder,
)
from cluster.models.hubs import Listing, ModelHub, NotOnHub, RemoteFile
from cluster.models.identity import MANIFEST, WEIGHTS_FILE, StoredWeights, read_json, stored_weights
from cluster.models.int8.convert import work_name
from cluster.models.paths import owned_child, writable_models
from cluster.models.tasks import POOLING_FILE, POOLING_FLAGS, PROMPTS_FILE, TESTED_FILE

_PARTIAL = ".partial"
_WEIGHTS_SUFFIX = ".weights"
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Installed:
    """A complete model in the store. bytes: on disk. manifest: where it was fetched from."""

    name: str
    folder: Path
    bytes: int
    manifest: dict[str, Any]


def installed(models_dir: Path) -> list[Installed]:
    """The complete models in the store, sorted by name."""
    return [_read_installed(folder) for folder in sorted(_entries(models_dir)) if (folder / WEIGHTS_FILE).is_file()]


def _read_installed(folder: Path) -> Installed:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    manifest = folder / MANIFEST
    return Installed(folder.name, folder, size, json.loads(manifest.read_text()) if manifest.is_file() else {})


def _entries(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from folder.iterdir()


def remove(source: str, weight: str, models_dir: Path) -> Path:
    """Deletes a fetched model and what an interrupted download left of it; returns the model's folder.

    source: the name that it was pulled by, or its folder's name. Only names that are installed count, so no name
    reaches anything else. Raises UnknownModel for any other name, UnsafeNameError where the entry is a symbolic link,
    FetchError while the model is being fetched, NotPrivate where another user may change the store, and
    ModelFolderError where something could not be deleted.
    """
    name = _installed_name(source, weight, models_dir)
    downloads = owned_child(writable_models(models_dir), _PARTIAL)
    folder = owned_child(models_dir, name)
    leftovers = [owned_child(downloads, name), owned_child(downloads, f"{name}{_WEIGHTS_SUFFIX}")]
    leftovers.append(owned_child(models_dir, work_name(name)))
    with exclusive(owned_child(downloads, f"{name}.lock")):
        for path in (folder, *leftovers):
            _delete(path)
    return folder


def _installed_name(source: str, weight: str, models_dir: Path) -> str:
    models = {path.name for path in _entries(models_dir) if path.is_symlink() or (path / WEIGHTS_FILE).is_file()}
    downloads = {path.name.removesuffix(_WEIGHTS_SUFFIX) for path in _entries(models_dir / _PARTIAL) if path.is_dir()}
    candidates = [source]
    with suppress(UnknownModel):  # raised for a folder's name
        candidates.append(
            gguf_folder(Path(source), models_dir).name
            if is_gguf(source)
            else store_folder(source, weight, models_dir).name
        )
    for name in candidates:
        if name in models | downloads:
            return name
    raise UnknownModel(
        f"{source!r} is not on this machine: {models_dir} holds no model of this name, and Dray deletes only models "
        "that it has fetched there"
    )


def _delete(folder: Path) -> None:
    if not folder.is_dir():
        return
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise ModelFolderError(
            f"could not delete {error.filename or folder}: {error.strerror}; what is left of {folder} is still there"
        ) from None


def obtain(
    source: str,
    compression: Compression,
    models_dir: Path,
    hub: ModelHub | Bucket,
    progress: DownloadProgress,
    on_stage: Callable[[str], None],
    *,
    revision: str | None = None,
    remote_code: bool = False,
    convert: bool = True,
    wait: bool = False,
) -> Path:
    """The folder of a named model, which is fetched if it is not here yet.

    Takes the ready-made OpenVINO model where the hub has one, and otherwise exports the original weights. hub: a bucket
    holds the model as it is to be served.
    remote_code: allow Python code that comes with the weights to run during the export. convert: make INT8 weights
    ready for arithmetic in INT8. wait: for another process that is fetching it, rather than refuse. Files that
    arrived are kept for the next attempt. Raises UnknownModel, UnsafeNameError, FetchError, ExportError, HubError, and
    NotPrivate where another user may change the store.
    """
    target = store_folder(source, compression.weight, models_dir)
    if target.is_dir():
        return target
    target = owned_child(writable_models(models_dir), target.name)
    partial = owned_child(models_dir, _PARTIAL)
    with exclusive(owned_child(partial, f"{target.name}.lock"), wait=wait):
        if target.is_dir():  # by now
            return target
        work = owned_child(partial, target.name)
        if isinstance(hub, Bucket):
            _fetch_from_bucket(hub, work, progress, on_stage)
            _finish(work, target, on_stage, convert=convert and compression.weight == "int8")
            return target
        if listing := _ready_made(source, compression, hub, revision, on_stage):
            on_stage(f"fetching {listing.repository}")
            files = matching_files(listing, fetching.OPENVINO_FILES)
            fetch(hub, listing, files, work, progress)
            _report_unverified(files, on_stage)
            _complete(work, source, {"source": listing.repository, "hub": hub.name, "revision": listing.revision})
            _finish(work, target, on_stage, convert=convert and compression.weight == "int8")
            return target
        weights_folder = owned_child(partial, f"{target.name}{_WEIGHTS_SUFFIX}")
        origin = _fetch_weights(source, weights_folder, hub, revision, progress, on_stage)
        on_stage(f"exporting {source} to {compression.weight}")
        export_model(
            weights_folder,
            target,
            compression,
            remote_code=remote_code,
            origin=origin,
            convert=convert,
            on_stage=on_stage,
        )
        _complete(target, source, {})
        _delete(weights_folder)
    return target


def _finish(work: Path, target: Path, on_stage: Callable[[str], None], *, convert: bool) -> None:
    """Makes a complete folder visible under its name, with its INT8 weights converted if they are to be."""
    if convert and stored_weights(work) is not StoredWeights.INT8_SYMMETRIC_SMOOTHED:
        finish_int8(work, target, on_stage)
    else:
        work.rename(target)


def _fetch_from_bucket(bucket: Bucket, work: Path, progress: DownloadProgress, on_stage: Callable[[str], None]) -> None:
    """Fetches a whole model folder; what is recorded about its weights stays with them."""
    on_stage(f"fetching {bucket.url}")
    listing = bucket.listing()
    files = matching_files(listing, fetching.OPENVINO_FILES)
    if absent := [name for name in REQUIRED_FILES if name not in {file.path for file in files}]:
        raise FetchError(f"{bucket.url} lacks {', '.join(absent)}; upload a folder that `dray models pull` has made")
    fetch(bucket, listing, files, work, progress)
    _report_unverified(files, on_stage, f"{bucket.url} has no {CHECKSUMS} that lists them")
    recorded = read_json(work / MANIFEST) if (work / MANIFEST).is_file() else {}
    (work / MANIFEST).write_text(json.dumps(recorded | {"source": str(bucket.url)}, indent=2) + "\n")


def _ready_made(
    source: str, compression: Compression, hub: ModelHub, revision: str | None, on_stage: Callable[[str], None]
) -> Listing | None:
    """The hub's OpenVINO model for a source: the named repository itself, or Intel's in the same weight format."""
    entry = CATALOG.get(source)
    candidates = [] if entry else [source]
    if compression.plain:
        original = entry.repositories[hub.name] if entry else source
        candidates.append(ready_made(original, compression.weight))
    for repository in candidates:
        on_stage(f"looking for {repository} at {hub.endpoint}")
        try:
            listing = hub.listing(repository, revision)
        except NotOnHub:
            if repository == source and source.startswith("OpenVINO/"):
                raise
            continue
        if any(file.path == WEIGHTS_FILE for file in listing.files):
            return listing
    return None


def _fetch_weights(
    source: str,
    folder: Path,
    hub: ModelHub,
    revision: str | None,
    progress: DownloadProgress,
    on_stage: Callable[[str], None],
) -> dict[str, str]:
    """Fetches a source's original weights into the folder; returns where they came from, for the manifest."""
    entry = CATALOG.get(source)
    try:
        check_export_extra()
    except ExportError as error:
        raise ExportError(f"{hub.endpoint} has no ready-made OpenVINO model of {source}, and {error}") from None
    listing = hub.listing(entry.repositories[hub.name] if entry else source, revision)
    patterns = fetching.WEIGHT_FILES + (fetching.REMOTE_CODE if entry is None or entry.remote_code else ())
    files = matching_files(listing, patterns)
    if not any(file.path.endswith(".safetensors") for file in files):
        raise FetchError(f"{listing.repository} holds no .safetensors weights in its top folder")
    on_stage(f"fetching {listing.repository}")
    fetch(hub, listing, files, folder, progress)
    _report_unverified(files, on_stage)
    return {"source": listing.repository, "hub": hub.name, "revision": listing.revision}


def _report_unverified(
    files: Sequence[RemoteFile], on_stage: Callable[[str], None], reason: str = "the hub lists no checksum"
) -> None:
    """Says which files are listed without a checksum: only their size was compared."""
    if unverified := [file.path for file in files if not (file.sha256 or file.blob_id)]:
        shown = ", ".join(unverified[:_MAX_SHOWN]) + (" and others" if len(unverified) > _MAX_SHOWN else "")
        on_stage(f"not verified, as {reason}: {shown}")


def _complete(folder: Path, source: str, origin: dict[str, str]) -> None:
    """Adds what the repository lacks: the manifest, and the sampling or the embedding that the authors recommend."""
    entry = CATALOG.get(source)
    if entry is not None and entry.sampling:
        _complete_sampling(folder / "generation_config.json", entry)
    if entry is not None and entry.embedding is not None:
        _complete_embedding(folder, entry, entry.embedding)
    if origin:
        (folder / MANIFEST).write_text(json.dumps(origin, indent=2) + "\n")


def _complete_sampling(file: Path, entry: CatalogModel) -> None:
    """Adds the sampling that the authors recommend where their file has none: some say it on their page only."""
    stored = read_json(file) if file.is_file() else {}
    if "do_sample" in stored and not stored["do_sample"]:
        return  # greedy on purpose
    completed = {"do_sample": True, **_sampling_config(entry)} | stored
    if completed != stored:
        file.write_text(json.dumps(completed, indent=2) + "\n")


def _complete_embedding(folder: Path, entry: CatalogModel, use: EmbeddingUse) -> None:
    """Writes what sentence-transformers would read, where the repository does not say it."""
    flags = {flag: kind == use.pooling for flag, kind in POOLING_FLAGS.items()}
    prompts = {name: text for name, text in (("query", use.query), ("passage", use.passage)) if text}
    for name, values in (
        (POOLING_FILE, {"word_embedding_dimension": use.dimensions, **flags}),
        (TESTED_FILE, {"max_seq_length": entry.context_tokens}),
    ):
        if not (folder / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    file = folder / PROMPTS_FILE
    described = read_json(file) if file.is_file() else {}
    if prompts and not any(described.get("prompts", {}).values()):
        file.write_text(json.dumps(described | {"prompts": prompts}, indent=2, ensure_ascii=False) + "\n")


def _sampling_config(entry: CatalogModel) -> dict[str, float | int]:
    return {name: int(value) if name == "top_k" else value for name, value in entry.sampling.items()}
