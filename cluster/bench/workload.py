"""What is asked: drawn from a seed, so that another server, or the planner, gets the very same."""

import random
from collections import deque
from dataclasses import dataclass, field

from cluster.bench.lengths import Lengths

_REMEMBERED = 256
"""Questions that may be asked again: the last ones."""
_WORDS = (
    *("the", "of", "and", "to", "in", "is", "it", "on", "as", "at", "by", "or", "we", "be", "an", "if", "so"),
    *("no", "up", "he", "me", "do", "go", "my", "us", "all", "for", "are", "but", "not"),
)
"""Short words, each a token of its own in most vocabularies, so that the length of a text is known in tokens."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Kinds of requests. repeated: share that asks one of the last questions again. prefix: tokens of a system prompt,
    of which there are `prefixes`. turns: requests of a conversation, each with all that was said before it."""

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
        """Words that make so many tokens. first: of a conversation, with all that the template puts around it."""
        return max(1, round((tokens - (self.fixed if first else 0)) / self.per_word))


@dataclass(slots=True)
class Conversation:
    """A conversation, and what has been said in it. question: equal ones are asked in equal words."""

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
    """Requests of a workload, one after the other."""

    def __init__(self, workload: Workload, seed: int, words: str, scale: Scale) -> None:
        """words: whatever else the words are drawn from; the lengths are not, so that servers whose caches must not
        know each other's questions get questions of the same lengths."""
        self._workload, self._scale = workload, scale
        self._chance = random.Random(seed)
        self._words = f"{seed}/{words}"
        self._last: deque[Conversation] = deque(maxlen=_REMEMBERED)
        self._open: deque[Conversation] = deque()
        self._sessions = self._questions = 0

    @property
    def talks(self) -> bool:
        """Whether answers are needed for what comes after them."""
        return self._workload.turns > 1

    def next(self) -> Conversation:
        """The next turn of a conversation that waits for it, or a new one; its messages end with the question."""
        conversation = self._open.popleft() if self._open else self._begin()
        name, first = f"{conversation.question}/{conversation.turn}", conversation.turn == 0
        text = self._text(name, conversation.prompt, first=first)
        conversation.messages.append({"role": "user", "content": text})
        return conversation

    def answered(self, conversation: Conversation, text: str) -> None:
        """Notes the answer; the conversation goes on where it has further turns."""
        conversation.turn += 1
        if conversation.turn < len(conversation.prompts):
            conversation.messages.append({"role": "assistant", "content": text or "so"})
            self._open.append(conversation)

    def _begin(self) -> Conversation:
        chance, kinds = self._chance, self._workload
        self._sessions += 1
        again = chance.random() < kinds.repeated
        if again and self._last:
            known = chance.choice(self._last)
            prompts, outputs = known.prompts[:1], known.outputs[:1]
            made = Conversation(self._sessions, known.question, known.prefix, prompts, outputs)
        else:
            self._questions += 1
            prompts = tuple(kinds.prompt.draw(chance) for _ in range(kinds.turns))
            outputs = tuple(kinds.output.draw(chance) for _ in range(kinds.turns))
            prefix = chance.randrange(kinds.prefixes) if kinds.prefix else -1
            made = Conversation(self._sessions, self._questions, prefix, prompts, outputs)
            self._last.append(made)
        if made.prefix >= 0:
            text = self._text(f"prefix {made.prefix}", kinds.prefix, first=False)
            made.messages.append({"role": "system", "content": text})
        return made

    def _text(self, name: str, tokens: int, *, first: bool) -> str:
        return words(self._scale.words(tokens, first=first), f"{self._words}/{name}")


def words(count: int, seed: str) -> str:
    """So many words, drawn from the seed."""
    return " ".join(random.Random(seed).choices(_WORDS, k=count))
