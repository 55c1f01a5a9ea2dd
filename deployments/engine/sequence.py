"""A sequence that the engine computes: its tokens, its KV blocks, and how far it is."""

import numpy as np
import numpy.typing as npt

from deployments.common.messages import EngineRequest, TokenLogprobs
from deployments.common.prefix import BLOCK_TOKENS, BlockKeys
from deployments.engine.drafts import Draft
from deployments.engine.grammar import Matcher
from deployments.engine.logprobs import next_token_logprobs
from deployments.engine.sampling_state import SamplingState


class Sequence:
    """Tokens of a prompt and its completion, and the KV blocks that hold the computed ones.

    number: the stream's. arrival: counts sequences; later ones have larger numbers. tokens: prompt and completion.
    computed: how many of the tokens have their keys and values in the blocks of `table`. cached, own_cached: tokens of
    the prompt that were found in the prefix cache, and those of them that the request's namespace has had computed.
    """

    __slots__ = (
        *("_keys", "admitted", "arrival", "cached", "computed", "draft", "matcher", "number", "own_cached"),
        *("prompt_length", "prompt_logprobs", "request", "sampling", "table", "tokens"),
    )

    def __init__(
        self,
        number: int,
        arrival: int,
        request: EngineRequest,
        sampling: SamplingState,
        draft: Draft | None = None,
        salt: bytes = b"",
    ) -> None:
        """draft: guesses the next tokens; None: nothing does. salt: sequences share blocks only with the same salt."""
        self.number = number
        self.arrival = arrival
        self.request = request
        self.sampling = sampling
        self.matcher: Matcher | None = None
        """Of the grammar that constrains the completion."""
        self.draft = draft
        self.tokens = list(request.prompt_ids)
        self.prompt_length = len(self.tokens)
        self.computed = 0
        self.admitted = False
        """Whether it has a place among the running sequences, and so may have KV blocks."""
        self.table: list[int] = []
        self.cached = self.own_cached = 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        self._keys = BlockKeys(self.tokens, salt)

    @property
    def importance(self) -> tuple[int, int]:
        """Sorts the most important sequence first."""
        return self.request.priority, self.arrival

    @property
    def pending(self) -> int:
        """Tokens still to compute before the next one can be sampled. 1: the sequence decodes."""
        return len(self.tokens) - self.computed

    @property
    def reports_prompt(self) -> bool:
        """Whether log probabilities of the prompt are still to compute."""
        return self.request.prompt_logprobs and len(self.prompt_logprobs) < self.prompt_length - 1

    def report_prompt(self, count: int, logits: npt.NDArray[np.float32]) -> None:
        """Appends the log probabilities of the prompt's tokens that these rows of logits are before, the last ones of
        `count` computed tokens. After a preemption some rows are computed again."""
        first = len(self.prompt_logprobs) - self.computed
        if first >= 0:
            tokens = self.tokens[self.computed + first + 1 : min(self.computed + count + 1, self.prompt_length)]
            top = self.request.sampling.top_logprobs or 0
            self.prompt_logprobs += next_token_logprobs(logits[first : first + len(tokens)], tokens, top)

    @property
    def generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def keys(self) -> list[bytes]:
        """Keys of the whole blocks of `tokens`."""
        return self._keys.keys

    @property
    def next_key(self) -> bytes | None:
        """Key of the next whole block, if that may come from the prefix cache; None within a block, and in the last."""
        index, begun = divmod(self.computed, BLOCK_TOKENS)
        # The last token is always computed, as its logits are needed.
        if begun or (index + 1) * BLOCK_TOKENS >= len(self.tokens) or self.reports_prompt:
            return None
        return self._keys.keys[index]

    @property
    def left(self) -> int:
        """Tokens that the completion may still get."""
        return self.request.max_new_tokens - self.generated

    def missing_blocks(self, count: int) -> int:
        """How many blocks `table` lacks for `count` more computed tokens; negative if it has more than that."""
        return -(-(self.computed + count) // BLOCK_TOKENS) - len(self.table)

    def append(self, tokens: list[int]) -> None:
        """Adds sampled tokens."""
        self.tokens += tokens
        self._keys.extend(tokens)
        if self.draft is not None:
            self.draft.append(tokens)
