"""Loads the settings from dray.yaml, DRAY_* and the command line, checks them, and records the source of each."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource, YamlConfigSettingsSource

from cluster.settings import CLIENT_SECRET_VARIABLE, ENV_PREFIX, PRIVACY_KEYS, Group, Settings

CONFIG_VARIABLE = "DRAY_CONFIG"
OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, CLIENT_SECRET_VARIABLE, PRIVACY_KEYS})
"""Those that are no settings."""
_MAX_YAML_BYTES, _MAX_YAML_NODES = 1_000_000, 100_000

FIXED = (
    "host",
    "port",
    "state_dir",
    "lease_dir",
    "data_dir",
    "router.max_connections",
    "limits.receive_timeout_s",
    "limits.client_stall_s",
    "cache.enabled",
    "cache.url",
    "cache.memory_mb",
    "teams.url",
    "cluster.head",
    "cluster.address",
    "cluster.port",
    "cluster.redis_port",
)
"""Settings of the processes below Serve. They cannot change while Dray runs."""


class SettingsError(Exception):
    """A setting that is unknown, of the wrong type or out of range. The message gives its name and source."""


def changed_fixed_settings(new: Settings, old: Settings) -> list[str]:
    """Names of the fixed settings that differ."""
    new_values, old_values = flatten(new.model_dump(mode="json")), flatten(old.model_dump(mode="json"))
    return [name for name in FIXED if new_values[name] != old_values[name]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and the source of each by its dotted name."""

    settings: Settings
    origins: dict[str, str]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping by their dotted names: {"a": {"b": 1}} gives {"a.b": 1}."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            values.update(flatten(value, f"{prefix}{name}."))
        else:
            values[prefix + name] = value
    return values


def setting_descriptions(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, str]:
    """The description of every setting by its dotted name."""
    descriptions: dict[str, str] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Group):
            descriptions.update(setting_descriptions(kind, f"{prefix}{name}."))
        else:
            descriptions[prefix + name] = field.description or ""
    return descriptions


def variable(name: str) -> str:
    """The environment variable of a dotted setting: model.kv_cache_mb gives DRAY_MODEL__KV_CACHE_MB."""
    return ENV_PREFIX + name.upper().replace(".", "__")


def environment(settings: Settings) -> dict[str, str]:
    """Environment variables that give another process exactly these settings."""
    values = flatten(settings.model_dump(mode="json"))
    return {
        variable(name): value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }


def load(overrides: Mapping[str, Any] | None = None, config: Path | None = None) -> Loaded:
    """Read every source and check the result.

    overrides: dotted names from the command line, e.g. {"model.replicas": 2}; None values are ignored.
    config: the YAML file. None: the file named by DRAY_CONFIG, or else ./dray.yaml if it exists.
    Raises SettingsError for a missing file, an unknown name or a wrong value.
    """
    explicit = config or (Path(os.environ[CONFIG_VARIABLE]) if CONFIG_VARIABLE in os.environ else None)
    if explicit is not None and not explicit.exists():
        raise SettingsError(f"settings file {explicit} does not exist")
    path = explicit or Path("dray.yaml")
    known = setting_descriptions()
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX) and name not in OTHER_VARIABLES and name not in map(variable, known)
    )
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]} in the environment; `dray settings` lists all settings")

    layers: list[tuple[str, dict[str, Any]]] = [
        (str(path), _read_yaml(path) if path.is_file() else {}),
        ("environment", flatten(EnvSettingsSource(Settings)())),
        ("command line", {name: value for name, value in (overrides or {}).items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    for origin, layer in layers:
        for name, value in layer.items():
            values[name] = value
            origins[name] = origin
    return Loaded(parse(_nest(values), origins), origins)


def parse(values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Settings:
    """Check nested values. origins: the source of each dotted name, for error messages. Raises SettingsError."""
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        origins = origins or {}
        origin = origins.get(name) or origins.get(str(first["loc"][0]))
        problem = "unknown setting" if first["type"] == "extra_forbidden" else first["msg"]
        if first["type"] != "extra_forbidden" and not isinstance(first["input"], dict | list | tuple):
            problem += f", got {first['input']!r}"
        raise SettingsError(f"{name} ({origin}): {problem}" if origin else f"{name}: {problem}") from None


def keep_fixed_settings(loaded: Loaded, running: Mapping[str, Any]) -> Settings:
    """The loaded settings, but fixed settings that no source sets keep the values of the running Dray."""
    values, current = flatten(loaded.settings.model_dump(mode="json")), flatten(running)
    for name in FIXED:
        if loaded.origins[name] == "default":
            values[name] = current[name]
    return parse(_nest(values))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        _check_size(path)
        return flatten(YamlConfigSettingsSource(Settings, yaml_file=path)())
    except Exception as error:  # noqa: BLE001 - the YAML library's errors share no type; each becomes one line
        raise SettingsError(f"{path} is not a YAML mapping: {error}") from None


def _check_size(path: Path) -> None:
    """Raises ValueError for more YAML than settings ever are, aliases counted as often as they are used: with ten
    aliases in each of ten levels, a file of a kilobyte stands for gigabytes."""
    if path.stat().st_size > _MAX_YAML_BYTES:
        raise ValueError(f"it has more than {_MAX_YAML_BYTES} bytes")
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MAX_YAML_NODES + 1  # until it is known: a node that contains itself has no end
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            members = (part for member in inner for part in (member if isinstance(member, tuple) else (member,)))
            sizes[id(node)] = 1 + sum(map(size, members))
        return sizes[id(node)]

    with path.open(encoding="utf-8") as file:
        root = yaml.compose(file, Loader=yaml.SafeLoader)
    if root is not None and size(root) > _MAX_YAML_NODES:
        raise ValueError(f"its aliases stand for more than {_MAX_YAML_NODES} values")


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
