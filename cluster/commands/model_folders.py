"""`dray models export`, `convert`, `check`, `random` and `compare`: model folders on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape
from rich.text import Text

from cluster.commands.console import (
    AsJson,
    Config,
    catalog_names,
    err,
    fail,
    load_settings,
    out,
    print_done,
    print_json,
    weight_formats,
)
from cluster.commands.downloads import conversion_bar, failures
from cluster.launch.state import read_record
from cluster.models.catalog import CATALOG
from cluster.models.export import Compression, export_model
from cluster.models.folder import ModelFolderError, folder_of, open_model
from cluster.models.identity import StoredWeights, read_json
from cluster.models.int8.convert import ConversionError, convert_folder
from cluster.models.paths import child
from cluster.models.tasks import trained_task
from cluster.settings import BUNDLED
from cluster.tables import DataTable
from cluster.units import plural

if TYPE_CHECKING:
    from cluster.models.check import CheckedItem
    from cluster.models.text_loss import TextLoss

Weight = Annotated[str | None, typer.Option(help="Weight format: int8, int4 or fp16.", autocompletion=weight_formats)]
GroupSize = Annotated[int | None, typer.Option(help="int4: number of weights that share a scale; -1: a whole row.")]
Ratio = Annotated[float | None, typer.Option(help="int4: share of the layers in int4; the rest are int8.")]
RemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Allow Python code that comes with the weights to run during the export."),
]
KeepWeights = Annotated[
    bool, typer.Option("--keep-weights", help="Keep INT8 weights as they come, instead of converting them.")
]


def export(
    source: Annotated[Path, typer.Argument(help="Folder of a transformers model.")],
    target: Annotated[Path, typer.Argument(help="New folder for the OpenVINO model.")],
    weight: Annotated[str, typer.Option(help="Weight format: int8, int4, fp16 or fp32.")] = "int8",
    group_size: GroupSize = None,
    ratio: Ratio = None,
    trust_remote_code: RemoteCode = False,
    keep_weights: KeepWeights = False,
    as_json: AsJson = False,
) -> None:
    """Export a transformers model to OpenVINO, ready to serve.

    INT8 weights are made symmetric and smoothed, so that processors can compute in INT8.
    """
    with failures(), err.status(f"exporting {source} to {weight}") as status:
        export_model(
            source,
            target,
            Compression(weight, group_size, ratio),
            remote_code=trust_remote_code,
            convert=not keep_weights,
            on_stage=lambda stage: status.update(escape(stage)),
        )
    print_done({"folder": str(target)}, f"{target} is ready: {served_by(str(target), target)}", as_json)


def served_by(source: str, folder: Path) -> str:
    """How to serve a model, by what its folder says that it is for."""
    entry = CATALOG.get(source)
    task = entry.task if entry else trained_task(folder, read_json(folder / "config.json")) or "generate"
    if task == "generate":
        return f"dray up --model {source}"
    return f"add {{source: {source}, task: {task}}} to models in dray.yaml"


def convert(
    name: Annotated[
        str, typer.Argument(help="A model: a folder, or the name of a fetched model.", autocompletion=catalog_names)
    ],
    target: Annotated[
        str | None,
        typer.Option("--out", help="New folder, or a new name beside the old one. Without it the old one is replaced."),
    ] = None,
    weight: Weight = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Convert a model's weights to symmetric, smoothed INT8, so that processors can compute in INT8.

    The old model serves until the new one is complete.
    """
    settings = load_settings(config, model__weight=weight).settings
    with failures(), conversion_bar() as on_step:
        if name == BUNDLED:
            raise ConversionError("the bundled model belongs to the program and stays as it is")
        model = open_model(settings.model.model_copy(update={"source": name}), settings.models_dir)
        if model.weights == StoredWeights.INT8_SYMMETRIC_SMOOTHED:
            raise ConversionError(f"{model.folder} is converted already")
        parent = model.folder.parent
        new = model.folder if target is None else Path(target) if "/" in target else child(parent, target)
        conversion = convert_folder(model.folder, new, on_step)
    counts = {"matrices": conversion.matrices, "smoothed": conversion.smoothed, "tokens": conversion.tokens}
    sentence = (
        f"{new} is ready: {conversion.matrices} matrices of weights converted, {plural(conversion.smoothed, 'input')} "
        f"smoothed on {conversion.tokens} tokens of text"
    )
    print_done({"folder": str(new), **counts}, sentence, as_json)
    if target is None and (record := read_record(settings.state_dir)) and model.name in record.models:
        err.print("The running Dray has the old weights in memory; restart it: dray down, dray up", highlight=False)


def check(
    name: Annotated[
        str,
        typer.Argument(
            help="A model on this machine: its folder, or the name it was pulled by.", autocompletion=catalog_names
        ),
    ],
    weight: Weight = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show what Dray understood of a model: template, tokenizer, thinking, tools, stop tokens.

    Ends with exit code 1 if something is wrong with it.
    """
    from cluster.models.check import check_model

    settings = load_settings(config, model__weight=weight).settings
    with failures():
        folder = folder_of(name, settings.model.weight, settings.models_dir)
        if not folder.is_dir():
            raise ModelFolderError(f"{name} is not on this machine; fetch it with `dray models pull {name}`")
        with err.status(f"reading {name}"):
            items = check_model(folder)
    if as_json:
        print_json([msgspec.structs.asdict(item) for item in items])
    else:
        out.print(check_table(items))
    if any(item.problem for item in items):
        raise typer.Exit(1)


def check_table(items: Sequence["CheckedItem"]) -> DataTable:
    """What was understood of a model."""
    problems = "wrong, and what to do"
    table = DataTable("", "found", problems, sentences=["found", problems])
    for item in items:
        table.add_row(item.subject, item.found, Text(item.problem, "red"))
    return table


def random(
    target: Annotated[Path, typer.Argument(help="New folder for the OpenVINO model.")],
    like: Annotated[
        str, typer.Option(help="Catalog name of the model whose architecture it gets.", autocompletion=catalog_names)
    ],
    weight: Annotated[str, typer.Option(help="Weight format: int8, int4, fp16 or fp32.")] = "int8",
    as_json: AsJson = False,
) -> None:
    """Create a random-weight model with the same architecture, for load tests.

    Its speed is real; its text is gibberish.
    """
    from cluster.models.shapes import make_random

    with failures(), err.status(f"creating and exporting a random model like {like}"):
        make_random(target, like, Compression(weight))
    print_done({"folder": str(target)}, f"{target} is ready: dray up --model {target}", as_json)


def compare(
    first: Annotated[str, typer.Argument(help="A model: a folder, or the name of a fetched model. The reference.")],
    second: Annotated[str, typer.Argument(help="The model to compare it with.")],
    questions: Annotated[
        Path | None,
        typer.Option(help='JSON Lines: {"question": "...", "answer": "..."}. Optional.'),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text file to measure on, instead of Dray's own.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum length of an answer, thinking included.")] = 2048,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Measure what two models lose on a text by how this processor can multiply, and ask both the same questions.

    The reference is the first model in f32. Of the answers: how many agree, and how many are correct.
    """
    from cluster.models.compare import CompareError, compare, read_questions
    from cluster.models.text_loss import HELD_OUT_TEXT

    settings = load_settings(config).settings
    try:
        with failures(), err.status(f"comparing {first} and {second}"):
            folders = [str(folder_of(name, settings.model.weight, settings.models_dir)) for name in (first, second)]
            asked = read_questions(questions) if questions else []
            result = compare(folders, asked, (text or HELD_OUT_TEXT).read_text(), max_tokens)
    except (CompareError, OSError) as error:
        raise fail(str(error)) from None
    if as_json:
        print_json(asdict(result))
        return
    out.print(losses_table(result.losses, {folders[0]: first, folders[1]: second}))
    if not questions:
        return
    table = DataTable("model", "correct answers", right=["correct answers"])
    for name, accuracy in zip((first, second), result.accuracy, strict=True):
        table.add_row(name, _share(accuracy))
    out.print(table)
    out.print(
        f"{plural(result.questions, 'question')}: {_share(result.same_answer)} same answer, "
        f"{_share(result.same_thinking)} same thinking",
        highlight=False,
    )


def losses_table(losses: Sequence["TextLoss"], names: Mapping[str, str]) -> DataTable:
    """What each way to multiply loses. names: of the models, by their folders."""
    figures = ("perplexity", "divergence", "same top token")
    table = DataTable("model", "arithmetic", *figures, right=figures, drop=["same top token", "perplexity"])
    for loss in losses:
        shown = f"{loss.perplexity:.3f}", f"{loss.divergence:.4f}", _share(loss.same_top)
        table.add_row(names[loss.model], loss.arithmetic, *shown)
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
