"""Generated requests. A seed fixes them, so that another server, or the planner, gets the same ones."""

import random
from collections import deque
from dataclasses import dataclass, field

from cluster.bench.lengths import Lengths

_MAX_REPEATABLE = 256
"""The most recent questions, from which repeated ones are drawn."""
_WORDS = (
    *("the", "of", "and", "to", "in", "is", "it", "on", "as", "at", "by", "or", "we", "be", "an", "if", "so"),
    *("no", "up", "he", "me", "do", "go", "my", "us", "all", "for", "are", "but", "not"),
)
"""Short words that are single tokens in most vocabularies, so that a text's length in tokens is known."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of workload.

    repeated: share of requests that repeat a recent question. prefix: tokens of a system prompt; `prefixes`: how many
    different ones there are. turns: requests per conversation, each with the whole conversation before it.
    """

    prompt: Lengths
    output: Lengths
    repeated: float = 0.0
    prefix: int = 0
    prefixes: int = 1
    turns: int = 1


@dataclass(frozen=True, slots=True)
class Scale:
    """How a server's tokenizer and template count: tokens = fixed + per_word * words."""

    fixed: float
    per_word: float

    def words(self, tokens: float, *, first: bool) -> int:
        """The number of words that take this many tokens. first: of a conversation, which the template adds to."""
        return max(1, round((tokens - (self.fixed if first else 0)) / self.per_word))


@dataclass(slots=True)
class Conversation:
    """A conversation. question: a number; equal ones have the same words. prefix: of its system prompt; -1: none."""

    session: int
    question: int
    prefix: int
    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    turn: int = 0
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def prompt(self) -> int:
        return self.prompts[self.turn]

    @property
    def output(self) -> int:
        return self.outputs[self.turn]


class WorkloadSampler:
    """Draws the requests of a workload, one after the other."""

    def __init__(self, workload: Workload, seed: int, words: str, scale: Scale) -> None:
        """words: a further seed of the words, but not of the lengths: servers whose caches must not share questions
        get other words of the same lengths."""
        self._workload, self._scale = workload, scale
        self._rng = random.Random(seed)
        self._words = f"{seed}/{words}"
        self._recent: deque[Conversation] = deque(maxlen=_MAX_REPEATABLE)
        self._waiting: deque[Conversation] = deque()
        self._sessions = self._questions = 0

    @property
    def needs_answers(self) -> bool:
        """Whether the text of answers is needed, because it is part of the next request."""
        return self._workload.turns > 1

    def next(self) -> Conversation:
        """A conversation whose messages end with the next question: one that was answered before, or a new one."""
        conversation = self._waiting.popleft() if self._waiting else self._start()
        name, first = f"{conversation.question}/{conversation.turn}", conversation.turn == 0
        text = self._text(name, conversation.prompt, first=first)
        conversation.messages.append({"role": "user", "content": text})
        return conversation

    def answered(self, conversation: Conversation, text: str) -> None:
        """Adds the answer; the conversation continues if it has further turns."""
        conversation.turn += 1
        if conversation.turn < len(conversation.prompts):
            conversation.messages.append({"role": "assistant", "content": text or "so"})
            self._waiting.append(conversation)

    def _start(self) -> Conversation:
        rng, workload = self._rng, self._workload
        self._sessions += 1
        repeats = rng.random() < workload.repeated
        if repeats and self._recent:
            earlier = rng.choice(self._recent)
            prompts, outputs = earlier.prompts[:1], earlier.outputs[:1]
            conversation = Conversation(self._sessions, earlier.question, earlier.prefix, prompts, outputs)
        else:
            self._questions += 1
            prompts = tuple(workload.prompt.draw(rng) for _ in range(workload.turns))
            outputs = tuple(workload.output.draw(rng) for _ in range(workload.turns))
            prefix = rng.randrange(workload.prefixes) if workload.prefix else -1
            conversation = Conversation(self._sessions, self._questions, prefix, prompts, outputs)
            self._recent.append(conversation)
        if conversation.prefix >= 0:
            text = self._text(f"prefix {conversation.prefix}", workload.prefix, first=False)
            conversation.messages.append({"role": "system", "content": text})
        return conversation

    def _text(self, name: str, tokens: int, *, first: bool) -> str:
        return words(self._scale.words(tokens, first=first), f"{self._words}/{name}")


def words(count: int, seed: str) -> str:
    """This many words, drawn with the seed."""
    return " ".join(random.Random(seed).choices(_WORDS, k=count))
