"""Which models are measured at this start, and what came of it, in words for the terminal."""

from collections.abc import Sequence

from cluster.cores import usable_cores
from cluster.launch.preflight import engines_of
from cluster.models.folder import ModelFolderError, ServedModel, open_models
from cluster.serve_config import Engine
from cluster.settings import Settings
from cluster.tuning.first_start import is_due
from cluster.tuning.kept import engine_choice, find
from cluster.tuning.variants import VARIANTS


def unmeasured(settings: Settings) -> tuple[Engine, ...]:
    """The engines that measure how to multiply before they start; none where the settings cannot be served at all."""
    try:
        engines = engines_of(settings, open_models(settings), usable_cores())
    except ModelFolderError:
        return ()
    return tuple(engine for engine in engines if _is_due(engine))


def _is_due(engine: Engine) -> bool:
    return isinstance(engine.model, ServedModel) and is_due(engine.model, engine.cores, engine.settings.data_dir)


def announcement(engines: Sequence[Engine]) -> str:
    """What the first start does before it loads these; empty if there are none."""
    names = ", ".join(engine.model.name for engine in engines if _is_due(engine))
    return f"measuring how {names} multiplies fastest on this processor (once, takes seconds), then " if names else ""


def outcome(engine: Engine) -> str:
    """What was measured, in a sentence."""
    model = engine.model
    assert isinstance(model, ServedModel)
    choice = engine_choice(model, engine.cores, engine.settings.data_dir)
    kept = find(model, engine.cores, engine.settings.data_dir)
    if not choice.measured or kept is None:
        return f"{model.name} was not measured; it runs with {choice.variant}"
    own = kept.scores.get(choice.variant.name, 0.0)
    others = (
        f"{own / score:.2f} times as fast as {VARIANTS[name]}" if score else f"as {VARIANTS[name]} does not work"
        for name, score in kept.scores.items()
        if name in VARIANTS and score < own
    )
    return f"{model.name} runs with {choice.variant}, here {' and '.join(others)}; `dray tune` measures more carefully"
