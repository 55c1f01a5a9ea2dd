"""GET /openapi.json, generated from the types of request and response bodies."""

import re
from importlib.metadata import version
from typing import Any

import msgspec

from cluster.records.curated import ListedAnswer
from cluster.records.team_records import Team
from deployments.api.protocol import openapi_examples
from deployments.api.protocol.admin import (
    CreateKeyRequest,
    CreateTeamRequest,
    KeyResponse,
    KeysResponse,
    LoginRequest,
    LoginResponse,
    RotateKeyRequest,
    TeamDeletedResponse,
    TeamsResponse,
    UpdateTeamRequest,
    UsageResponse,
)
from deployments.api.protocol.batch_operations import BATCH_OPERATIONS
from deployments.api.protocol.chat import ChatRequest
from deployments.api.protocol.chat_writer import ChatCompletion
from deployments.api.protocol.completions import CompletionRequest
from deployments.api.protocol.completions_writer import TextCompletion
from deployments.api.protocol.console_operations import CONSOLE_OPERATIONS
from deployments.api.protocol.curated import (
    AnswerDeletedResponse,
    CuratedAnswers,
    ImportAnswersRequest,
    PinAnswerRequest,
    UpdateAnswerRequest,
)
from deployments.api.protocol.embeddings import EmbeddingRequest, Embeddings
from deployments.api.protocol.feedback import AcceptRequest, FeedbackList, FeedbackRequest, FeedbackResponse
from deployments.api.protocol.forget import ForgetRequest, ForgetResponse
from deployments.api.protocol.messages import MessagesCount, MessagesCountRequest, MessagesRequest
from deployments.api.protocol.operation import Operation
from deployments.api.protocol.rerank import RerankRequest, RerankResponse, ScoreRequest, ScoreResponse
from deployments.api.protocol.responses import ResponseCount, ResponseRequest
from deployments.api.protocol.tokens import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from deployments.common.errors import ErrorBody

__all__ = ["OPERATIONS", "Operation", "document"]

_ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503, 504)
_OBJECT = {"type": "object"}
_LINES = "application/jsonl"
_FORM = "multipart/form-data"
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}, "event": {"type": "string"}}}
_REFERENCE = "#/components/schemas/{name}"


_RESPONSE = {
    "type": "object",
    "required": ["id", "object", "status", "model", "output", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "response"},
        "status": {"enum": ["completed", "incomplete", "queued", "in_progress", "failed", "cancelled"]},
        "model": {"type": "string"},
        "output": {"type": "array", "items": {"type": "object", "required": ["type", "id"]}},
        "usage": {"type": "object", "required": ["input_tokens", "output_tokens", "total_tokens"]},
    },
}
_ITEMS = {
    "type": "object",
    "required": ["object", "data", "first_id", "last_id", "has_more"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"type": "object", "required": ["type", "id"]}},
        "has_more": {"type": "boolean"},
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["id", "type", "role", "model", "content", "stop_reason", "usage"],
    "properties": {
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "content": {"type": "array", "items": {"type": "object", "required": ["type"]}},
        "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        "usage": {"type": "object", "required": ["input_tokens", "output_tokens"]},
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "task", "max_model_len", "aliases", "default_parameters"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "task": {"enum": ["generate", "embed", "rerank"]},
        "max_model_len": {"type": "integer"},
        "aliases": {"type": "array", "items": {"type": "string"}},
        "default_parameters": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
_MODELS = {"type": "object", "required": ["object", "data"], "properties": {"data": {"type": "array", "items": _MODEL}}}

_ACCEPT, _ANSWER = "/admin/feedback/{id}/accept", "/admin/answers/{id}"
_LISTED = ("namespace", "search", "after", "limit")

OPERATIONS = (
    Operation("/v1/chat/completions", "Create a chat completion", ChatRequest, ChatCompletion, streams=True),
    Operation("/v1/completions", "Complete a text", CompletionRequest, TextCompletion, streams=True),
    Operation("/v1/responses", "Create a response (OpenAI's Responses API)", ResponseRequest, _RESPONSE, streams=True),
    Operation("/v1/messages", "Create a message (Anthropic's Messages API)", MessagesRequest, _MESSAGE, streams=True),
    Operation("/v1/messages/count_tokens", "Count a message's tokens", MessagesCountRequest, MessagesCount),
    Operation("/v1/responses/{id}", "Read a stored response", answer=_RESPONSE, parameters=("id",)),
    Operation("/v1/responses/{id}", "Delete a stored response", answer=_OBJECT, parameters=("id",), verb="delete"),
    Operation(
        "/v1/responses/{id}/cancel",
        "Cancel a response that is generated in the background",
        answer=_RESPONSE,
        parameters=("id",),
        verb="post",
    ),
    Operation(
        "/v1/responses/{id}/input_items",
        "List the items before a stored response",
        answer=_ITEMS,
        parameters=("id",),
        query=("after", "limit", "order"),
    ),
    Operation("/v1/responses/input_tokens", "Count a response's input tokens", ResponseRequest, ResponseCount),
    Operation("/v1/embeddings", "Create embeddings of texts", EmbeddingRequest, Embeddings),
    Operation("/v1/rerank", "Sort documents by how well they answer a query", RerankRequest, RerankResponse),
    Operation("/v2/rerank", "The same at the path of Cohere's clients", RerankRequest, RerankResponse),
    Operation("/v1/score", "Score pairs of texts", ScoreRequest, ScoreResponse),
    *BATCH_OPERATIONS,
    Operation("/tokenize", "Convert a text or a conversation to token ids", TokenizeRequest, TokenizeResponse),
    Operation("/detokenize", "Convert token ids to text", DetokenizeRequest, DetokenizeResponse),
    Operation("/tokenizer_info", "Describe a model's tokenizer, as vLLM does", answer=_OBJECT, query=("model",)),
    Operation("/v1/models", "List the models", answer=_MODELS),
    Operation("/v1/models/{name}", "Describe a model", answer=_MODEL, parameters=("name",)),
    Operation("/v1/usage", "Report your team's usage", answer=UsageResponse, query=("days", "team")),
    Operation("/admin/logins", "Record that an admin opened the console", LoginRequest, LoginResponse, status=201),
    Operation("/admin/teams", "List the teams", answer=TeamsResponse),
    Operation("/admin/teams", "Create a team", CreateTeamRequest, Team, status=201),
    Operation("/admin/teams/{name}", "Describe a team", answer=Team, parameters=("name",)),
    Operation("/admin/teams/{name}", "Change a team", UpdateTeamRequest, Team, parameters=("name",), verb="patch"),
    Operation("/admin/teams/{name}", "Delete a team", answer=TeamDeletedResponse, parameters=("name",), verb="delete"),
    Operation("/admin/keys", "List the keys", answer=KeysResponse),
    Operation("/admin/keys", "Create a key", CreateKeyRequest, KeyResponse, status=201),
    Operation("/admin/keys/{id}", "Describe a key", answer=KeyResponse, parameters=("id",)),
    Operation("/admin/keys/{id}", "Revoke a key", answer=KeyResponse, parameters=("id",), verb="delete"),
    Operation("/admin/keys/{id}/rotate", "Rotate a key", RotateKeyRequest, KeyResponse, parameters=("id",), status=201),
    Operation("/admin/answers", "List the curated answers", answer=CuratedAnswers, query=_LISTED),
    Operation("/admin/answers", "Add curated answers", ImportAnswersRequest, CuratedAnswers, status=201),
    Operation(
        "/admin/answers/export", "Export the curated answers as JSON Lines", query=("namespace",), content=_LINES
    ),
    Operation("/admin/answers/pin", "Make a cached answer a curated one", PinAnswerRequest, ListedAnswer, status=201),
    Operation(_ANSWER, "Describe a curated answer", answer=ListedAnswer, parameters=("id",)),
    Operation(
        "/admin/answers/{id}",
        "Change a curated answer",
        UpdateAnswerRequest,
        ListedAnswer,
        False,
        ("id",),
        verb="patch",
    ),
    Operation(
        "/admin/answers/{id}",
        "Delete a curated answer",
        answer=AnswerDeletedResponse,
        parameters=("id",),
        verb="delete",
    ),
    Operation("/v1/feedback", "Vote on an answer", FeedbackRequest, FeedbackResponse, status=201),
    Operation("/admin/feedback", "List what people say of answers", answer=FeedbackList, query=("team", "limit")),
    Operation("/admin/feedback/export", "Export the right answers as JSON Lines", query=("team",), content=_LINES),
    Operation("/admin/forget", "Delete what is kept of a user", ForgetRequest, ForgetResponse),
    Operation(_ACCEPT, "Accept a correction", AcceptRequest, ListedAnswer, parameters=("id",), status=201),
    *CONSOLE_OPERATIONS,
    Operation("/health/live", "Check whether this router answers", answer=_OBJECT),
    Operation("/health/ready", "Check whether every model has a running replica", answer=_OBJECT),
    Operation("/health", "Check readiness, as vLLM and llama-server name it", answer=_OBJECT),
    Operation("/ping", "Check whether the router responds", answer=_OBJECT),
    Operation("/version", "Read Dray's version", answer=_OBJECT),
)


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    types: list[type] = [ErrorBody]
    for operation in OPERATIONS:
        types += [schema for schema in (operation.body, operation.answer) if isinstance(schema, type)]
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    _, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Dray", "version": version("dray")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # Before the first key is created, Dray listens on 127.0.0.1 only and needs none.
        "security": [{"key": []}, {}],
    }


def _describe(operation: Operation) -> dict[str, Any]:
    answer = {"schema": _schema(operation.answer)} | openapi_examples.of(operation, openapi_examples.RESPONSES)
    content: dict[str, Any] = {operation.content: answer}
    if operation.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    error = {"application/json": {"schema": _OBJECT if "messages" in operation.path else _schema(ErrorBody)}}
    described: dict[str, Any] = {
        "operationId": f"{operation.method}_{re.sub('[^a-z0-9]+', '_', operation.path.strip('/{}'))}",
        "summary": operation.summary,
        "responses": {
            str(operation.status): {"description": operation.summary, "content": content},
            **{str(status): {"description": "Error", "content": error} for status in _ERRORS},
        },
    }
    if operation.body:
        body = {"schema": _schema(operation.body)} | openapi_examples.of(operation, openapi_examples.REQUESTS)
        described["requestBody"] = {
            "required": True,
            "content": {_FORM if operation.form else "application/json": body},
        }
    if operation.parameters or operation.query:
        described["parameters"] = [
            {"name": name, "in": where, "required": where == "path", "schema": {"type": "string"}}
            for where, names in (("path", operation.parameters), ("query", operation.query))
            for name in names
        ]
    return described


def _schema(body: type | dict[str, Any] | None) -> dict[str, Any]:
    if isinstance(body, type):
        return {"$ref": _REFERENCE.format(name=body.__name__)}
    return body or _OBJECT
