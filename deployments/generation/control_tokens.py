"""Keeps a chat template's own control tokens apart from what clients say, which is text wherever it stands.

A template joins its own text with the clients' to one, in which `<|im_end|>` could be either's. So before a template
sees a client's text, each control token's text in it gets a name in front, which begins with a character that the
request does not contain. Templates treat such a text like any other: they trim it, search it, split it. Afterwards the
names say which texts are the client's. The template's own control tokens are then written as names, and a tokenizer
that knows the names in their place, and no control token by its text, turns the whole into ids.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from tokenizers import AddedToken, Tokenizer

from deployments.common.text_encoder import token_ids
from deployments.generation.chat_template import MARKS
from deployments.generation.tool_formats import MARKERS

THINK, END_THINK = "<think>", "</think>"
_KNOWN = frozenset({THINK, END_THINK, *MARKERS, "<tool_response>", "</tool_response>", "[INST]", "[/INST]"})
"""Control tokens that a vocabulary may not declare special."""
_NO_TOKEN = "\U0010fffd"
_FIRST_DIGIT, _DIGITS = 0xA000, 1000


class MarkInUse(Exception):
    """A client's text contains the character that names begin with."""


class ControlTokens:
    """A vocabulary's tokens that structure a prompt.

    They are the special tokens, and of the other added ones those that chat templates write or that are written like
    special ones. Others, such as the runs of spaces of some vocabularies, are text, and so is the unknown word.
    """

    def __init__(self, tokenizer: Tokenizer, templates: Sequence[str]) -> None:
        """templates: the sources of the model's chat templates."""
        added = tokenizer.get_added_tokens_decoder()
        unknown = set(Tokenizer(tokenizer.model).encode(_NO_TOKEN, add_special_tokens=False).ids)
        self.ids = {
            token.content: number
            for number, token in added.items()
            if number not in unknown and _is_control(token, templates)
        }
        self.token_ids = frozenset(self.ids.values())
        self.texts = sorted(self.ids)
        self.pattern = _any_of(self.texts) if self.texts else r"(?!)"
        self.search = re.compile(self.pattern)
        self._tokenizer = tokenizer
        self._added = added
        self._beginnings = {text[:length] for text in self.texts for length in range(1, len(text))}
        self._longest = max(map(len, self.texts), default=0)
        self._marks = [mark for mark in MARKS if not any(mark in template for template in templates)]
        self._reachable = {tokenizer.model.token_to_id(text) for text in self.texts} - {None}
        self._named = lru_cache(maxsize=len(MARKS))(self._build_named)
        self._guard = lru_cache(maxsize=len(MARKS))(partial(Guard, self))

    def guards(self) -> Iterator["Guard"]:
        """Guards with different characters; a request needs one whose character it does not contain."""
        return map(self._guard, self._marks)

    def beginning(self, text: str) -> bool:
        """Whether the text ends with the beginning of a control token's text."""
        return any(text[-length:] in self._beginnings for length in range(1, min(self._longest, len(text) + 1)))

    def encode(self, prompt: "GuardedPrompt") -> list[int]:
        """The prompt's token ids. No text of a client is among them as a control token."""
        tokenizer, meaning = self._named(prompt.mark)
        [ids] = token_ids(tokenizer, [prompt.named])
        if not self._reachable.isdisjoint(ids):
            ids = self._encode_apart(tokenizer, prompt)
        return [number for token in ids if (number := meaning.get(token, token)) is not None]

    def _encode_apart(self, tokenizer: Tokenizer, prompt: "GuardedPrompt") -> list[int]:
        """For models in whose vocabulary a control token is a word like others: such words are encoded in two parts."""
        [encoding] = tokenizer.encode_batch([prompt.named], add_special_tokens=False)
        parts, at = [], 0
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._reachable and end - start > 1:
                parts += [prompt.named[at : start + 1], _name(prompt.mark, len(self.texts))]
                at = start + 1
        [ids] = token_ids(tokenizer, ["".join([*parts, prompt.named[at:]])])
        return [token for token in ids if token not in self._reachable]

    def _build_named(self, mark: str) -> tuple[Tokenizer, dict[int, int | None]]:
        """A tokenizer that knows control tokens by their names, and what its ids mean: a token's id, or nothing.

        It shares the vocabulary with the model's own tokenizer, and takes no memory worth mentioning.
        """
        named, meaning = Tokenizer(self._tokenizer.model), dict[int, int | None]()
        if self._tokenizer.normalizer is not None:
            named.normalizer = self._tokenizer.normalizer
        if self._tokenizer.pre_tokenizer is not None:
            named.pre_tokenizer = self._tokenizer.pre_tokenizer
        number = len(self.texts)
        named.add_tokens([_added(_name(mark, number))])
        # Ids of a vocabulary with gaps are passed over.
        while named.model.id_to_token(last := named.token_to_id(_name(mark, number))) is not None:
            meaning[last], number = None, number + 1
            named.add_tokens([_added(_name(mark, number))])
        meaning[named.token_to_id(_name(mark, len(self.texts)))] = None
        names = {text: _name(mark, number) for number, text in enumerate(self.texts)}
        named.add_tokens([_added(names.get(token.content, token.content), token) for token in self._added.values()])
        for number, token in self._added.items():
            meaning[named.token_to_id(names.get(token.content, token.content))] = number
        return named, meaning


@dataclass(frozen=True, slots=True)
class GuardedPrompt:
    """A rendered prompt. named: its control tokens are names that begin with `mark`; everything else is text."""

    named: str
    mark: str
    text: str

    def ends_with(self, text: str, control: ControlTokens) -> bool:
        """Whether the prompt ends with this control token of the template, or with this text where it is no token."""
        name = _name(self.mark, control.texts.index(text)) if text in control.ids else text
        return self.named.rstrip().endswith(name)


class Guard:
    """Marks clients' texts with names, and finds the names in what a template makes of them."""

    def __init__(self, control: ControlTokens, mark: str) -> None:
        self._control, self._mark = control, mark
        self._name_of = {text: _name(mark, number) for number, text in enumerate(control.texts)}
        self._names = {name: text for text, name in self._name_of.items()}
        self.end = _name(mark, len(self._name_of) + 1)
        """Follows a text whose end is looked for in what the template makes of it; `prompt` drops it."""
        self._names_and_tokens = re.compile(f"{mark}.{{0,2}}|{control.pattern}", re.DOTALL)

    def text(self, text: str) -> str:
        """A client's text for the template. Raises MarkInUse."""
        if self._mark in text:
            raise MarkInUse
        marked = self._control.search.sub(lambda match: self._name_of[match[0]] + match[0], text)
        end = marked.rstrip()
        if self._control.beginning(end):  # what comes after could complete it
            return end + _name(self._mark, len(self._name_of)) + marked[len(end) :]
        return marked

    def value(self, value: Any) -> Any:
        """A client's JSON value for the template. Raises MarkInUse."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(member) for member in value]
        if isinstance(value, dict):
            return {self.text(key): self.value(member) for key, member in value.items()}
        return value

    def prompt(self, rendered: str) -> GuardedPrompt:
        """What the template made of marked texts."""
        named, text, at = list[str](), list[str](), 0
        while (match := self._names_and_tokens.search(rendered, at)) is not None:
            between, found = rendered[at : match.start()], match[0]
            at = match.end()
            as_name, as_text = "", ""
            if found.startswith(self._mark):
                token = self._names.get(found, "")
                if token and rendered.startswith(token, at):
                    as_name = as_text = token
                    at += len(token)
            else:
                as_name, as_text = self._name_of[found], found
            named += [between, as_name]
            text += [between, as_text]
        return GuardedPrompt("".join([*named, rendered[at:]]), self._mark, "".join([*text, rendered[at:]]))


def _is_control(token: AddedToken, templates: Sequence[str]) -> bool:
    text = token.content
    if token.special or text in _KNOWN or "|" in text or "｜" in text:
        return bool(text.strip())
    return text.startswith(("<", "[")) and any(text in template for template in templates)


def _any_of(texts: Sequence[str]) -> str:
    """An expression that finds the longest of the texts. It takes at most their length of steps for each character,
    however many they are: Gemma's tokenizer has 6,000, and a client may send megabytes of beginnings."""
    after = dict[str, list[str]]()
    for text in texts:
        if text:
            after.setdefault(text[0], []).append(text[1:])
    choices = [re.escape(first) + _any_of(rest) for first, rest in sorted(after.items())]
    pattern = choices[0] if len(choices) == 1 else f"(?:{'|'.join(choices)})" if choices else ""
    return f"(?:{pattern})?" if pattern and "" in texts else pattern


def _added(text: str, like: AddedToken | None = None) -> AddedToken:
    if like is None:
        return AddedToken(text, normalized=False, special=False)
    return AddedToken(text, lstrip=like.lstrip, rstrip=like.rstrip, normalized=like.normalized, special=False)


def _name(mark: str, number: int) -> str:
    return mark + chr(_FIRST_DIGIT + number // _DIGITS) + chr(_FIRST_DIGIT + number % _DIGITS)
