"""What the commands share: where they print, how they fail, and the settings they work under."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.markup import escape

from cluster.configuration import CONFIG_VARIABLE, Loaded, SettingsError, load
from cluster.launch.state import Record, read_record
from cluster.models.catalog import CATALOG, Hub
from cluster.settings import Weight

_REDIS_S = 10.0

out, err = Console(), Console(stderr=True)

Config = Annotated[Path | None, typer.Option("--config", help="Settings file.", envvar=CONFIG_VARIABLE)]
StateDir = Annotated[Path | None, typer.Option(help="Private folder of this Dray; one for each.")]
Key = Annotated[str, typer.Option(help="API key, where keys are needed.", envvar="OPENAI_API_KEY")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def catalog_names() -> list[str]:
    """For completion in a shell: models that have a short name."""
    return list(CATALOG)


def weights() -> list[str]:
    """For completion in a shell: weight formats."""
    return list(get_args(Weight))


def hubs() -> list[str]:
    """For completion in a shell: where models are fetched from."""
    return list(get_args(Hub))


def fail(message: str) -> typer.Exit:
    """Prints one line on standard error; raise the result."""
    err.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True, highlight=False)
    return typer.Exit(1)


def settled(config: Path | None, **overrides: Any) -> Loaded:
    """The settings in force, or the end of the command."""
    try:
        return load({name.replace("__", "."): value for name, value in overrides.items()}, config)
    except SettingsError as error:
        raise fail(str(error)) from None


@contextmanager
def redis_at(url: str) -> Iterator[Any]:
    """A Redis for a command, or the end of the command where it does not answer."""
    import redis

    from cluster.redis_client import connect

    try:
        with err.status("asking Redis"), connect(url, timeout_s=_REDIS_S) as client:
            yield client
    except (redis.RedisError, OSError) as error:
        raise fail(f"Redis does not answer: {error}") from None


def found(config: Path | None, state_dir: Path | None) -> Record:
    """The record of the running Dray, or the end of the command."""
    folder = settled(config, state_dir=state_dir).settings.state_dir
    record = read_record(folder)
    if record is None:
        raise fail("Dray is not running; start it with `dray up`")
    if record.head:
        raise fail(f"this machine has joined {record.head} (process {record.pid}); ask there")
    return record
