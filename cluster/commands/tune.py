"""`dray tune`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cluster.commands.console import AsJson, Config, catalog_names, err, fail, load_settings, out, print_json
from cluster.settings import ModelSettings, Settings
from cluster.units import format_bytes

if TYPE_CHECKING:
    from cluster.models.folder import ServedModel
    from cluster.tuning.report import Results


def tune(
    model: Annotated[
        str,
        typer.Argument(help="`bundled`, a catalog name, a Hub id or a folder.", autocompletion=catalog_names),
    ],
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores per replica. Default: as many as `dray up` gives one.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="About how long to measure. Loading a large model may take longer.")
    ] = 300,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Measure how a model multiplies fastest on this processor, and in steps of which size, and keep the results.

    Engines use them from their next start, as far as `model.precision` allows. A quick round drops what is far behind;
    the rest is measured again. Needs the cores to itself.
    """
    from cluster.cores import LeasesUnavailable, NotEnoughCores
    from cluster.models.compare import CompareError
    from cluster.models.folder import ModelFolderError, open_model
    from cluster.tuning.kept import keep
    from cluster.tuning.measure import measure
    from cluster.tuning.report import Results, progress
    from cluster.tuning.tasks import TuneError

    settings = load_settings(config).settings
    chosen = _settings_of(settings, model)
    if chosen.task != "generate":
        raise fail(f"{model} is an embedding model; `dray tune` measures models that generate text")
    try:
        opened = open_model(chosen, settings.models_dir)
        results = Results(opened)
        count = cores or _cores_of_a_replica(settings, opened)
        _check_memory(opened)
        with err.status("measuring"):
            for event in measure(opened, settings.models_dir, count, settings.core_lock_dir, seconds=seconds):
                results.add(event)
                if line := progress(event):
                    err.print(line, highlight=False, markup=False, soft_wrap=True)
        assert results.chosen is not None
        file = keep(opened, count, results.chosen.scores, settings.data_dir, results.chosen.step_tokens)
    except (ModelFolderError, NotEnoughCores, LeasesUnavailable, TuneError, CompareError, OSError) as error:
        raise fail(str(error)) from None
    if as_json:
        print_json({"model": opened.name, "cores": count, "file": str(file), **results.as_dict()})
    else:
        _print(results, f"Kept for this processor and {count} core(s) a replica in {file}.", chosen)


def _print(results: "Results", kept: str, settings: ModelSettings) -> None:
    if results.trials:
        out.print(results.table())
    sentences = [*results.sentences(), kept]
    if settings.max_num_batched_tokens != "auto":
        sentences.append("Your setting model.max_num_batched_tokens decides instead: auto uses what was kept.")
    for sentence in sentences:
        out.print(escape(sentence), highlight=False, soft_wrap=True)


def _settings_of(settings: Settings, source: str) -> ModelSettings:
    """The settings of the served model with this source, else those of `model` with it."""
    served = next((model for model in settings.served if model.source == source), None)
    return served or settings.model.model_copy(update={"source": source, "name": ""})


def _cores_of_a_replica(settings: Settings, model: "ServedModel") -> int:
    """As many as `dray up` gives each of the model's replicas."""
    from cluster.cores import usable_cores
    from cluster.launch.preflight import engines_of
    from cluster.models.folder import open_models

    models = open_models(settings) if model.settings in settings.served else [model]
    engines = engines_of(settings, models, usable_cores())
    return next(engine.cores for engine in engines if engine.model.name == model.name)


def _check_memory(model: "ServedModel") -> None:
    from cluster.memory import available_memory
    from cluster.tuning.measure import memory_to_tune

    needed, available = memory_to_tune(model), available_memory()
    if needed > available:
        raise fail(
            f"tuning {model.name} needs {format_bytes(needed)} of memory, because two variants are loaded at a time; "
            f"{format_bytes(available)} is available. Stop what else runs, or set a smaller model.kv_cache_mb"
        )
