"""MkDocs hook that generates the reference pages from the code when the documentation is built.

The pages are not files, so they cannot be older than the code.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from prometheus_client import CollectorRegistry

from cluster import scaling_metrics
from cluster.cli import app
from cluster.configuration import flatten, setting_descriptions
from cluster.settings import ModelPrice, OfficeHours, RouteRule, Settings
from deployments.observability import metrics as service_metrics

_DEFAULT_LANGUAGE = "en"
_ROOT = Path(__file__).resolve().parents[1]
_CARRIED = {
    "readme.md": "README.md",
    "results.md": "benchmarks/RESULTS.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "examples.md": "examples/README.md",
}
"""Pages of the site, and the files of the repository that they are."""
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


@event_priority(-200)  # after the plugin of languages, which takes only pages that are files below docs/
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and those that are files elsewhere. MkDocs calls this after it has found the others."""
    for name, page in (("settings", settings), ("command", commands), ("metrics", metrics)):
        files.append(_generated(config, f"reference/{name}.md", page()))
    for name, source in _CARRIED.items():
        files.append(_generated(config, name, carried(source)))
    return files


def _generated(config: MkDocsConfig, name: str, content: str) -> File:
    """A page, in the part of the site that is being built: each language has a copy with its own navigation."""
    file = File.generated(config, name, content=content)
    language = config.theme["language"]
    if language != _DEFAULT_LANGUAGE:
        file.dest_uri = f"{language}/{file.dest_uri}"
    return file


def carried(source: str) -> str:
    """A page of the repository outside of docs/, whose links lead to the site's pages; others become text."""
    folder = (_ROOT / source).parent

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if "://" in target or not target:
            return match[0]
        path = (folder / target).resolve().relative_to(_ROOT)
        page = next((name for name, file in _CARRIED.items() if file == str(path)), None)
        if page is None and path.is_relative_to("docs"):
            page = str(path.relative_to("docs"))
        if page is None:
            return match["text"]
        return f"{match['image']}[{match['text']}]({page}{'#' + anchor if anchor else ''})"

    return _LINK.sub(link, (_ROOT / source).read_text(encoding="utf-8"))


def settings() -> str:
    """Every setting, in the order of the class."""
    lines = [
        "# Settings",
        "",
        "Sources, in order of precedence: command line, environment, `dray.yaml`, defaults. In the file, names nest at "
        "their dots; in the environment, `model.kv_cache_mb` is `DRAY_MODEL__KV_CACHE_MB`. `dray settings` shows each "
        "value and its source. An unknown name is an error.",
    ]
    group = None
    schema, defaults, texts = (
        Settings.model_json_schema(),
        flatten(Settings().model_dump(mode="json")),
        setting_descriptions(),
    )
    for name, text in sorted(texts.items(), key=lambda item: "." in item[0]):
        if (section := name.rpartition(".")[0]) != group:
            group = section
            lines += ["", f"## {section or 'General'}", "", *_head("setting", "default", "values", "what it does")]
        default = _shown(defaults[name])
        lines.append(_row(f"`{name}`", f"`{default}`" if default else "", _values(schema, name), text))
    for of, item in (("model.office_hours", OfficeHours), ("model.route", RouteRule), ("prices.models", ModelPrice)):
        lines += ["", f"## Items of {of}", "", *_head("field", "", "", "what it does")]
        lines += [_row(f"`{name}`", "", "", field.description or "") for name, field in item.model_fields.items()]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command, with the text of its --help."""
    root = typer.main.get_command(app)
    lines = ["# The command", "", str(root.help), "", *str(root.epilog).split("\n"), ""]
    lines += ["`dray --install-completion` sets up shell completion of commands, options and model names."]
    for path, command in _commands(root):
        lines += ["", f"## dray {path}", "", *_unindented(str(command.help))]
        if rows := [row for parameter in command.params if (row := _parameter(parameter))]:
            lines += ["", *_head("argument or option", "default", "environment", ""), *rows]
        lines += ["", "```bash", str(command.epilog).removeprefix("Example: "), "```"]
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """Every metric that Dray's processes export."""
    registry = CollectorRegistry()
    with patch.object(service_metrics, "CollectorRegistry", lambda: registry):
        service_metrics.RouterMetrics()
        service_metrics.EngineMetrics("model", "replica")
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` returns those of all processes of a node, in Prometheus' text format. The dashboard and the "
        "alerts in `k8s/monitoring` use them.",
        "",
        *_head("metric", "type", "labels", "description"),
    ]
    collectors: list[Any] = [*registry._collector_to_names, *scaling_metrics._own._collector_to_names]
    for collector in sorted(collectors, key=lambda collector: str(collector._name)):
        (metric,) = collector.describe()
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        lines.append(_row(f"`{name}`", metric.type, labels, metric.documentation))
    return "\n".join(lines) + "\n"


def _commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that can be run, with its full name."""
    for name, command in group.commands.items():
        full_name = f"{path} {name}".strip()
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield full_name, command
        if hasattr(command, "commands"):
            yield from _commands(command, full_name)


def _parameter(parameter: Any) -> str:
    if parameter.name == "help":
        return ""
    if parameter.param_type_name == "argument":
        name = f"`{parameter.name.upper()}`"
    else:
        name = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
    required = "required" if parameter.required else ""
    default = "" if parameter.default in (None, False, "") or callable(parameter.default) else f"`{parameter.default}`"
    return _row(name, required or default, f"`{parameter.envvar}`" if parameter.envvar else "", parameter.help or "")


def _values(schema: dict[str, Any], name: str) -> str:
    """The type and the bounds of a setting, from the settings' JSON schema."""
    *groups, leaf = name.split(".")
    node = schema
    for group in groups:
        node = schema["$defs"][node["properties"][group]["$ref"].rpartition("/")[2]]
    node = node["properties"][leaf]
    options = [option for option in node.get("anyOf", [node]) if option.get("type") != "null"]
    return " or ".join(map(_kind, options))


def _kind(node: dict[str, Any]) -> str:
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    bounds = " ".join(f"{sign} {node[bound]}" for bound, sign in _BOUNDS.items() if bound in node)
    kind = {"array": "list", "string": "text"}.get(node["type"], node["type"])
    return f"{kind} {bounds}".strip()


def _shown(value: Any) -> str:
    """A default as text, without this machine's home folder and user id."""
    if value in (None, "", []):
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace(str(Path.home()), "~").replace(f"dray-{os.getuid()}", "dray-UID")


def _unindented(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*("---" for _ in names))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
