"""Turns texts into token ids beside the event loop, and knows the longest text that can fit a model's context."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import BPE

from deployments.common.errors import PromptTooLong

LARGE_CHARACTERS = 16_384
"""A longer text takes the tokenizer milliseconds, while the event loop has other streams to serve."""


class TextEncoder:
    """A model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        """max_tokens: the model's context."""
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._longest = _longest_token(tokenizer)
        self._max_characters = max_tokens * self._longest if self._longest else None

    def check_characters(self, characters: int, param: str) -> None:
        """Raises ApiError 400 for a text whose tokens cannot fit the context, however few they are."""
        if self._max_characters is not None and characters > self._max_characters:
            message = (
                f"The text has {characters} characters. The model's {self._max_tokens} tokens of context hold at most "
                f"{self._max_characters}. Send a shorter one."
            )
            raise PromptTooLong(message, param, -(-characters // self._longest), self._max_tokens)

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of each text. special: with the tokens that the tokenizer adds around a text."""
        return token_ids(self._tokenizer, texts, special=special)


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """Token ids of each text. special: with the tokens that the tokenizer adds around a text.

    For a large text, call it in a thread: it then stops no other thread.
    """
    if len(texts) == 1 and len(texts[0]) <= LARGE_CHARACTERS:
        return [list(tokenizer.encode(texts[0], add_special_tokens=special).ids)]
    # `encode` holds the GIL until it ends, whatever thread it runs in: 4 s for 1.5 MB. `encode_batch_fast` releases
    # it, and takes a third of the time, because it does not compute where each token stands (tokenizers 0.22).
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
    return [list(encoding.ids) for encoding in encodings]


def _longest_token(tokenizer: Tokenizer) -> int:
    """Characters of the longest token; 0 if a token may stand for text of any length, as an unknown word does.

    A byte-level vocabulary writes each byte as a character, so the text of a token never has more characters.
    """
    model = tokenizer.model
    if not isinstance(model, BPE) or (model.unk_token is not None and not model.byte_fallback):
        return 0
    return max(map(len, tokenizer.get_vocab(with_added_tokens=True)))
