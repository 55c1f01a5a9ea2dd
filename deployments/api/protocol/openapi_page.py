"""GET /docs: what GET /openapi.json says, for people, with an example of each operation and a form that sends it.

Wheels with a renderer were tried in November 2026. fastapi-offline 1.7.7 is the smallest one that is kept: Swagger
UI, 1.7 MB of script and styles, which run under a strict Content-Security-Policy. But with this document axe finds
serious faults in each operation: a button inside a button, and faint text, in light and in dark; and it needs three
seconds to appear on two cores. flask-swagger-ui and drf-spectacular-sidecar carry the same Swagger UI and need Flask or
Django; swagger-ui-bundle has one of 2022; swagger-ui-py weighs 7 MB; scalar-fastapi loads its script from another host.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

from deployments.api.protocol.openapi import document
from deployments.api.static import ICON

_BASE = Path(__file__).with_suffix("")
_GROUPS = (("Administration", "/admin/"), ("State", ("/health", "/ping", "/version")), ("The API", "/"))
"""Titles, and how the paths of their operations begin."""
_ORDER = ("The API", "Administration", "State")
_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "pattern": "of the form {}",
}
"""Keywords of JSON Schema, in words."""


def page() -> str:
    """The document as HTML, in one page that loads nothing else."""
    described = document()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_BASE.with_suffix(".html").read_text()).render(
        doc=described,
        groups=_groups(described),
        icon=Markup(ICON),
        style=Markup(_read(".css")),
        script=Markup(_read(".js")),
        broken=_broken,
        fields=_fields,
        type=_type,
    )


def content_security_policy() -> str:
    """The page's Content-Security-Policy: its own style and script by their digests, and requests to its own server."""
    style, script = (_digest(_read(suffix)) for suffix in (".css", ".js"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _read(suffix: str) -> str:
    return _BASE.with_suffix(suffix).read_text()


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _groups(described: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """All operations, by the title over them."""
    schemas = described["components"]["schemas"]
    groups: dict[str, list[dict[str, Any]]] = {title: [] for title in _ORDER}
    for path, methods in described["paths"].items():
        title = next(title for title, beginnings in _GROUPS if path.startswith(beginnings))
        groups[title] += [_operation(path, method, operation, schemas) for method, operation in methods.items()]
    return groups


def _operation(
    path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What the page shows of an operation."""
    status, answered = next(iter(operation["responses"].items()))
    kind, body = next(iter(operation.get("requestBody", {"content": {"": {}}})["content"].items()))
    answer = next(iter(answered["content"].values()))
    request, response = _example(body), _example(answer)
    return {
        **operation,
        "path": path,
        "method": method,
        "status": status,
        "body": schemas[_name(body["schema"])] if body else None,
        "answer": answer["schema"] if "$ref" in answer["schema"] else None,
        "request": request,
        "response": response,
        "streams": "text/event-stream" in answered["content"],
        "sendable": not body or bool(request),
        "curl": "".join(_curl(path, method, kind, request)),
    }


def _example(content: Mapping[str, Any]) -> str:
    examples = content.get("examples")
    return json.dumps(examples["example"]["value"], indent=2) if examples else ""


def _curl(path: str, method: str, kind: str, request: str) -> Iterator[str]:
    """The command that sends the example."""
    yield "curl"
    if (method != "get" and not kind) or method not in ("get", "post"):
        yield f" -X {method.upper()}"
    quoted = f"'http://127.0.0.1:8000{path}'" if "{" in path else f"http://127.0.0.1:8000{path}"
    yield f" {quoted} \\\n  -H 'Authorization: Bearer dray-...'"
    if request:
        quoted = request.replace("'", "'\\''")
        yield f" -H 'Content-Type: {kind}' \\\n  -d '{quoted}'"
    elif kind:
        yield " \\\n  -F file=@requests.jsonl -F purpose=batch"


def _name(reference: Mapping[str, Any]) -> str:
    """The name of the type that a reference leads to."""
    return str(reference["$ref"]).rpartition("/")[2]


def _fields(schema: Mapping[str, Any]) -> Markup:
    """A type's description, and its fields with theirs."""
    rows = [
        Markup("<dt><code>{}</code>{}</dt><dd>{}</dd>").format(
            name, " (required)" if name in schema.get("required", ()) else "", _type(field)
        )
        for name, field in schema.get("properties", {}).items()
    ]
    described = Markup("<p>{}</p>").format(schema["description"]) if "description" in schema else Markup()
    return described + (Markup("<dl>{}</dl>").format(Markup().join(rows)) if rows else Markup())


def _type(schema: Mapping[str, Any]) -> Markup:
    """A JSON Schema in words."""
    words = _kind(schema)
    if limits := ", ".join(text.format(schema[keyword]) for keyword, text in _LIMITS.items() if keyword in schema):
        words += f" ({limits})"
    if schema.get("default") not in (None, {}, []):
        words += Markup("; default <code>{}</code>").format(json.dumps(schema["default"]))
    return words


def _kind(schema: Mapping[str, Any]) -> Markup:
    if "$ref" in schema:
        return Markup('<a href="#{0}">{0}</a>').format(_name(schema))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return Markup(" or ").join(map(_type, schema[keyword]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return Markup(", ").join(Markup("<code>{}</code>").format(json.dumps(value)) for value in values)
    if schema.get("type") == "array" and schema.get("items"):
        return Markup("list of ") + _type(schema["items"])
    if isinstance(values := schema.get("additionalProperties"), dict) and values:
        return Markup("object of ") + _type(values)
    return escape(schema.get("type", "anything"))


def _broken(path: str) -> Markup:
    """A path that may go on in the next line after each slash, and nowhere else."""
    return Markup("/<wbr>").join(path.split("/"))
