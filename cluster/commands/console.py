"""What the commands share: output, failure, common options, and access to the settings, the running Dray and Redis."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console, ConsoleDimensions
from rich.markup import escape

from cluster.configuration import CONFIG_VARIABLE, Loaded, SettingsError, load
from cluster.launch.state import Record, read_record
from cluster.models.catalog import CATALOG, Hub
from cluster.records.client import BlockingRedis
from cluster.settings import Weight

_REDIS_TIMEOUT_S = 10.0

_UNLIMITED = 1_000_000
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters, but tab and line feed."""


class _OutputConsole(Console):
    """Wraps lines on a terminal only: what a pipe or a file gets is read by programs, or wrapped by an editor."""

    @property
    def size(self) -> ConsoleDimensions:
        size = super().size
        return size if self.file.isatty() else ConsoleDimensions(_UNLIMITED, size.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


out, err = _OutputConsole(), _OutputConsole(stderr=True)

Config = Annotated[Path | None, typer.Option("--config", help="Settings file.", envvar=CONFIG_VARIABLE)]
StateDir = Annotated[Path | None, typer.Option(help="Private folder of this Dray; each Dray has its own.")]
Key = Annotated[str, typer.Option(help="API key, if the server requires one.", envvar="OPENAI_API_KEY")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def catalog_names() -> list[str]:
    """Shell completion: the short names of models."""
    return list(CATALOG)


def weight_formats() -> list[str]:
    """Shell completion: weight formats."""
    return list(get_args(Weight))


def hub_names() -> list[str]:
    """Shell completion: the hubs from which models are fetched."""
    return list(get_args(Hub))


def printable(text: str) -> str:
    """Text of others, such as a model or a client, without what would steer a terminal."""
    return _CONTROL.sub("", text)


def print_json(data: object) -> None:
    """Prints JSON for a program: neither coloured nor wrapped, whatever the environment says of colours."""
    print(json.dumps(data, indent=2, ensure_ascii=False), file=out.file)


def print_done(done: object, sentence: str, as_json: bool) -> None:
    """Says what a command did: as JSON for a program, or in a sentence."""
    if as_json:
        print_json(done)
    else:
        out.print(sentence, markup=False, highlight=False, soft_wrap=True)


def fail(message: str) -> typer.Exit:
    """Prints one line on standard error; raise the result."""
    err.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True, highlight=False)
    return typer.Exit(1)


def load_settings(config: Path | None, **overrides: object) -> Loaded:
    """The settings in force; ends the command if they are wrong.

    overrides: options of the command line, with `__` for the dot in a setting's name; None leaves the setting alone.
    """
    try:
        return load({name.replace("__", "."): value for name, value in overrides.items()}, config)
    except SettingsError as error:
        raise fail(str(error)) from None


@contextmanager
def redis_client(url: str) -> Iterator[BlockingRedis]:
    """A Redis client; ends the command if Redis does not answer."""
    import redis

    from cluster.redis_client import connect

    try:
        with err.status("asking Redis"), connect(url, timeout_s=_REDIS_TIMEOUT_S) as client:
            yield client
    except (redis.RedisError, OSError) as error:
        raise fail(f"Redis does not answer: {error}") from None


def running_record(config: Path | None, state_dir: Path | None) -> Record:
    """The record of the running Dray; ends the command if none runs here."""
    folder = load_settings(config, state_dir=state_dir).settings.state_dir
    record = read_record(folder)
    if record is None:
        raise fail("Dray is not running; start it with `dray up`")
    if record.head:
        raise fail(f"this machine has joined {record.head} (process {record.pid}); run this command there")
    return record
