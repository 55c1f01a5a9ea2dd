"""A sequence that the engine computes."""

from typing import Any

from deployments.common.messages import EngineRequest


class Sequence:
    """A sequence in the pipeline: its handle, and its tokens so far."""

    __slots__ = (
        *("cached_tokens", "cancelled", "handle", "keys", "namespace", "own_cached_tokens", "prefilled"),
        *("repeated", "stepped", "tokens", "top_logprobs"),
    )

    def __init__(self, handle: Any, request: EngineRequest, keys: list[bytes], cached: tuple[int, int]) -> None:
        """cached: as `Admission.joined` returns it."""
        self.handle = handle
        self.namespace = request.namespace
        self.tokens = list(request.prompt_ids)
        self.keys = keys
        self.cached_tokens, self.own_cached_tokens = cached
        self.prefilled = False
        """Whether the prompt is computed, so that a token was generated."""
        self.stepped = False
        """Whether the last step generated a token, so that all earlier tokens are computed."""
        self.cancelled = False
        self.top_logprobs = request.sampling.top_logprobs
        self.repeated = 0
        """Tokens that are generated again, and are known to the router."""
