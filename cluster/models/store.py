"""The models that were fetched to this machine, and how one gets here."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.models import fetch as fetching
from cluster.models.catalog import CATALOG, CatalogModel, ready_made
from cluster.models.export import Compression, ExportError, check_export_extra, export_model
from cluster.models.fetch import DownloadProgress, FetchError, exclusive, fetch, matching_files
from cluster.models.folder import MANIFEST, WEIGHTS_FILE, UnknownModel, folder_of
from cluster.models.hubs import Listing, ModelHub, NotOnHub

_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Installed:
    """A model folder in the store. manifest: where it came from."""

    name: str
    folder: Path
    bytes: int
    manifest: dict[str, Any]


def installed(models_dir: Path) -> list[Installed]:
    """The whole models in the store, by name."""
    found = []
    for folder in sorted(models_dir.glob("*")) if models_dir.is_dir() else ():
        if (folder / WEIGHTS_FILE).is_file():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            manifest = folder / MANIFEST
            found.append(
                Installed(folder.name, folder, size, json.loads(manifest.read_text()) if manifest.is_file() else {})
            )
    return found


def remove(source: str, weight: str, models_dir: Path) -> Path:
    """Deletes a model of the store, by the name it was pulled under or its folder's name, and what a broken-off
    download left of it. Gives the folder. Raises UnknownModel."""
    by_folder = models_dir / source
    folder = by_folder if "/" not in source and by_folder.is_dir() else folder_of(source, weight, models_dir)
    if folder.parent != models_dir:
        raise UnknownModel(f"{folder} is not in {models_dir}; Dray deletes only what it has fetched")
    partial = [models_dir / _PARTIAL / name for name in (folder.name, f"{folder.name}.weights")]
    if not any(path.is_dir() for path in (folder, *partial)):
        raise UnknownModel(f"{source} is not on this machine")
    for path in (folder, *partial):
        shutil.rmtree(path, ignore_errors=True)
    return folder


def obtain(
    source: str,
    compression: Compression,
    models_dir: Path,
    hub: ModelHub,
    watcher: DownloadProgress,
    on_stage: Callable[[str], None],
    *,
    revision: str | None = None,
    remote_code: bool = False,
) -> Path:
    """The folder of a named model, fetched if it is not here yet: the ready-made OpenVINO model where the hub has
    one, else the weights, which are then exported.

    remote_code: whether Python code that comes with the weights may run during the export.
    Raises UnknownModel, FetchError, ExportError, HubError; what has come is kept for the next try.
    """
    target = folder_of(source, compression.weight, models_dir)
    if target.is_dir():
        return target
    partial = models_dir / _PARTIAL
    with exclusive(partial / f"{target.name}.lock"):
        if listing := _ready_made(source, compression, hub, revision, on_stage):
            work = partial / target.name
            on_stage(f"fetching {listing.repository}")
            fetch(hub, listing, matching_files(listing, fetching.OPENVINO_FILES), work, watcher)
            _complete(work, source, {"source": listing.repository, "hub": hub.name, "revision": listing.revision})
            work.rename(target)
            return target
        weights, origin = _weights(source, partial / f"{target.name}.weights", hub, revision, watcher, on_stage)
        on_stage(f"exporting {source} to {compression.weight}")
        export_model(weights, target, compression, remote_code=remote_code, origin=origin)
        _complete(target, source, {})
        shutil.rmtree(weights)
    return target


def _ready_made(
    source: str, compression: Compression, hub: ModelHub, revision: str | None, on_stage: Callable[[str], None]
) -> Listing | None:
    """The hub's OpenVINO model for a source: the named repository itself, or Intel's at the weight format."""
    entry = CATALOG.get(source)
    candidates = [] if entry else [source]
    if compression.plain:
        own = entry.repositories[hub.name] if entry else source
        candidates.append(ready_made(own, compression.weight))
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


def _weights(
    source: str,
    folder: Path,
    hub: ModelHub,
    revision: str | None,
    watcher: DownloadProgress,
    on_stage: Callable[[str], None],
) -> tuple[Path, dict[str, str]]:
    """Fetches a source's original weights; gives their folder and where they came from."""
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
    fetch(hub, listing, files, folder, watcher)
    return folder, {"source": listing.repository, "hub": hub.name, "revision": listing.revision}


def _complete(folder: Path, source: str, origin: dict[str, str]) -> None:
    """Adds what the repository leaves out: the manifest, and its makers' recommended sampling."""
    entry = CATALOG.get(source)
    defaults = folder / "generation_config.json"
    if entry is not None and entry.sampling and not defaults.is_file():
        defaults.write_text(json.dumps({"do_sample": True, **_as_config(entry)}, indent=2) + "\n")
    if origin:
        (folder / MANIFEST).write_text(json.dumps(origin, indent=2) + "\n")


def _as_config(entry: CatalogModel) -> dict[str, float | int]:
    return {name: int(value) if name == "top_k" else value for name, value in entry.sampling.items()}
