"""Token ids of one completion, as they come, read into thinking, answer and tool calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from deployments.common.types import Choice, FinishReason, TokenLogprob, ToolDelta
from deployments.generation.tool_formats import MARKERS
from deployments.generation.tool_parser import ToolCallParser, begins

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """What some tokens have brought."""

    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[ToolDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Vocabulary:
    """A tokenizer, and the tokens in it that mean something to a reader."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.think, self.end_think = tokenizer.token_to_id(THINK), tokenizer.token_to_id(END_THINK)
        self.markers = {number: text for text in MARKERS if (number := tokenizer.token_to_id(text)) is not None}
        self.bytes_of = lru_cache(maxsize=4096)(self._bytes_of)
        self._special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    @property
    def thinks(self) -> bool:
        return self.think is not None and self.end_think is not None

    def is_special(self, token: int) -> bool:
        """Whether decoding leaves the token out."""
        return token in self._special

    def _bytes_of(self, token: int) -> tuple[int, ...]:
        """UTF-8 of a token: of byte-level BPE and of SentencePiece, which hides spaces behind U+2581."""
        text = self.tokenizer.id_to_token(token) or ""
        if text.startswith("<0x") and text.endswith(">") and len(text) == 6:
            return (int(text[3:5], 16),)
        if all(one in _BYTE_OF for one in text):
            return tuple(_BYTE_OF[one] for one in text)
        return tuple(text.replace("\u2581", " ").encode())


class OutputParser:
    """Reads one completion.

    Text comes out in whole characters, however tokens cut them. White space around the thinking and before the
    answer is dropped. Stop strings end the answer (they do not look into the thinking) and are not part of it.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        thinking: bool | None,
        stop: Sequence[str] = (),
        calls: ToolCallParser | None = None,
    ) -> None:
        """thinking: whether the completion begins inside the thinking; None: there is none, all is the answer, marks
        and white space too. calls: reads tool calls; None: all is text."""
        self._vocabulary = vocabulary
        self._raw = thinking is None
        self.thinking = bool(thinking)
        self._stop = stop
        self._calls = calls
        self._stream = DecodeStream(skip_special_tokens=True)
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._unsure: list[TokenLogprob] = []
        self._held = ""
        self._began = False
        self.reasoning_tokens = 0
        self.tokens = 0
        self.stopped = False

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def text(self) -> str:
        return "".join(self._text)

    def choice(self, finish: str) -> Choice:
        """All that was read."""
        calls = tuple(self._calls.calls) if self._calls else ()
        why: FinishReason = "length" if finish == "length" else "tool_calls" if calls else "stop"
        return Choice(self.reasoning, self.text, why, calls, tuple(self._logprobs))

    def feed(self, ids: Sequence[int], logprobs: Sequence[float] = ()) -> ParsedDelta:
        """Takes new ids, and their logarithms of probability where there are any. After a stop string, nothing."""
        reasoning, text, known = "", "", len(self._logprobs)
        for place, token in enumerate(ids):
            if self.stopped:
                break
            self.tokens += 1
            if self.thinking:
                self.reasoning_tokens += 1
                if token == self._vocabulary.end_think:
                    self._turn(thinking=False)
                else:
                    reasoning += self._think_on(self._decode(token))
            elif token == self._vocabulary.think and not (self._raw or self._began or self._reasoning):
                self.reasoning_tokens += 1
                self._turn(thinking=True)
            elif token == self._vocabulary.end_think and not self._raw:
                continue  # its thinking was closed for it, and it goes on to close it itself
            else:
                decoded = self._decode(token)
                text += self._answer_on(decoded)
                if logprobs and not self._vocabulary.is_special(token):
                    self._add_logprob(TokenLogprob(self._vocabulary.bytes_of(token), logprobs[place]), decoded)
        text, tools = self._without_calls(text, last=False)
        return ParsedDelta(reasoning, text, tools, tuple(self._logprobs[known:]))

    def finish(self) -> ParsedDelta:
        """The end of the answer that was held back because a stop string or a call might have begun there."""
        rest = "" if self.thinking or self.stopped else self._held
        self._held = ""
        tokens = tuple(self._unsure) if rest else ()
        self._logprobs += tokens
        text, tools = self._without_calls(rest, last=True)
        return ParsedDelta(text=text, tool_calls=tools, logprobs=tokens)

    def _add_logprob(self, token: TokenLogprob, decoded: str) -> None:
        """Adds a token of the answer. White space before the answer is not a part of it."""
        self._unsure.append(token)
        if self._began or self._raw:
            self._logprobs += self._unsure
        elif not decoded or self._held:
            return  # the first half of a character, or of a stop string: the next token decides
        self._unsure = []

    def _without_calls(self, text: str, *, last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        tools: tuple[ToolDelta, ...] = ()
        if self._calls is not None and (text or last):
            text, tools = self._calls.feed(text, last=last)
        if text:
            self._text.append(text)
        return text, tools

    def _decode(self, token: int) -> str:
        if token in self._vocabulary.markers:
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._vocabulary.markers[token]
        return self._stream.step(self._vocabulary.tokenizer, token) or ""

    def _turn(self, *, thinking: bool) -> None:
        self.thinking = thinking
        self._held = ""  # white space between thinking and answer
        self._stream = DecodeStream(skip_special_tokens=True)

    def _think_on(self, text: str) -> str:
        text = self._held + text
        if not self._reasoning:
            text = text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        if kept:
            self._reasoning.append(kept)
        return kept

    def _answer_on(self, text: str) -> str:
        text = self._held + text
        if not self._began and not self._raw:
            text = text.lstrip()
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            kept, self._held, self.stopped = text[: min(found)], "", True
        else:
            hold = max((begins(text, stop) for stop in self._stop), default=0)
            kept, self._held = text[: len(text) - hold], text[len(text) - hold :]
        self._began = self._began or bool(kept)
        return kept


def _bytes_by_character() -> dict[str, int]:
    """GPT-2's table: which character byte-level BPE writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    shifted = (byte for byte in range(256) if byte not in plain)
    return table | {chr(256 + n): byte for n, byte in enumerate(shifted)}


_BYTE_OF = _bytes_by_character()
