"""The parts of a file that an answer quotes or rests on, found by the words that both have."""

import re
from collections import Counter
from itertools import pairwise
from math import log

MAX_PASSAGES = 3
_MAX_CHARACTERS = 300
_RUN = 6
"""So many words or Chinese characters in the same order are a quotation."""
_MIN_SHARED, _MIN_SHARE = 4, 0.5
_CHINESE = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_CHINESE}]|[^\W{_CHINESE}]+")
_HEADING = re.compile(r"^#.*$", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])\s|(?<=[。！？；])|\n[ \t]*\n")


def passages(text: str, answer: str) -> tuple[str, ...]:
    """At most MAX_PASSAGES sentences of the text, in its order: those that the answer quotes, or else those most of
    whose words are in the answer. Rare words count for more. None: nothing in the text is like the answer."""
    said = _words(answer)
    sentences = [(sentence, _words(sentence)) for sentence in _sentences(text)]
    runs, terms = _runs(said), set(_terms(said))
    counts = Counter(term for _, words in sentences for term in set(_terms(words)))
    weights = {term: log((len(sentences) + 1) / count) for term, count in counts.items()}
    found = []
    for place, (_, words) in enumerate(sentences):
        own = set(_terms(words))
        shared = own & terms
        share = sum(weights[term] for term in shared) / sum(weights[term] for term in own) if own else 0.0
        is_quoted = not runs.isdisjoint(_runs(words))
        if is_quoted or (len(shared) >= _MIN_SHARED and share >= _MIN_SHARE):
            found.append((is_quoted, share, -place))
    best = sorted(found, reverse=True)[:MAX_PASSAGES]
    return tuple(sentences[-place][0] for _, _, place in sorted(best, key=lambda entry: -entry[2]))


def _sentences(text: str) -> list[str]:
    """The text's sentences, each on one line; lists and tables without full stops are cut at their lines."""
    found: list[str] = []
    for sentence in _END.split(_HEADING.sub(r"\g<0>\n", text)):
        for piece in [sentence] if len(sentence) <= _MAX_CHARACTERS else sentence.splitlines():
            line = " ".join(piece.split())
            found.extend(line[start : start + _MAX_CHARACTERS] for start in range(0, len(line), _MAX_CHARACTERS))
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: list[str]) -> set[tuple[str, ...]]:
    """All sequences of _RUN words."""
    return {tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)}


def _terms(words: list[str]) -> list[str]:
    """Words with a meaning of their own: those of other scripts, and pairs of Chinese characters."""
    pairs = [first + second for first, second in pairwise(words) if len(first) == len(second) == 1]
    return [word for word in words if len(word) > 1 or word.isdigit()] + pairs
