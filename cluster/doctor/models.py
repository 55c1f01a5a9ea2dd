"""Checks of the models, and whether their engines find enough cores and memory here."""

from collections.abc import Iterator, Sequence
from functools import partial

from cluster.cores import UsableCores, count_free, usable_cores
from cluster.doctor.finding import Finding, attempt
from cluster.doctor.machine import free_bytes
from cluster.kubernetes.sizes import KubernetesError, ModelInCluster
from cluster.launch.preflight import (
    LaunchError,
    PreflightResult,
    base_memory,
    check_cores,
    check_memory,
    engines_of,
    find_engines,
    with_routers,
)
from cluster.launch.state import Record
from cluster.memory import available_memory
from cluster.models.folder import (
    KnownModel,
    ModelFolderError,
    ServedModel,
    check_readable,
    is_to_be_fetched,
    memory_needed,
    open_model,
)
from cluster.serve_config import Engine
from cluster.settings import Settings
from cluster.tuning.first_start import is_due
from cluster.tuning.kept import engine_choice, find_all
from cluster.tuning.variants import forgone
from cluster.units import format_bytes


def check_models(settings: Settings) -> Iterator[tuple[Finding, KnownModel | None]]:
    """Each model with what is known of it: from its folder, or from the catalog if it is not fetched yet."""
    for model in settings.served:
        try:
            if is_to_be_fetched(model, settings.models_dir):
                yield _check_missing(settings, ModelInCluster(model))
                continue
            opened = open_model(model, settings.models_dir)
            check_readable(opened)
        except ModelFolderError as error:
            yield Finding("model", "failed", str(error)), None
            continue
        size = f"{format_bytes(opened.weights_bytes)}, {opened.context_tokens} tokens of context"
        yield Finding("model", "passed", f"{opened.name} in {opened.folder}: {size}"), opened
        if model.task == "generate":
            yield _check_tuned(opened, settings), None


def _check_tuned(model: ServedModel, settings: Settings) -> Finding:
    """What was measured here, or what the model's folder keeps the processor from doing."""
    command = f"`dray tune {model.settings.source}`"
    cores = model.settings.cores_per_replica or usable_cores().count
    counts = sorted({tuning.cores for tuning in find_all(model, settings.data_dir)})
    if counts:
        choices = (f"{engine_choice(model, count, settings.data_dir).variant} with {count} core(s)" for count in counts)
        message = f"{model.name} was measured on this processor, and runs with {' and '.join(choices)} per replica"
    elif is_due(model, cores, settings.data_dir):
        message = f"{model.name} will be measured at its first start on this processor; {command} does so carefully"
    else:
        variant = engine_choice(model, cores, settings.data_dir).variant
        message = f"{model.name} runs with {variant}; {command} measures what is fastest on this processor"
    lost = forgone(model, cores)
    return Finding("tuning", "warning" if lost else "passed", f"{message}; {lost}" if lost else message)


def _check_missing(settings: Settings, model: ModelInCluster) -> tuple[Finding, KnownModel | None]:
    fetch = f"{model.name} is not on this machine; `dray up` or `dray models pull {model.settings.source}` fetches it"
    try:
        size = model.weights_bytes
    except KubernetesError:
        return Finding("model", "warning", f"{fetch} (size unknown until then)"), None
    free = free_bytes(settings.models_dir)
    if size > free:
        shortage = f"{model.name} needs {format_bytes(size)}, and {settings.models_dir} has {format_bytes(free)} free"
        return Finding("model", "failed", f"{shortage}; set models_dir (DRAY_MODELS_DIR) to another disk"), model
    return Finding("model", "warning", f"{fetch} ({format_bytes(size)})"), model


def check_room(
    settings: Settings, usable: UsableCores, models: Sequence[KnownModel], record: Record | None
) -> Iterator[Finding]:
    """Cores and memory. Those of a Dray that runs on this state folder count as free: `dray deploy` reuses them."""
    engines = engines_of(settings, models, usable)
    running = _running(record, usable)
    free = count_free(settings.core_lock_dir, usable=usable) + sum(engine.leased_cores for engine in running)

    def cores() -> str:
        check_cores(settings, PreflightResult(engines, usable.count), usable, free)
        included = ", including those of the Dray that runs here" if running else ""
        return f"{usable.describe()}; {sum(engine.leased_cores for engine in engines)} needed, {free} free{included}"

    yield attempt("cores", cores)
    available = available_memory() + sum(memory_needed(engine.model) for engine in running)
    base = 0 if running else base_memory(with_routers(settings, usable.count))
    yield attempt("memory", partial(check_memory, engines, base, available))


def _running(record: Record | None, usable: UsableCores) -> tuple[Engine, ...]:
    if record is None or record.head or record.stage != "ready":
        return ()
    try:
        return find_engines(Settings(**record.settings), usable).engines
    except LaunchError:
        return ()  # the folder of its model was removed meanwhile; check_models reports that
