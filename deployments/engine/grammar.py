"""Grammars: which tokens a constrained stream may go on with, by llguidance."""

import threading
from collections import deque
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from deployments.common.grammars import CLIENT_LIMITS, LIMITS, MAX_CHARACTERS, first_line
from deployments.common.messages import Grammar
from deployments.engine.token_bytes import TokenBytes

Mask = NDArray[np.uint32]
"""Allowed tokens: word `token // 32` has bit `token % 32` set."""


class GrammarError(Exception):
    """A grammar that cannot be followed, or not within its bounds; or a token that it does not allow."""


class GrammarCompiler:
    """Compiles grammars for one model. Safe to call from several threads."""

    def __init__(self, model_dir: str | Path, vocabulary: int, stop_ids: Collection[int]) -> None:
        """vocabulary: the model's logits a token, which may be more than its tokenizer's tokens. stop_ids: tokens that
        end a completion."""
        self._folder = Path(model_dir)
        self._vocabulary = vocabulary
        self._stop_ids = sorted(stop_ids)
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> "Matcher":
        """A matcher at the grammar's start. Raises GrammarError.

        The first call reads the tokenizer, which takes more than a second for 150,000 tokens; that holds the
        interpreter for 0.5 s at most.
        """
        if len(grammar.text) > MAX_CHARACTERS:
            raise GrammarError(f"the grammar has more than {MAX_CHARACTERS} characters")
        with self._lock:
            tokenizer = self._tokenizer
        limits = CLIENT_LIMITS if grammar.foreign else LIMITS
        matcher = Matcher(LLMatcher(tokenizer, grammar.text, log_level=0, limits=limits), self._vocabulary)
        # The first mask is the slowest: it makes most of the lexer's states.
        matcher.mask()
        return matcher

    @cached_property
    def tokens(self) -> TokenBytes:
        """The model's vocabulary."""
        return TokenBytes(self._folder / "tokenizer.json", self._vocabulary, self._stop_ids[0])

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        # In two parts, as each holds the interpreter: the vocabulary, and its division into tokens that are alike.
        tokenizer = LLTokenizer(self.tokens, eos_token=self._stop_ids, slices=[])  # type: ignore[arg-type]
        return tokenizer.with_slices(LLTokenizer.general_slices())


class Matcher:
    """The state of one stream in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._forced = deque[int]()
        self._check()

    @property
    def finished(self) -> bool:
        """Whether the grammar allows nothing but the end."""
        return self._matcher.is_stopped()

    def mask(self) -> Mask:
        """The tokens that may come next. Raises GrammarError."""
        self._check()
        words = (self._vocabulary + 31) // 32
        self._look_ahead()
        if self._forced:
            mask = np.zeros(words, np.uint32)
            mask[self._forced[0] // 32] = 1 << (self._forced[0] % 32)
            return mask
        mask = np.empty(words, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        # A mask that took too much is not an exception there, but a mask that allows only the end.
        self._check()
        return mask

    def masks(self, guesses: Sequence[int]) -> list[Mask]:
        """The masks before each of the guessed tokens and after the last; none after a guess that is not allowed.

        Raises GrammarError.
        """
        masks, taken = [self.mask()], 0
        forced = self._forced.copy()
        for guess in guesses:
            # llguidance would take any token that fits, and an id outside the vocabulary for a fault of its own.
            if not 0 <= guess < self._vocabulary or not masks[-1][guess // 32] >> (guess % 32) & 1:
                break
            if not self._matcher.try_consume_tokens([guess]):
                break
            taken += 1
            self._advance(guess)
            masks.append(self.mask())
        self._matcher.rollback(taken)
        self._forced = forced
        self._check()
        return masks

    def consume(self, tokens: Sequence[int]) -> None:
        """Goes on by these tokens. Raises GrammarError where one is not allowed."""
        for token in tokens:
            if not self._matcher.consume_token(token):
                self._check()
                raise GrammarError(f"the grammar does not allow token {token}")
            self._advance(token)

    def forced(self) -> list[int]:
        """The tokens that must come next, as far as there is no choice. Raises GrammarError."""
        self._look_ahead()
        return list(self._forced)

    def _look_ahead(self) -> None:
        if not self._forced and not self.finished:
            # Kept until they are there, as this takes the whole text that is forced, and tokenizes it.
            self._forced.extend(self._matcher.compute_ff_tokens())
            self._check()

    def _advance(self, token: int) -> None:
        if self._forced and self._forced[0] == token:
            self._forced.popleft()
        else:
            self._forced.clear()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(first_line(self._matcher.get_error()))
