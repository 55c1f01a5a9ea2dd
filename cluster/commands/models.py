"""`dray models`: the catalog, and the models on this machine."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands import model_folders
from cluster.commands.console import (
    AsJson,
    Config,
    catalog_names,
    fail,
    hub_names,
    load_settings,
    out,
    print_done,
    print_json,
)
from cluster.commands.downloads import failures, obtain
from cluster.commands.model_folders import GroupSize, KeepWeights, Ratio, RemoteCode, Weight, served_by
from cluster.kubernetes.sizes import ModelInCluster
from cluster.launch.state import read_record
from cluster.models import store
from cluster.models.catalog import CATALOG, CatalogModel
from cluster.models.export import Compression
from cluster.models.fetch import FetchError
from cluster.models.folder import is_folder, is_gguf, memory_needed
from cluster.settings import BUNDLED, ModelSettings
from cluster.tables import DataTable
from cluster.units import format_bytes

app = typer.Typer(
    help="Manage models: the catalog, and the models on this machine.",
    no_args_is_help=True,
    epilog="Example: dray models pull qwen3-0.6b",
)

From = Annotated[
    str | None,
    typer.Option("--source", help="Hub to fetch from: huggingface or modelscope.", autocompletion=hub_names),
]
CatalogName = Annotated[str, typer.Argument(help="Name in the catalog.", autocompletion=catalog_names)]


@app.command("list", epilog="Example: dray models list --json")
def list_models(as_json: AsJson = False, config: Config = None) -> None:
    """List the catalog, the models on this machine, and the models served now."""
    settings = load_settings(config).settings
    installed = store.installed(settings.models_dir)
    record = read_record(settings.state_dir)
    served = record.models if record else []
    if as_json:
        print_json(
            {
                "catalog": [asdict(entry) for entry in CATALOG.values()],
                "installed": [
                    {
                        "name": model.name,
                        "folder": str(model.folder),
                        "bytes": model.bytes,
                        "manifest": model.manifest,
                    }
                    for model in installed
                ],
                "served": served,
            }
        )
        return
    out.print(catalog_table(CATALOG.values()))
    out.print(installed_table(settings.models_dir, installed))
    out.print(f"Served now: {', '.join(served) if served else 'none'}", highlight=False)


def catalog_table(entries: Iterable[CatalogModel]) -> DataTable:
    """The models that have a short name."""
    figures = ("parameters", "int8", "context")
    heads = ("name", "task", *figures, "licence", "thinks")
    drop = ("thinks", "licence", "parameters", "context", "task")
    table = DataTable(*heads, title="Catalog", right=figures, sentences=["licence"], drop=drop)
    for entry in entries:
        table.add_row(
            entry.name,
            entry.task,
            f"{entry.parameters / 1e9:.2f} B",
            format_bytes(entry.disk_bytes("int8")),
            str(entry.context_tokens),
            entry.licence,
            "no" if entry.thinking == "none" else "yes",
        )
    return table


def installed_table(folder: Path, models: Iterable[store.Installed]) -> DataTable:
    """The models in a folder."""
    table = DataTable("model", "size", "source", title=f"In {folder}", right=["size"], drop=["source"])
    for model in models:
        table.add_row(model.name, format_bytes(model.bytes), str(model.manifest.get("source", "")))
    return table


@app.command(epilog="Example: dray models show deepseek-r1-distill-qwen-1.5b")
def show(name: CatalogName, as_json: AsJson = False) -> None:
    """Show a model of the catalog."""
    entry = CATALOG.get(name)
    if entry is None:
        raise fail(f"{name} is not in the catalog (`dray models list`); any Hub id or folder can be served too")
    if as_json:
        print_json(asdict(entry))
        return
    out.print(entry_table(entry))


def entry_table(entry: CatalogModel) -> DataTable:
    """A model of the catalog, a property a line."""
    table = DataTable("", "value", sentences=["value"], header=False)
    for label, value in (
        ("weights", ", ".join(f"{hub}: {repository}" for hub, repository in entry.repositories.items())),
        ("ready-made", ", ".join(entry.ready_made("huggingface", weight) for weight in ("int8", "int4"))),
        ("licence", entry.licence),
        ("parameters", f"{entry.parameters / 1e9:.2f} B ({entry.architecture})"),
        (
            "on disk",
            ", ".join(f"{weight} {format_bytes(entry.disk_bytes(weight))}" for weight in ("int4", "int8", "fp16")),
        ),
        ("memory", f"about {format_bytes(_memory(entry))} for one replica at int8"),
        ("context", f"{entry.context_tokens} tokens"),
        ("task", entry.task),
        *_usage(entry),
        ("advice", entry.advice or "none"),
    ):
        table.add_row(label, value)
    return table


def _memory(entry: CatalogModel) -> int:
    return memory_needed(ModelInCluster(ModelSettings(source=entry.name, task=entry.task)))


def _usage(entry: CatalogModel) -> list[tuple[str, str]]:
    """How the makers use the model, by its task."""
    if entry.task == "generate":
        sampling = ", ".join(f"{key} {value:g}" for key, value in entry.sampling.items()) or "greedy"
        return [("thinking", entry.thinking), ("tool calls", entry.tools), ("sampling", sampling)]
    if (use := entry.embedding) is None:
        return []
    shorter = "may be shortened (dimensions)" if use.shortened else "of one length"
    return [
        ("vectors", f"{use.dimensions} dimensions, {shorter}; pooling {use.pooling}"),
        ("before a query", use.query or "nothing"),
        ("before a passage", use.passage or "nothing"),
    ]


@app.command(epilog="Example: dray models pull deepseek-r1-distill-qwen-1.5b --source modelscope")
def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="Catalog name, Hub id (org/name), folder in a bucket (s3://bucket/folder), or GGUF file.",
            autocompletion=catalog_names,
        ),
    ],
    weight: Weight = None,
    source: From = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    group_size: GroupSize = None,
    ratio: Ratio = None,
    trust_remote_code: RemoteCode = False,
    keep_weights: KeepWeights = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait while another process fetches the same model.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Fetch a model: the ready-made OpenVINO model if the hub has one, else the original weights, then export them.

    INT8 weights are made symmetric and smoothed, so that processors can compute in INT8. A GGUF file is converted to
    OpenVINO.
    """
    settings = load_settings(config, model__weight=weight, hub=source).settings
    with failures():
        if name == BUNDLED or (is_folder(name) and not is_gguf(name)):
            raise FetchError(f"{name} is already on this machine")
        compression = Compression(settings.model.weight, group_size, ratio)
        folder = obtain(
            settings,
            name,
            compression,
            revision=revision,
            remote_code=trust_remote_code,
            convert=not keep_weights,
            wait=wait,
        )
    print_done({"folder": str(folder)}, f"{folder} is ready: {served_by(name, folder)}", as_json)


@app.command(epilog="Example: dray models remove deepseek-r1-distill-qwen-1.5b")
def remove(
    name: Annotated[
        str, typer.Argument(help="The name it was pulled by, or its folder's name.", autocompletion=catalog_names)
    ],
    weight: Weight = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Delete a fetched model, and what an interrupted download left of it."""
    settings = load_settings(config, model__weight=weight).settings
    with failures():
        folder = store.remove(name, settings.model.weight, settings.models_dir)
    print_done({"folder": str(folder)}, f"removed {folder}", as_json)


app.command(epilog="Example: dray models export ./weights ./weights-int8 --weight int8")(model_folders.export)
app.command(epilog="Example: dray models convert deepseek-r1-distill-qwen-1.5b")(model_folders.convert)
app.command(epilog="Example: dray models check deepseek-r1-distill-qwen-1.5b")(model_folders.check)
app.command(epilog="Example: dray models random ./random-int8 --like deepseek-r1-distill-qwen-1.5b")(
    model_folders.random
)
app.command(epilog="Example: dray models compare ./r1-fp16 ./r1-int8 --questions questions.jsonl")(
    model_folders.compare
)
