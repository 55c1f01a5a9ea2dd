"""Parses the token ids of one completion, as they arrive, into thinking, answer and tool calls."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from deployments.common.byte_level import BYTE_OF
from deployments.common.messages import TokenLogprobs
from deployments.common.types import Choice, FinishReason, LikelyToken, PromptToken, TokenLogprob, ToolDelta
from deployments.generation.control_tokens import END_THINK, THINK
from deployments.generation.tool_formats import MARKERS
from deployments.generation.tool_parser import ToolCallParser, begins


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """What is new in a completion after some tokens."""

    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[ToolDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Vocabulary:
    """A tokenizer, and those of its tokens that structure a completion.

    think, end_think: None if the model does not think. markers: texts of tool calls' markers by token id.
    special_markers: the ids of those of them that are special tokens, by their text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.think, self.end_think = tokenizer.token_to_id(THINK), tokenizer.token_to_id(END_THINK)
        self.markers = {token: text for text in MARKERS if (token := tokenizer.token_to_id(text)) is not None}
        self.bytes_of = lru_cache(maxsize=4096)(self._bytes_of)
        self._added = tokenizer.get_added_tokens_decoder()
        self._special = {token for token, added in self._added.items() if added.special}
        self._byte_level = tokenizer.decoder is not None and b'"ByteLevel"' in tokenizer.decoder.__getstate__()
        self.special_markers = {text: token for token, text in self.markers.items() if token in self._special}

    @property
    def thinks(self) -> bool:
        return self.think is not None and self.end_think is not None

    def is_special(self, token: int) -> bool:
        """Whether decoding drops the token."""
        return token in self._special

    def logprob_of(self, token: int, logprobs: TokenLogprobs, *, ids_as_text: bool = False) -> TokenLogprob:
        """A token and the most likely ones in its place, with their texts. ids_as_text: as vLLM writes ids."""
        bytes_of = _id_as_text if ids_as_text else self.bytes_of
        top = tuple(LikelyToken(bytes_of(other), logprob) for other, logprob in logprobs.top)
        return TokenLogprob(bytes_of(token), logprobs.chosen, top)

    def prompt_token(self, token: int, logprobs: TokenLogprobs, alternatives: int) -> tuple[PromptToken, ...]:
        """A token of a prompt, and the most likely ones in its place."""
        ranks = {other: rank for rank, (other, _) in enumerate(logprobs.top, 1)}
        likely = [(other, logprob) for other, logprob in logprobs.top[:alternatives] if other != token]
        return tuple(
            PromptToken(other, bytes(self.bytes_of(other)).decode(errors="replace"), logprob, ranks.get(other))
            for other, logprob in ((token, logprobs.chosen), *likely)
        )

    def _bytes_of(self, token: int) -> tuple[int, ...]:
        """The token's UTF-8. SentencePiece writes bytes as `<0x0A>` and spaces as U+2581; byte-level BPE writes each
        byte as a character."""
        text = self.tokenizer.id_to_token(token) or ""
        if token in self._added:
            return tuple(text.encode())
        if self._byte_level:
            return tuple(BYTE_OF[character] for character in text if character in BYTE_OF)
        if text.startswith("<0x") and text.endswith(">") and len(text) == 6:
            return (int(text[3:5], 16),)
        return tuple(text.replace("\u2581", " ").encode())


def _id_as_text(token: int) -> tuple[int, ...]:
    return tuple(f"token_id:{token}".encode())


class OutputParser:
    """Parses one completion.

    Deltas have whole characters, however the tokens cut them. White space around the thinking and before the answer is
    dropped. A stop string ends the answer and is not part of it; in the thinking, stop strings have no effect.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        thinking: bool | None,
        begun: bool = False,
        after: Sequence[int] = (),
        stop: Sequence[str] = (),
        calls: ToolCallParser | None = None,
        stop_ids: Collection[int] = (),
        include_stop: bool = False,
        ids_as_text: bool = False,
    ) -> None:
        """thinking: whether the completion begins in the thinking; None: it is a raw text, to which thinking marks and
        white space belong. begun: the completion goes on from a text of the answer, so that white space at its start
        belongs to it, and no thinking comes. after: token ids before the completion, if both are one text: tokenizers
        may drop a space at the start of a text. calls: finds tool calls; None: there are none. stop_ids: the request's
        own. include_stop: what ends the answer belongs to it. ids_as_text: tokens of log probabilities have their id
        for a text."""
        self._vocabulary = vocabulary
        self._raw = thinking is None
        self.thinking = bool(thinking)
        self._stop = stop
        self._calls = calls
        self._stop_ids = stop_ids
        self._include_stop = include_stop
        self._ids_as_text = ids_as_text
        self._stream = DecodeStream(list(after), skip_special_tokens=True)
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._undecided: list[TokenLogprob] = []
        self._has_prompt = False
        self._held = ""
        self._began = begun
        self.reasoning_tokens = 0
        self.tokens = 0
        self.stopped_by = ""
        self.stop_token: int | None = None
        """Of the request's own, that has ended the answer."""
        self.ids: list[int] = []
        """All tokens so far."""
        self.prompt: tuple[tuple[PromptToken, ...], ...] = ()

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return bool(self.stopped_by)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def text(self) -> str:
        return "".join(self._text)

    def choice(self, finish: str) -> Choice:
        """The whole completion. finish: why the engine ended it."""
        calls = tuple(self._calls.calls) if self._calls else ()
        reason: FinishReason = "length" if finish == "length" else "tool_calls" if calls else "stop"
        return Choice(self.reasoning, self.text, reason, calls, tuple(self._logprobs), self.stopped_by, self.stop_token)

    def feed(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> ParsedDelta:
        """Parses the next token ids. logprobs: one a token, or none. Ignores everything after a stop string."""
        reasoning, text, first_new = "", "", len(self._logprobs)
        for index, token in enumerate(ids):
            if self.stopped:
                break
            self.tokens += 1
            self.ids.append(token)
            if self.thinking:
                self.reasoning_tokens += 1
                if token == self._vocabulary.end_think:
                    self._switch(thinking=False)
                else:
                    reasoning += self._add_thinking(self._decode(token))
            elif token == self._vocabulary.think and not (self._raw or self._began or self._reasoning):
                self.reasoning_tokens += 1
                self._switch(thinking=True)
            elif token == self._vocabulary.end_think and not self._raw:
                continue  # its thinking was already closed at the limit
            elif token in self._stop_ids and not self._include_stop:
                self.stop_token = token
            else:
                self.stop_token = token if token in self._stop_ids else None
                decoded = self._decode(token)
                text += self._add_answer(decoded)
                if logprobs and (self._has_prompt or not self._vocabulary.is_special(token)):
                    self._add_logprob(self._logprob_of(token, logprobs[index]), decoded)
        text, tools = self._without_calls(text, last=False)
        return ParsedDelta(reasoning, text, tools, tuple(self._logprobs[first_new:]))

    def feed_prompt(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> ParsedDelta:
        """Adds the prompt's tokens before those of the completion. logprobs: one a token, but none for the first.

        From then on, special tokens are reported too: who scores prompts counts on one entry for each token.
        """
        self._has_prompt = True
        each = zip(ids, (TokenLogprobs(0.0), *logprobs), strict=True)
        tokens = tuple(self._logprob_of(token, reported) for token, reported in each)
        self._logprobs += tokens
        return ParsedDelta(logprobs=tokens)

    def add_prompt(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs], alternatives: int) -> None:
        """Notes the log probabilities of the prompt's tokens. logprobs: one a token, but none for the first."""
        after_first = zip(ids[1:], logprobs, strict=True)
        self.prompt = ((), *(self._vocabulary.prompt_token(token, each, alternatives) for token, each in after_first))

    def finish(self, reason: str) -> ParsedDelta:
        """Ends the completion. Returns the text that was held back because a stop string or call might begin in it.

        reason: why the engine ended it.
        """
        rest = "" if self.thinking or self.stopped else self._held
        self._held = ""
        tokens = tuple(self._undecided) if rest else ()
        self._logprobs += tokens
        text, tools = self._without_calls(rest, last=True, cut=reason == "length")
        return ParsedDelta(text=text, tool_calls=tools, logprobs=tokens)

    def _logprob_of(self, token: int, logprobs: TokenLogprobs) -> TokenLogprob:
        return self._vocabulary.logprob_of(token, logprobs, ids_as_text=self._ids_as_text)

    def _add_logprob(self, token: TokenLogprob, decoded: str) -> None:
        """Adds a token of the answer. White space before the answer is not a part of it."""
        self._undecided.append(token)
        if self._began or self._raw:
            self._logprobs += self._undecided
        elif not decoded or self._held:
            return  # it begins a character, or perhaps a stop string: the next token decides
        self._undecided = []

    def _without_calls(self, text: str, *, last: bool, cut: bool = False) -> tuple[str, tuple[ToolDelta, ...]]:
        tools: tuple[ToolDelta, ...] = ()
        if self._calls is not None and (text or last):
            text, tools = self._calls.feed(text, last=last, cut=cut)
        if text:
            self._text.append(text)
        return text, tools

    def _decode(self, token: int) -> str:
        if token in self._vocabulary.markers:
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._vocabulary.markers[token]
        return self._stream.step(self._vocabulary.tokenizer, token) or ""

    def _switch(self, *, thinking: bool) -> None:
        self.thinking = thinking
        self._held = ""  # white space between thinking and answer
        self._stream = DecodeStream(skip_special_tokens=True)

    def _add_thinking(self, text: str) -> str:
        """Adds text to the thinking. Returns what is new of it; white space at its end is held back."""
        text = self._held + text
        if not self._reasoning:
            text = text.lstrip()
        released = text.rstrip()
        self._held = text[len(released) :]
        if released:
            self._reasoning.append(released)
        return released

    def _add_answer(self, text: str) -> str:
        """Adds text to the answer. Returns what is new of it; an end that may begin a stop string is held back."""
        text = self._held + text
        if not self._began and not self._raw:
            text = text.lstrip()
        if stops := [(index, stop) for stop in self._stop if (index := text.find(stop)) >= 0]:
            index, self.stopped_by = min(stops)
            released, self._held = text[: index + len(self.stopped_by) * self._include_stop], ""
        else:
            held = max((begins(text, stop) for stop in self._stop), default=0)
            released, self._held = text[: len(text) - held], text[len(text) - held :]
        self._began = self._began or bool(released)
        return released
