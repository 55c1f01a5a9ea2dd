"""Refuses a tokenizer.json with which a short text could take minutes, or become gigabytes.

Expressions run in Oniguruma, which goes back and tries again where a match fails, in a call that nothing can interrupt.
So each must show by its form that it takes time in proportion to the text: once it has matched any number of
characters, nothing that follows may fail. Each character is then read a bounded number of times.
"""

import base64
import json
import math
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import msgspec

constants: Any = import_module("re._constants")
parser: Any = import_module("re._parser")
"""Python's own parser of expressions, which has no public name and no types."""
_ESCAPE = re.compile(r"\\(?:[pP]\{\^?\w+\}|.)", re.DOTALL)
_UNLIKE = re.compile(r"\(\?#|\{[\d,]*\}[+?]")
"""Comments and repeats of repeats, which Oniguruma and Python read differently."""
_PARTS = re.compile(r"\\.|\[\^|&&|.", re.DOTALL)
_MAX_LENGTH = 64
"""Characters that a repeat may count. One that counts further is taken as endless."""
_MAX_WAYS = 256
"""In which the bounded parts of an expression may match at one place: each may have to be tried."""
_MAX_GROWTH = 64
"""Characters of text for each of a client's. NFKC makes 18 of one; real tokenizers replace a space by one character."""
MAX_WORD = 1000
"""Characters of a word that WordPiece looks up, in time of their square, and of a token of Unigram. Real ones: 100."""
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OTHER, _SUFFIX = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_IDIOMS = {
    **{
        f"{_OTHER}{_UPPER}*{_LOWER}+{suffix}|{_OTHER}{_UPPER}+{_LOWER}*{suffix}": rf"{_OTHER}\p{{L}}+{suffix}"
        for suffix in (_SUFFIX, "")
    },
    r" ?[^(\s|[.,!?…。，、।۔،])]+": r" ?[^.,!?…。，、।۔،]+",
}
"""Parts of the expressions of GPT-4o, Mistral and BLOOM, and others that take as long: in the former, the second
alternative matches what the first has read in vain."""
_CHARACTER = {constants.LITERAL, constants.NOT_LITERAL, constants.ANY, constants.IN, constants.CATEGORY}
_RUN_OF_SPACES = list(parser.parse(r"\s+"))
_END_OF_SPACES = list(parser.parse(r"(?!\S)"))
"""After a run of spaces, it gives back one space at most."""


class _Model(msgspec.Struct):
    max_input_chars_per_word: int | None = None


class _Document(msgspec.Struct):
    """What is checked of a tokenizer.json. A key that stands twice has its last value, as `tokenizers` reads it."""

    normalizer: msgspec.Raw = msgspec.Raw(b"null")
    pre_tokenizer: msgspec.Raw = msgspec.Raw(b"null")
    decoder: msgspec.Raw = msgspec.Raw(b"null")
    model: _Model | None = None


def check_cost(content: bytes) -> None:
    """Raises ValueError for a tokenizer.json whose time or texts have no bound, and for what is none."""
    document = msgspec.json.decode(content, type=_Document)
    for part in (document.normalizer, document.pre_tokenizer, document.decoder):
        components = list(_objects(json.loads(bytes(part), object_pairs_hook=_unique)))
        for component in components:
            if isinstance(expression := component.get("Regex"), str):
                check_expression(expression)
        if math.prod(map(_growth, components)) > _MAX_GROWTH:
            raise ValueError(f"it may make more than {_MAX_GROWTH} characters of one")
    if document.model and (document.model.max_input_chars_per_word or 0) > MAX_WORD:
        raise ValueError(f"max_input_chars_per_word is more than {MAX_WORD}")


def check_expression(expression: str) -> None:
    """Raises ValueError for an expression that is not linear by its form."""
    try:
        for idiom, other in _IDIOMS.items():
            expression = expression.replace(idiom, other)
        _check_classes(expression)
        # Runs of spaces are read at most once more than they are matched.
        if expression == _SPACES or expression.endswith(f"|{_SPACES}"):
            expression = expression.removesuffix(_SPACES) + r"\s+"
        # Which characters a class has changes nothing here.
        parsed = parser.parse(_ESCAPE.sub(_known_class, expression))
        if parsed.state.flags & ~constants.SRE_FLAG_UNICODE:
            raise ValueError("flags")
        if (ways := _ways(list(parsed), may_repeat=True)) > _MAX_WAYS:
            raise ValueError(f"it may match in {ways} ways")
    except (ValueError, constants.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"the expression {expression[:200]!r} may take time without bound ({error}); get tokenizer.json from the "
            "model's makers, or use another model"
        ) from None


def _ways(items: list[Any], *, may_repeat: bool) -> int:
    """In how many ways a sequence may match at one place before its first endless repeat.

    may_repeat: whether it may have such a repeat. Raises ValueError for what is not known to be linear.
    """
    ways, repeated = 1, False
    for index, (operation, argument) in enumerate(items):
        last = index == len(items) - 1
        if repeated:  # whatever follows must match wherever it stands
            ends_spaces = last and repr(items[index - 1 :]) == repr(_RUN_OF_SPACES + _END_OF_SPACES)
            if not ends_spaces and not (operation is constants.MAX_REPEAT and argument[0] == 0):
                raise ValueError("something must follow an endless repeat")
        if operation is constants.MAX_REPEAT and argument[1] > _MAX_LENGTH:
            if not may_repeat or argument[0] > _MAX_LENGTH or not _is_character(argument[2]):
                raise ValueError("an endless repeat stands in another part")
            repeated = True
        else:
            found = _ways_of(operation, argument, may_repeat=may_repeat and last and not repeated)
            ways *= 1 if repeated and found <= _MAX_WAYS else found
            if ways > _MAX_WAYS:
                raise ValueError(f"it may match in {ways} ways")
    return ways


def _ways_of(operation: Any, argument: Any, *, may_repeat: bool) -> int:
    if operation in _CHARACTER or operation is constants.AT:
        return 1
    if operation is constants.MAX_REPEAT:
        least, most, body = argument
        if not _is_character(body) and most > 1:
            raise ValueError("a group is repeated")
        return int(most - least + 1) * _ways(list(body), may_repeat=False)
    if operation is constants.BRANCH:
        return sum(_ways(list(alternative), may_repeat=may_repeat) for alternative in argument[1])
    if operation is constants.SUBPATTERN and argument[1] in (0, constants.SRE_FLAG_IGNORECASE) and not argument[2]:
        return _ways(list(argument[3]), may_repeat=may_repeat)
    if operation in (constants.ASSERT, constants.ASSERT_NOT) and argument[0] > 0:
        return _ways(list(argument[1]), may_repeat=False)
    raise ValueError(f"it has {str(operation).lower()}")


def _is_character(body: Any) -> bool:
    return len(body) == 1 and body[0][0] in _CHARACTER


def _known_class(escape: re.Match[str]) -> str:
    r"""`\w` in place of Oniguruma's `\p{…}`. Raises ValueError for an escape that Python reads otherwise."""
    if escape[0].startswith((r"\p", r"\P")) and len(escape[0]) > 2:
        return r"\w"
    if escape[0] == r"\N":
        raise ValueError(r"it has \N")
    return escape[0]


def _check_classes(expression: str) -> None:
    """Raises ValueError for classes, comments and repeats that Python and Oniguruma read otherwise."""
    if _UNLIKE.search(expression):
        raise ValueError("a comment, or a repeat of a repeat")
    within, before = False, ""
    for token in _PARTS.findall(expression):
        if token in ("[", "[^"):
            if within:
                raise ValueError("a class within a class")
            within = True
        elif token == "]" and within:
            if before in ("[", "[^"):
                raise ValueError("an empty class")
            within = False
        elif token == "&&" and within:
            raise ValueError("an intersection of classes")
        before = token


def _growth(component: dict[str, Any]) -> int:
    """Characters that a component of the tokenizer may make of one."""
    if component.get("type") == "Replace" and isinstance(content := component.get("content"), str):
        return max(1, len(content))
    if isinstance(table := component.get("precompiled_charsmap"), str):
        data = base64.b64decode(table)
        texts = data[4 + int.from_bytes(data[:4], "little") :]
        return max(1, *map(len, texts.split(b"\0")))
    return 1


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from _objects(member)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return found
