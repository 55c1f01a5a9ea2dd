"""The `dray models` commands, and the fetching that `dray up` does first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
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
from rich.table import Table

from cluster.commands.console import (
    AsJson,
    Config,
    catalog_names,
    err,
    fail,
    hubs,
    out,
    settled,
    weights,
)
from cluster.launch.state import read_record
from cluster.models import store
from cluster.models.catalog import CATALOG
from cluster.models.export import Compression, ExportError, export_model
from cluster.models.fetch import FetchError
from cluster.models.folder import ModelFolderError, folder_of, is_folder, is_to_be_fetched
from cluster.models.hubs import HubError, RemoteFile, open_hub
from cluster.models.paths import UnsafeNameError
from cluster.settings import BUNDLED, Settings

app = typer.Typer(
    help="Models: the catalog, what is on this machine, and how more come here.",
    no_args_is_help=True,
    epilog="Example: dray models pull qwen3-0.6b",
)

Weight = Annotated[str | None, typer.Option(help="Weight format: int8, int4 or fp16.", autocompletion=weights)]
From = Annotated[
    str | None,
    typer.Option("--source", help="Where to fetch from: huggingface or modelscope.", autocompletion=hubs),
]
CatalogName = Annotated[str, typer.Argument(help="A name of the catalog.", autocompletion=catalog_names)]
GroupSize = Annotated[int | None, typer.Option(help="int4: weights that share a scale; -1 is a whole row.")]
Ratio = Annotated[float | None, typer.Option(help="int4: share of the layers that is int4; the rest is int8.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the export run Python code that comes with the weights.")
]


class Bars:
    """Progress of a download: a bar for each file, and one for all."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._files: dict[str, TaskID] = {}
        self._total = progress.add_task("in all", start=False, visible=False)

    def begin(self, files: Sequence[RemoteFile]) -> None:
        self._progress.update(self._total, total=sum(file.size for file in files), visible=True)
        self._progress.start_task(self._total)
        for file in sorted(files, key=lambda one: -one.size):
            self._files[file.path] = self._progress.add_task(escape(file.path), total=file.size)

    def advance(self, path: str, size: int) -> None:
        self._progress.advance(self._files[path], size)
        self._progress.advance(self._total, size)

    def check(self, path: str) -> None:
        self._progress.update(self._files[path], description=f"{escape(path)} (checking)")


@contextmanager
def _bars() -> Iterator[Bars]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
        yield Bars(progress)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (HubError, FetchError, ExportError, ModelFolderError, UnsafeNameError, OSError) as error:
        raise fail(str(error)) from None
    except KeyboardInterrupt:
        raise fail("stopped; what has come is kept, and the same command goes on from there") from None


def obtain_all(settings: Settings) -> None:
    """Fetches every model that is to be served and is named, but not here. Ends the command where one cannot be had."""
    for model in settings.served:
        with _failures():
            if is_to_be_fetched(model, settings.models_dir):
                _obtain(settings, model.source, Compression(model.weight))


def _obtain(
    settings: Settings,
    source: str,
    compression: Compression,
    *,
    revision: str | None = None,
    remote_code: bool = False,
) -> Path:
    with _bars() as bars:
        return store.obtain(
            source,
            compression,
            settings.models_dir,
            open_hub(settings.hub),
            bars,
            lambda stage: err.print(escape(stage), highlight=False, style="dim"),
            revision=revision,
            remote_code=remote_code,
        )


@app.command("list", epilog="Example: dray models list --json")
def list_models(as_json: AsJson = False, config: Config = None) -> None:
    """Show the catalog, the models on this machine, and which of them are served now."""
    settings = settled(config).settings
    here = store.installed(settings.models_dir)
    record = read_record(settings.state_dir)
    served = record.models if record else []
    if as_json:
        out.print_json(
            data={
                "catalog": [asdict(entry) for entry in CATALOG.values()],
                "installed": [
                    {"name": one.name, "folder": str(one.folder), "bytes": one.bytes, "manifest": one.manifest}
                    for one in here
                ],
                "served": served,
            }
        )
        return
    catalog = Table("name", "parameters", "int8", "context", "licence", "thinks", title="catalog", title_justify="left")
    for entry in CATALOG.values():
        catalog.add_row(
            entry.name,
            f"{entry.parameters / 1e9:.2f} B",
            _gb(entry.disk_bytes("int8")),
            str(entry.context_tokens),
            entry.licence,
            "no" if entry.thinking == "none" else "yes",
        )
    out.print(catalog)
    disk = Table("model", "size", "from", title=f"in {settings.models_dir}", title_justify="left")
    for one in here:
        disk.add_row(one.name, _gb(one.bytes), str(one.manifest.get("source", "")))
    out.print(disk)
    out.print(f"served now: {', '.join(served) if served else 'nothing'}", highlight=False)


@app.command(epilog="Example: dray models show deepseek-r1-distill-qwen-1.5b")
def show(name: CatalogName, as_json: AsJson = False) -> None:
    """Show what the catalog knows of a model."""
    entry = CATALOG.get(name)
    if entry is None:
        raise fail(f"{name} is not in the catalog; `dray models list` shows it. Any Hub id or folder works too.")
    if as_json:
        out.print_json(data=asdict(entry))
        return
    table = Table(show_header=False)
    for label, value in (
        ("weights", ", ".join(f"{hub}: {repository}" for hub, repository in entry.repositories.items())),
        ("ready made", ", ".join(entry.ready_made("huggingface", weight) for weight in ("int8", "int4"))),
        ("licence", entry.licence),
        ("parameters", f"{entry.parameters / 1e9:.2f} B ({entry.architecture})"),
        ("on disk", ", ".join(f"{weight} {_gb(entry.disk_bytes(weight))}" for weight in ("int4", "int8", "fp16"))),
        ("context", f"{entry.context_tokens} tokens"),
        ("thinking", entry.thinking),
        ("tool calls", entry.tools),
        ("sampling", ", ".join(f"{key} {value:g}" for key, value in entry.sampling.items()) or "greedy"),
        ("advice", entry.advice or "none"),
    ):
        table.add_row(label, escape(value))
    out.print(table)


@app.command(epilog="Example: dray models pull deepseek-r1-distill-qwen-1.5b --source modelscope")
def pull(
    name: Annotated[
        str, typer.Argument(help="A name of the catalog, or a Hub id (org/name).", autocompletion=catalog_names)
    ],
    weight: Weight = None,
    source: From = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    group_size: GroupSize = None,
    ratio: Ratio = None,
    trust_remote_code: RemoteCode = False,
    config: Config = None,
) -> None:
    """Fetch a model: the ready-made OpenVINO one where there is one, else the weights, which are then exported."""
    settings = settled(config, model__weight=weight, hub=source).settings
    with _failures():
        if name == BUNDLED or is_folder(name):
            raise FetchError(f"{name} is on this machine already")
        chosen = Compression(settings.model.weight, group_size, ratio)
        folder = _obtain(settings, name, chosen, revision=revision, remote_code=trust_remote_code)
    out.print(f"{folder} is ready: dray up --model {name}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: dray models export ./weights ./weights-int8 --weight int8")
def export(
    source: Annotated[Path, typer.Argument(help="Folder with weights in transformers' format.")],
    target: Annotated[Path, typer.Argument(help="New folder for the OpenVINO model.")],
    weight: Annotated[str, typer.Option(help="Weight format: int8, int4, fp16 or fp32.")] = "int8",
    group_size: GroupSize = None,
    ratio: Ratio = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Turn a transformers model folder into an OpenVINO one that Dray serves."""
    with _failures(), err.status(f"exporting {source} to {weight}"):
        export_model(source, target, Compression(weight, group_size, ratio), remote_code=trust_remote_code)
    out.print(f"{target} is ready: dray up --model {target}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: dray models remove deepseek-r1-distill-qwen-1.5b")
def remove(
    name: Annotated[
        str, typer.Argument(help="The name it was pulled by, or its folder's name.", autocompletion=catalog_names)
    ],
    weight: Weight = None,
    config: Config = None,
) -> None:
    """Delete a model that was fetched, and what a broken-off download left of it."""
    settings = settled(config, model__weight=weight).settings
    with _failures():
        out.print(f"removed {store.remove(name, settings.model.weight, settings.models_dir)}", soft_wrap=True)


@app.command(epilog="Example: dray models random ./random-int8 --like deepseek-r1-distill-qwen-1.5b")
def random(
    target: Annotated[Path, typer.Argument(help="New folder for the OpenVINO model.")],
    like: Annotated[str, typer.Option(help="The catalog's model whose shape it gets.", autocompletion=catalog_names)],
    weight: Annotated[str, typer.Option(help="Weight format: int8, int4, fp16 or fp32.")] = "int8",
) -> None:
    """Make a model of another's exact shape with random weights: its speed for load tests, and words of no meaning."""
    from cluster.models.shapes import make_random

    with _failures(), err.status(f"making and exporting a random model like {like}"):
        make_random(target, like, Compression(weight))
    out.print(f"{target} is ready: dray up --model {target}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: dray models compare ./r1-fp16 ./r1-int8 --questions questions.jsonl")
def compare(
    first: Annotated[str, typer.Argument(help="A model: folder, or name of one that is here.")],
    second: Annotated[str, typer.Argument(help="The other.")],
    questions: Annotated[Path, typer.Option(help='JSON Lines: {"question": "...", "answer": "..."}.')],
    text: Annotated[Path | None, typer.Option(help="Text file to measure perplexity on.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, thinking included.")] = 2048,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Ask two models the same, greedily: how many answers agree, how many are right, and how well each knows a text."""
    from cluster.models.compare import CompareError, compare, read_questions

    settings = settled(config).settings
    try:
        with _failures(), err.status(f"asking {first}, then {second}"):
            folders = [str(folder_of(one, settings.model.weight, settings.models_dir)) for one in (first, second)]
            seen = compare(folders, read_questions(questions), text.read_text() if text else "", max_tokens)
    except (CompareError, OSError) as error:
        raise fail(str(error)) from None
    if as_json:
        out.print_json(data=asdict(seen))
        return
    table = Table("", escape(first), escape(second))
    table.add_row("right answers", *(_share(value) for value in seen.accuracy))
    table.add_row("perplexity", *("-" if value is None else f"{value:.3f}" for value in seen.perplexity))
    out.print(table)
    out.print(
        f"{seen.questions} questions: {_share(seen.same_answer)} answered alike, "
        f"{_share(seen.same_thinking)} with the very same thinking",
        highlight=False,
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
