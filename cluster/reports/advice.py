"""What administrators can do about each error, by its code."""

_BY_CODE = {
    "admin_key_needed": "Somebody asks for administration without an admin key: create one for whoever needs it.",
    "answer_not_found": "A client votes on an answer that its team did not get, or got more than a day ago.",
    "context_length_exceeded": "Prompts are longer than the model's context: shorten them, or serve a model with a "
    "longer context.",
    "disk_full": "The disk of data_dir is full: make room.",
    "engine_failed": "Engines fail on this model: look at `dray logs` and at restarts in `dray status`.",
    "feedback_unavailable": "The teams' Redis does not answer: check it with `dray doctor`.",
    "host_not_allowed": "Requests come through a name that Dray does not know: add it to server.allowed_hosts.",
    "insufficient_quota": "The team's tokens or money of the month are used up: raise its limit with `dray teams set`.",
    "internal_error": "Dray failed: look for the request's id in `dray logs`, and report the error.",
    "invalid_api_key": "A client has a wrong, expired or revoked key: create or rotate one (`dray keys list`).",
    "model_not_allowed": "The team may not use this model: allow it with `dray teams set TEAM --model NAME`.",
    "model_not_found": "A client asks for a model that is not served: correct its name, or add it as an alias "
    "(model.aliases).",
    "no_chat_page": "Somebody opens the chat page, which is not installed: install the extra `page`.",
    "not_a_teams_key": "A client uses an admin key to ask a model: give it a team's key.",
    "not_cached": "The client wants stored answers only, and there was none: fill the cache with `dray warm`.",
    "not_ready": "A model has no running replica: look at `dray status`.",
    "origin_not_allowed": "A web page of another site asks: add it to cors.origins if it may.",
    "overloaded": "The queue is full: add replicas (model.max_replicas), or limit the team that floods.",
    "rate_limit_exceeded": "The team asks more than its quota: raise it with `dray teams set`, or have the client wait "
    "for Retry-After.",
    "request_timeout": "Requests take longer than limits.request_timeout_s: ask for fewer tokens, or add replicas.",
    "request_too_large": "Bodies are larger than limits.body_bytes: send less, or raise it.",
    "responses_unavailable": "The answers' Redis does not answer, so stored responses cannot be read: check it with "
    "`dray doctor`.",
    "teams_unknown": "The teams' Redis has not answered since the router started: check it with `dray doctor`.",
    "teams_unreachable": "The teams' Redis does not answer: check it with `dray doctor`.",
    "unsupported_media_type": "The client does not send JSON: have it set Content-Type: application/json.",
}
_BY_STATUS = {
    400: "The request is wrong: its error names the field at fault, which the client has to correct.",
    401: "The key is missing or wrong: give the client a valid one.",
    403: "The client may not do this with its key.",
    404: "The client asks for something that does not exist: correct its URL or id.",
    405: "The client uses the wrong method for this path.",
    408: "The request took too long to arrive or to be answered.",
    409: "Somebody else has changed the same thing: the client has to read it again.",
    413: "The request is too large: the client has to send less.",
    415: "The client has to send JSON.",
    421: "The client uses a host name that Dray does not know.",
    429: "A limit is reached: have the client wait for Retry-After, or raise the limit.",
    503: "Dray is overloaded or not ready: look at `dray status`.",
    504: "There was no stored answer.",
}
_CLIENT = "The client's request is refused: its error message says why."
_SERVER = "Dray failed: look for the request's id in `dray logs`."


def advice(status: int, code: str) -> str:
    """What to do about an error, in a sentence. code: as in its error object; empty: unknown."""
    return _BY_CODE.get(code) or _BY_STATUS.get(status) or (_SERVER if status >= 500 else _CLIENT)
