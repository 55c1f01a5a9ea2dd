"""Fetches models with progress bars; `dray up` and `dray deploy` begin with those that are missing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cluster.commands.console import err, fail
from cluster.models import store
from cluster.models.bucket_url import BucketUrl, is_bucket
from cluster.models.buckets import Bucket
from cluster.models.export import Compression, ExportError
from cluster.models.fetch import FetchError
from cluster.models.folder import ModelFolderError, is_gguf, is_to_be_fetched, store_folder
from cluster.models.gguf.install import install_gguf
from cluster.models.hubs import HubError, RemoteFile, open_hub
from cluster.models.int8.convert import ConversionError
from cluster.models.int8.messages import Step
from cluster.models.paths import UnsafeNameError
from cluster.settings import Settings


class ProgressBars:
    """Shows a download: a bar for each file, and one for the total."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._files: dict[str, TaskID] = {}
        self._total = progress.add_task("total", start=False, visible=False)

    def begin(self, files: Sequence[RemoteFile]) -> None:
        self._progress.update(self._total, total=sum(file.size for file in files), visible=True)
        self._progress.start_task(self._total)
        for file in sorted(files, key=lambda file: -file.size):
            self._files[file.path] = self._progress.add_task(escape(file.path), total=file.size)

    def advance(self, path: str, size: int) -> None:
        self._progress.advance(self._files[path], size)
        self._progress.advance(self._total, size)

    def check(self, path: str) -> None:
        self._progress.update(self._files[path], description=f"{escape(path)} (checking)")


@contextmanager
def _progress_bars() -> Iterator[ProgressBars]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
        yield ProgressBars(progress)


@contextmanager
def conversion_bar() -> Iterator[Callable[[Step], None]]:
    """Shows a conversion: a bar over all its steps, with the name of the present one."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("reading the model", total=None)

        def on_step(step: Step) -> None:
            progress.update(task, description=step.name, completed=step.done, total=step.total)

        yield on_step


@contextmanager
def failures() -> Iterator[None]:
    """Ends the command with one line where a model cannot be fetched, exported, converted, read or removed."""
    try:
        yield
    except (HubError, FetchError, ExportError, ModelFolderError, ConversionError, UnsafeNameError, OSError) as error:
        raise fail(str(error)) from None
    except KeyboardInterrupt:
        raise fail("stopped; files that arrived are kept, and the same command continues from there") from None


def obtain_all(settings: Settings) -> None:
    """Fetches every served model that is given by name and missing here, and converts GGUF files.

    Ends the command if one cannot be had.
    """
    for model in settings.served:
        with failures():
            # A GGUF file that is converted already may have changed since.
            if is_gguf(model.source) or is_to_be_fetched(model, settings.models_dir):
                obtain(settings, model.source, Compression(model.weight))


def obtain(
    settings: Settings,
    source: str,
    compression: Compression,
    *,
    revision: str | None = None,
    remote_code: bool = False,
    convert: bool = True,
    wait: bool = False,
) -> Path:
    def on_stage(stage: str) -> None:
        err.print(escape(stage), highlight=False, style="dim")

    if is_gguf(source):
        return install_gguf(Path(source).expanduser(), settings.models_dir, on_stage)
    # Before anything is opened: an address that no folder can have is refused in one line.
    store_folder(source, compression.weight, settings.models_dir)
    hub = Bucket(BucketUrl.parse(source)) if is_bucket(source) else open_hub(settings.hub)
    with _progress_bars() as bars:
        return store.obtain(
            source,
            compression,
            settings.models_dir,
            hub,
            bars,
            on_stage,
            revision=revision,
            remote_code=remote_code,
            convert=convert,
            wait=wait,
        )
