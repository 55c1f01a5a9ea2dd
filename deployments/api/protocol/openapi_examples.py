"""Examples of requests and responses in the OpenAPI document, and so on its page. Values are those of the bundled model
where it can answer."""

from collections.abc import Mapping
from typing import Any

from deployments.api.protocol.operation import Operation

_MODEL = "dray-demo"
_SUM = "What is 27 + 48?"
_ANSWER = "27+48=75."
_THINKING = "27+48=75"
_HOURS, _OPEN = "When is the office open?", "From 9 to 18, Monday to Friday."
_TIME, _DAY = 1_790_000_000, 86_400
_ID, _KEY_ID = "3f1c9a7e5b2d", "k7d2f0a1"
_MESSAGES = [{"role": "user", "content": _SUM}]
_DOCUMENTS = ["The office is open from 9 to 18.", "Parking costs 40 a month."]

_CHAT_USAGE = {
    "prompt_tokens": 14,
    "completion_tokens": 16,
    "total_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 8},
}
_USAGE = {"input_tokens": 14, "output_tokens": 16, "total_tokens": 30}
_TEXT_USAGE = {"prompt_tokens": 20, "total_tokens": 20}
_RESPONSE = {
    "id": f"resp_{_ID}",
    "object": "response",
    "status": "completed",
    "model": _MODEL,
    "output": [
        {
            "id": f"msg_{_ID}",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": _ANSWER, "annotations": []}],
        }
    ],
    "usage": _USAGE,
}
_FILE = {
    "id": f"file-{_ID}",
    "object": "file",
    "bytes": 2048,
    "created_at": _TIME,
    "expires_at": _TIME + 30 * _DAY,
    "filename": "questions.jsonl",
    "purpose": "batch",
    "status": "processed",
}
_BATCH = {
    "id": f"batch_{_ID}",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": f"file-{_ID}",
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": _TIME,
    "in_progress_at": _TIME + 1,
    "expires_at": _TIME + _DAY,
    **dict.fromkeys(["finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"]),
    "request_counts": {"total": 20, "completed": 12, "failed": 0},
    "metadata": None,
}
_PAGE = {"object": "list", "has_more": False}
_ADMIN_BATCH = {"owner": "team.support", "batch": _BATCH}
_SERVED = {
    "id": _MODEL,
    "object": "model",
    "created": _TIME,
    "owned_by": "dray",
    "task": "generate",
    "max_model_len": 2048,
    "aliases": [],
    "default_parameters": {"temperature": 0.6, "top_p": 0.95},
}
_QUOTA = {"requests_per_minute": 60, "tokens_per_minute": 30_000, "requests_at_a_time": 4, "tokens_per_month": 0}
_TEAM = {
    "name": "support",
    "models": [],
    "weight": 1.0,
    "shares_answers": False,
    "quota": _QUOTA,
    "cost_per_month": 0.0,
}
_STORED_TEAM = _TEAM | {"created": float(_TIME)}
_KEY = {"id": _KEY_ID, "team": "support", "label": "bot", "created": float(_TIME), "ends": 0.0, "replaced_by": ""}
_CREATED_KEY = _KEY | {"key": "dray-..."}
_CURATED = {
    "id": _ID,
    "namespace": "team.support",
    "question": _HOURS,
    "answer": _OPEN,
    "model": "",
    "author": "anna",
    "changed": float(_TIME),
    "valid_until": 0.0,
    "outdated": False,
    "expired": False,
}
_FEEDBACK = {
    "id": _ID,
    "team": "support",
    "namespace": "team.support",
    "model": _MODEL,
    "question": _HOURS,
    "answer": "From 8 to 17.",
    "up": 0,
    "down": 2,
    "asked": 9,
    "reasons": ["wrong hours"],
    "correction": _OPEN,
    "accepted": "",
    "changed": float(_TIME),
}
_USED = {"day": "2026-11-27", "team": "support", "model": _MODEL, "requests": 40, "hits": 25, "prompt": 210}
_READY = {"status": "ok"}

REQUESTS: Mapping[str, Any] = {
    "post /v1/chat/completions": {"model": _MODEL, "messages": _MESSAGES, "temperature": 0},
    "post /v1/completions": {"model": _MODEL, "prompt": "27+48=", "max_tokens": 8, "temperature": 0},
    "post /v1/responses": {"model": _MODEL, "input": _SUM},
    "post /v1/messages": {"model": _MODEL, "max_tokens": 300, "messages": _MESSAGES},
    "post /v1/messages/count_tokens": {"model": _MODEL, "messages": _MESSAGES},
    "post /v1/responses/input_tokens": {"model": _MODEL, "input": _SUM},
    "post /v1/embeddings": {"model": "bge-m3", "input": _DOCUMENTS},
    "post /v1/rerank": {"model": "bge-reranker-v2-m3", "query": _HOURS, "documents": _DOCUMENTS},
    "post /v2/rerank": {"model": "bge-reranker-v2-m3", "query": _HOURS, "documents": _DOCUMENTS, "top_n": 1},
    "post /v1/score": {"model": "bge-reranker-v2-m3", "text_1": _HOURS, "text_2": _DOCUMENTS},
    "post /v1/batches": {
        "input_file_id": f"file-{_ID}",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "post /tokenize": {"model": _MODEL, "prompt": _SUM},
    "post /detokenize": {"model": _MODEL, "tokens": [40, 41, 42]},
    "post /admin/logins": {},
    "post /admin/teams": {"name": "support", "quota": _QUOTA},
    "patch /admin/teams/{name}": {"weight": 2},
    "post /admin/keys": {"team": "support", "label": "bot"},
    "post /admin/keys/{id}/rotate": {"grace_s": 3600},
    "post /admin/answers": {"answers": [{"question": _HOURS, "answer": _OPEN, "namespace": "team.support"}]},
    "post /admin/answers/pin": {"key": "8c5f0e6b4a7d"},
    "patch /admin/answers/{id}": {"answer": _OPEN},
    "post /v1/feedback": {"rating": "down", "id": f"chatcmpl-{_ID}", "correction": _OPEN},
    "post /admin/feedback/{id}/accept": {"answer": _OPEN},
    "post /admin/forget": {"user": "anna", "team": "support"},
}
"""Bodies of requests, by method and path."""

RESPONSES: Mapping[str, Any] = {
    "post /v1/chat/completions": {
        "id": f"chatcmpl-{_ID}",
        "object": "chat.completion",
        "created": _TIME,
        "model": _MODEL,
        "system_fingerprint": "fp_5c1b",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _ANSWER, "reasoning_content": _THINKING, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _CHAT_USAGE,
    },
    "post /v1/completions": {
        "id": f"cmpl-{_ID}",
        "object": "text_completion",
        "created": _TIME,
        "model": _MODEL,
        "system_fingerprint": "fp_5c1b",
        "choices": [{"index": 0, "text": "75", "logprobs": None, "finish_reason": "length"}],
        "usage": _CHAT_USAGE,
    },
    "post /v1/responses": _RESPONSE,
    "get /v1/responses/{id}": _RESPONSE,
    "post /v1/responses/{id}/cancel": _RESPONSE | {"status": "cancelled", "output": []},
    "delete /v1/responses/{id}": {"id": f"resp_{_ID}", "object": "response", "deleted": True},
    "get /v1/responses/{id}/input_items": _PAGE
    | {
        "data": [{"id": f"msg_{_ID}", "type": "message", "role": "user", "content": _SUM}],
        "first_id": f"msg_{_ID}",
        "last_id": f"msg_{_ID}",
    },
    "post /v1/responses/input_tokens": {"object": "response.input_tokens", "input_tokens": 14},
    "post /v1/messages": {
        "id": f"msg_{_ID}",
        "type": "message",
        "role": "assistant",
        "model": _MODEL,
        "content": [{"type": "text", "text": _ANSWER}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 14, "output_tokens": 16},
    },
    "post /v1/messages/count_tokens": {"input_tokens": 14},
    "post /v1/embeddings": {
        "object": "list",
        "model": "bge-m3",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.021, -0.043, 0.008]},
            {"object": "embedding", "index": 1, "embedding": [0.012, 0.031, -0.027]},
        ],
        "usage": _TEXT_USAGE,
    },
    "post /v1/rerank": {
        "id": f"rerank-{_ID}",
        "model": "bge-reranker-v2-m3",
        "results": [{"index": 0, "relevance_score": 0.98}, {"index": 1, "relevance_score": 0.01}],
        "usage": _TEXT_USAGE,
    },
    "post /v2/rerank": {
        "id": f"rerank-{_ID}",
        "model": "bge-reranker-v2-m3",
        "results": [{"index": 0, "relevance_score": 0.98}],
        "usage": _TEXT_USAGE,
    },
    "post /v1/score": {
        "id": f"score-{_ID}",
        "object": "list",
        "created": _TIME,
        "model": "bge-reranker-v2-m3",
        "data": [{"object": "score", "index": 0, "score": 0.98}, {"object": "score", "index": 1, "score": 0.01}],
        "usage": _TEXT_USAGE,
    },
    "post /v1/files": _FILE,
    "get /v1/files": _PAGE | {"data": [_FILE], "first_id": _FILE["id"], "last_id": _FILE["id"]},
    "get /v1/files/{id}": _FILE,
    "delete /v1/files/{id}": {"id": _FILE["id"], "object": "file", "deleted": True},
    "post /v1/batches": _BATCH,
    "get /v1/batches": _PAGE | {"data": [_BATCH], "first_id": _BATCH["id"], "last_id": _BATCH["id"]},
    "get /v1/batches/{id}": _BATCH,
    "post /v1/batches/{id}/cancel": _BATCH | {"status": "cancelling", "cancelling_at": _TIME + 60},
    "get /admin/batches": {"object": "list", "data": [_ADMIN_BATCH]},
    "get /admin/batches/{id}": _ADMIN_BATCH,
    "post /admin/batches/{id}/cancel": _ADMIN_BATCH,
    "post /tokenize": {"count": 3, "max_model_len": 2048, "tokens": [40, 41, 42]},
    "post /detokenize": {"prompt": "GHI"},
    "get /v1/models": {"object": "list", "data": [_SERVED]},
    "get /v1/models/{name}": _SERVED,
    "get /v1/usage": {"object": "list", "data": [_USED]},
    "post /admin/logins": {"actor": f"key:{_KEY_ID}", "object": "login"},
    "get /admin/teams": {"data": [_STORED_TEAM]},
    "post /admin/teams": _STORED_TEAM,
    "get /admin/teams/{name}": _STORED_TEAM,
    "patch /admin/teams/{name}": _STORED_TEAM | {"weight": 2.0},
    "delete /admin/teams/{name}": {"deleted": "support", "keys": 1},
    "get /admin/keys": {"data": [_KEY]},
    "post /admin/keys": _CREATED_KEY,
    "get /admin/keys/{id}": _KEY,
    "delete /admin/keys/{id}": _KEY | {"ends": float(_TIME), "kept": True},
    "post /admin/keys/{id}/rotate": _CREATED_KEY,
    "get /admin/answers": _PAGE | {"data": [_CURATED]},
    "post /admin/answers": _PAGE | {"data": [_CURATED]},
    "post /admin/answers/pin": _CURATED,
    "get /admin/answers/{id}": _CURATED,
    "patch /admin/answers/{id}": _CURATED,
    "delete /admin/answers/{id}": {"deleted": _ID},
    "post /v1/feedback": {"object": "feedback", "id": _ID, "rating": "down", "withheld": False},
    "get /admin/feedback": _PAGE | {"data": [_FEEDBACK]},
    "post /admin/feedback/{id}/accept": _CURATED,
    "post /admin/forget": {"answers": 3, "responses": 0, "feedback": 1, "batch_lines": 0},
    "delete /admin/cache/{key}": {"deleted": "8c5f0e6b4a7d"},
    "get /health/live": _READY,
    "get /health/ready": _READY,
    "get /health": _READY,
    "get /ping": _READY,
    "get /version": {"version": "0.1.0"},
}
"""Bodies of successful responses, by method and path."""


def of(operation: Operation, values: Mapping[str, Any]) -> dict[str, Any]:
    """The field `examples` of an operation's request or response; empty if there is none."""
    name = f"{operation.method} {operation.path}"
    return {"examples": {"example": {"value": values[name]}}} if name in values else {}
