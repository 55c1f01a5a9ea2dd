"""Cuts OpenAI's OpenAPI document down to the schemas of what Dray answers: python -m tests.judges.cut_openai FILE

FILE: openapi.json of https://github.com/openai/openai-openapi (MIT licence: openai-LICENSE beside this file).
Descriptions and examples are left out, and of a union the options that Dray never sends: that makes the judge stricter.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CUT = Path(__file__).with_name("openai.json")
ROOTS = (
    "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse",
    "CreateCompletionResponse",
    "CreateEmbeddingResponse",
    "ErrorResponse",
    "ListModelsResponse",
    "Model",
    "Response",
    "ResponseItemList",
    "ResponseStreamEvent",
    "TokenCountsResource",
)
_SENT = {
    "Annotation": (),
    "InputItem": ("EasyInputMessage", "Item"),
    "Item": ("InputMessage", "OutputMessage", "FunctionToolCall", "FunctionCallOutputItemParam", "ReasoningItem"),
    "ItemResource": (
        *("InputMessageResource", "OutputMessage", "FunctionToolCallResource", "FunctionToolCallOutputResource"),
        "ReasoningItem",
    ),
    "OutputItem": ("OutputMessage", "FunctionToolCall", "ReasoningItem"),
    "ResponseStreamEvent": tuple(
        f"Response{name}Event"
        for name in (
            *("Created", "InProgress", "Completed", "Incomplete", "Failed", "Queued", "Error"),
            *("OutputItemAdded", "OutputItemDone", "ContentPartAdded", "ContentPartDone", "TextDelta", "TextDone"),
            *("ReasoningTextDelta", "ReasoningTextDone", "FunctionCallArgumentsDelta", "FunctionCallArgumentsDone"),
        )
    ),
    "Tool": ("FunctionTool",),
    "ToolChoiceParam": ("ToolChoiceOptions", "ToolChoiceAllowed", "ToolChoiceFunction"),
}
"""The options of unions that Dray sends."""
_PROSE = {"description", "title", "example", "examples", "discriminator", "deprecated"}


def cut(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the schemas of ROOTS alone."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    kept: dict[str, Any] = {}
    pending = list(ROOTS)
    while pending:
        name = pending.pop()
        if name not in kept:
            kept[name] = _without_prose(_with_sent_options(name, schemas[name]))
            pending += _references(kept[name])
    version = f"{document['info']['title']} {document['info']['version']}"
    return {"source": version, "components": {"schemas": dict(sorted(kept.items()))}}


def _with_sent_options(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name not in _SENT:
        return schema
    sent = {f"#/components/schemas/{option}" for option in _SENT[name]}
    unions = {key: schema[key] for key in ("anyOf", "oneOf") if key in schema}
    unions = {key: [each for each in options if each.get("$ref") in sent] for key, options in unions.items()}
    assert all(len(options) == len(sent) for options in unions.values()), (name, unions)
    return {**schema, **{key: options or [False] for key, options in unions.items()}}


def _without_prose(value: Any, *, names: bool = False) -> Any:
    """names: whether the keys are names of properties, and no keywords."""
    if isinstance(value, list):
        return [_without_prose(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        key: _without_prose(inner, names=key == "properties" and not names)
        for key, inner in value.items()
        if names or not (key in _PROSE or key.startswith("x-"))
    }
    # A keyword of OpenAPI 3.0, in a document of 3.1.
    return {"anyOf": [kept, {"type": "null"}]} if not names and kept.pop("nullable", False) is True else kept


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"].rpartition("/")[2]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


if __name__ == "__main__":
    CUT.write_text(json.dumps(cut(json.loads(Path(sys.argv[1]).read_text())), indent=1) + "\n")
