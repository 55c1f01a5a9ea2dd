"""Grammars over a model's vocabulary: masks, guesses, forced tokens, and the end."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from cluster.models.folder import BUNDLED_FOLDER
from deployments.common.grammars import json_grammar
from deployments.common.messages import EngineRequest, Grammar, Sampling
from deployments.engine.compilations import Compilations
from deployments.engine.grammar import GrammarCompiler, GrammarError, Matcher
from deployments.engine.token_bytes import TokenBytes
from tests.deployments.grammars import Walker, add_tokens, bundled_with, large_tokenizer

END, ALSO_END = 1, 2
SUM = Grammar(
    json_grammar(
        '{"type": "object", "properties": {"sum": {"enum": [4, 5]}}, "required": ["sum"], '
        '"additionalProperties": false, "x-guidance": {"whitespace_pattern": " "}}'
    )
)


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker(BUNDLED_FOLDER, 2080, [END, ALSO_END])


def test_a_mask_has_the_models_width_and_allows_none_of_the_rest(walker: Walker) -> None:
    mask = walker.compiler.compile(Grammar("start: /(?s:.*)/")).mask()
    assert mask.dtype == np.uint32 and mask.shape == (65,)
    allowed = walker.allowed(mask)
    # Special tokens are no text; the thinking's marks are.
    assert not {0, 3} & set(allowed) and {2048, 2049} <= set(allowed) and max(allowed) == 2049


def test_the_ends_are_the_models_stop_tokens(walker: Walker) -> None:
    matcher = walker.compiler.compile(SUM)
    assert not {END, ALSO_END} & set(walker.allowed(matcher.mask())) and not matcher.finished
    matcher.consume(walker.encode('{"sum": 4}', {}))
    assert set(walker.allowed(matcher.mask())) == {END, ALSO_END} and matcher.finished
    matcher.consume([END])
    assert matcher.finished


def test_tokens_that_are_not_allowed_are_errors(walker: Walker) -> None:
    matcher = walker.compiler.compile(SUM)
    with pytest.raises(GrammarError):
        matcher.consume(walker.encode("x", {}))
    with pytest.raises(GrammarError):
        matcher.mask()


NO_GRAMMARS = ("start: (", "", "{}", '{"grammars": []}', 'start: %json {"type": "nonsense"}', "start: no")


@pytest.mark.parametrize("text", NO_GRAMMARS)
def test_a_grammar_that_is_none_is_an_error(walker: Walker, text: str) -> None:
    with pytest.raises(GrammarError) as error:
        walker.compiler.compile(Grammar(text))
    assert str(error.value)


def test_guesses_have_masks_up_to_the_first_that_is_not_allowed(walker: Walker) -> None:
    right, wrong = walker.encode('{"sum": 4}', {}), walker.encode('{"sum": 6', {})
    matcher = walker.compiler.compile(SUM)
    alone = walker.compiler.compile(SUM)
    expected = []
    for token in right:
        expected.append(alone.mask())
        alone.consume([token])
    expected.append(alone.mask())
    for guesses, masks in (
        ((), 1),
        (right, len(right) + 1),
        ([*right, END], len(right) + 1),
        (wrong, len(wrong)),
        ([-1], 1),
        ([9999], 1),
    ):
        got = matcher.masks(guesses)
        assert len(got) == masks
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=False))
    # Guessing has changed nothing.
    matcher.consume(right)
    assert matcher.finished


def test_what_is_forced_is_as_the_tokenizer_writes_it(walker: Walker) -> None:
    matcher = walker.compiler.compile(Grammar('start: "hello 世界 e\\u0301 <｜User｜>" /[0-9]/'))
    forced = matcher.forced()
    assert forced and walker.text(forced).startswith("hello 世界 e\u0301 <｜User")
    assert forced == walker.encode("hello 世界 e\u0301 <｜User｜>", {})[: len(forced)]
    matcher.consume(forced)
    assert not walker.compiler.compile(Grammar("start: /[ab]+/")).forced()


def test_each_token_has_the_bytes_that_it_decodes_to() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))
    tokens = TokenBytes(BUNDLED_FOLDER / "tokenizer.json", 2080, END)
    assert len(tokens.tokens) == 2080 and set(tokens.special_token_ids) == {0, 1, 2, 3}
    for text in ("What is 3 + 4?", "一个笼子里有鸡和兔子共35只", "naïve 🐔\r\n\t", "e\u0301"):
        ids = tokens(text)
        assert b"".join(tokens.tokens[token] for token in ids) == text.encode()
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def sentencepiece(document: dict[str, Any]) -> None:
    """Makes a tokenizer.json one as Llama 2's: spaces as U+2581, bytes as <0x0A>, a space before each text."""
    words = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "a",
        "b",
        "\u2581a",
        "é",
        "{",
        "}",
        '"',
        "ab",
    ]
    document["model"] = {
        "type": "BPE",
        "vocab": {word: number for number, word in enumerate(words)},
        "merges": [["\u2581", "a"], ["a", "b"]],
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    document["added_tokens"] = []
    add_tokens(document, ["<unk>"], special=True, first=0)
    add_tokens(document, ["</s>"], special=True, first=len(words))
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    document["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
    document["pre_tokenizer"] = None
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    document["decoder"] = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]}


def test_sentencepiece_vocabularies(tmp_path: Path) -> None:
    folder = bundled_with(tmp_path, sentencepiece)
    tokens = TokenBytes(folder / "tokenizer.json", 300, 266)
    for text in ("ab a b", " a", "é\n", "e\u0301", "<unk>", "鸡"):
        assert b"".join(tokens.tokens[token] for token in tokens(text)) == text.encode()
    walker = Walker(folder, 300, [266])
    text, ended = walker.walk(Grammar(json_grammar('{"type": "object", "properties": {"a b": {"enum": ["é 鸡"]}}}')), 1)
    assert ended and json.loads(text)


def test_a_large_vocabulary_is_read_while_other_streams_go_on(tmp_path: Path) -> None:
    """The first grammar of an engine is compiled beside its steps, and never holds the interpreter for long."""
    compilations = Compilations(GrammarCompiler(large_tokenizer(tmp_path), 150_016, [150_000]))
    began = last = time.monotonic()
    longest = 0.0
    compilations.start(1, EngineRequest([], Sampling(9, grammar=SUM)))
    while not (done := list(compilations.done(idle=False))):
        time.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    [(number, matcher)] = done
    assert number == 1 and isinstance(matcher, Matcher) and matcher.mask().any()
    assert longest < 0.8 * (last - began)
    compilations.start(2, EngineRequest([], Sampling(9, grammar=Grammar("start: ("))))
    while not (done := list(compilations.done(idle=True))):
        pass
    assert isinstance(done[0][1], GrammarError)
