"""Tokenizers from the metadata of GGUF files: token by token those of the models, which two real ones show."""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from cluster.models.gguf.header import GgufError, Header
from cluster.models.gguf.tokenizer import build_tokenizer, stop_ids
from deployments.common.messages import Add, EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.generation.output_parser import Vocabulary
from deployments.generation.prompts import PromptRenderer
from tests.models.smollm2 import smollm2

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h i", "Ġ t", "Ġt h"]
TOKENS = [*BYTES, "hi", "Ġt", "Ġth", "<|endoftext|>"]


def vocabulary(pre: str, tokens: list[str], merges: list[str], special: int = 0) -> Header:
    """Only a tokenizer; the last `special` tokens are special."""
    return Header(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tuple(tokens),
            "tokenizer.ggml.token_type": (*[1] * (len(tokens) - special), *[3] * special),
            "tokenizer.ggml.merges": tuple(merges),
            "tokenizer.ggml.bos_token_id": len(tokens) - 1,
        },
        {},
    )


@pytest.mark.parametrize(
    ("pre", "sample", "words"),
    [
        ("qwen2", "It'S 2024!\n x", "It 'S Ġ 2 0 2 4 !Ċ Ġx"),
        ("deepseek-r1-qwen", "a  b", "a Ġ Ġb"),
        ("llama-bpe", "It'S 2024!\n x", "It 'S Ġ 202 4 !Ċ Ġx"),
        ("smollm", "It's 2024!", "It 's Ġ 2 0 2 4 !"),
        ("default", "It's 2024+1", "It ' s Ġ 202 4 + 1"),
    ],
)
def test_pre_tokenizers_split_as_the_models_own(pre: str, sample: str, words: str) -> None:
    pre_tokenizer = build_tokenizer(vocabulary(pre, TOKENS, MERGES, 1)).pre_tokenizer
    assert [word for word, _ in pre_tokenizer.pre_tokenize_str(sample)] == words.split(" ")


def test_llama_3_texts_begin_with_its_first_token() -> None:
    tokenizer = build_tokenizer(vocabulary("llama-bpe", TOKENS, MERGES, 1))
    assert tokenizer.encode("hi").ids == [len(TOKENS) - 1, TOKENS.index("hi")]
    assert tokenizer.encode("hi", add_special_tokens=False).ids == [TOKENS.index("hi")]


def test_all_special_tokens_that_end_a_turn_stop_the_answer() -> None:
    tokens = [*BYTES, "<|im_end|>", "<|endoftext|>"]
    header = vocabulary("qwen2", tokens, MERGES, 2)
    assert stop_ids(Header({**header.metadata, "tokenizer.ggml.eos_token_id": 257}, {})) == [257, 256]


SPACE = "\u2581"
SPM_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="module")
def sentencepiece() -> Header:
    """Words that `tokenizers` has learnt from Dray's own pages, with scores as SentencePiece gives them."""
    root = Path(__file__).parents[2]
    pages = [(root / name).read_text() for name in ("README.md", "README.zh.md", "docs/api.md")]
    learnt = Tokenizer(BPE())
    learnt.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    learnt.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}\n]*|\n"), "isolated")
    learnt.train_from_iterator(pages, BpeTrainer(vocab_size=1500, show_progress=False, limit_alphabet=300))
    words = sorted(learnt.get_vocab(), key=lambda word: learnt.get_vocab()[word])
    tokens = ["<unk>", "<s>", "</s>", *SPM_BYTES, *words, "<|user|>"]
    special = len(tokens) - 1
    types = [2, 3, 3, *[6] * 256, *[1] * len(words), 4]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words))] + [0.0]
    assert (len(types), len(scores), tokens[special]) == (len(tokens), len(tokens), "<|user|>")
    return Header(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tuple(tokens),
            "tokenizer.ggml.token_type": tuple(types),
            "tokenizer.ggml.scores": tuple(scores),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        },
        {},
    )


def joined(header: Header, text: str) -> list[int]:
    """SentencePiece's algorithm as its paper has it: join the two neighbours of the highest score, again and again."""
    tokens, scores = header.texts("tokenizer.ggml.tokens"), header.numbers("tokenizer.ggml.scores")
    types = header.integers("tokenizer.ggml.token_type")
    words = {token: number for number, token in enumerate(tokens) if types[number] in (1, 4)}
    parts = list(SPACE + text.replace(" ", SPACE))
    while True:
        pairs = [(scores[words[a + b]], -at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in words]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        number
        for part in parts
        for number in ([words[part]] if part in words else [3 + byte for byte in part.encode()])
    ]


def test_sentencepiece_texts_are_joined_by_score_and_come_back_whole(sentencepiece: Header) -> None:
    tokenizer = build_tokenizer(sentencepiece)
    pages = Path(__file__).parents[2].joinpath("README.zh.md").read_text().splitlines()
    others = [sample for sample in samples(60) if "<" not in sample]
    texts = [text for text in (*pages[:60], *others, "🐔🐇 ÿ\x00", " two  spaces ") if text]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == joined(sentencepiece, text), text
        assert tokenizer.decode(ids) == text
        vocabulary = Vocabulary(tokenizer)
        assert bytes(byte for token in ids for byte in vocabulary.bytes_of(token)).decode() == " " + text
    assert len({len(tokenizer.encode(text).ids) for text in texts}) > 10


def test_sentencepiece_texts_begin_with_their_first_token_and_keep_special_ones(sentencepiece: Header) -> None:
    tokenizer, tokens = build_tokenizer(sentencepiece), sentencepiece.texts("tokenizer.ggml.tokens")
    ids = tokenizer.encode("<|user|>a</s>").ids
    assert [tokens[number] for number in ids] == ["<s>", "<|user|>", SPACE + "a", "</s>"]
    without = Header({**sentencepiece.metadata, "tokenizer.ggml.add_bos_token": False}, {})
    assert build_tokenizer(without).encode("a").ids == tokenizer.encode("a").ids[1:]
    bare = Header({**sentencepiece.metadata, "tokenizer.ggml.add_space_prefix": False}, {})
    assert [tokens[number] for number in build_tokenizer(bare).encode("a").ids] == ["<s>", "a"]


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("scores", lambda values: values[:-1], "scores of"),
        ("scores", lambda values: (*values[:-1], float("nan")), "not finite"),
        ("scores", lambda values: ("a",) * len(values), "must be a list of numbers"),
        ("tokens", lambda values: (*values[:3], "<0xZZ>", *values[4:]), "no token for some byte"),
        ("tokens", lambda values: (*values[:-1], "x" * 129), "a token of 129 characters"),
    ],
)
def test_sentencepiece_tokenizers_that_do_not_fit_are_refused(
    sentencepiece: Header, key: str, change: Callable[[Any], Any], message: str
) -> None:
    name = f"tokenizer.ggml.{key}"
    broken = Header({**sentencepiece.metadata, name: change(sentencepiece.metadata[name])}, {})
    with pytest.raises(GgufError, match=message):
        build_tokenizer(broken)


def test_a_real_model_answers() -> None:
    """The ids are llama.cpp's."""
    model = smollm2(kv_cache_mb=64)
    prompts = PromptRenderer(model)
    assert prompts.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert prompts.encode("Café déjà vu.") == [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]
    assert prompts.encode("  multiple   spaces") == [216, 2701, 256, 5600]
    question = GenerationRequest((Message("user", "The capital of France is ..."),), Sampling(32))
    engine = Engine(config_for(model, tuple(os.sched_getaffinity(0))))
    engine.add(Add(1, EngineRequest(prompts.render(question).ids, Sampling(32))))
    ids: list[int] = []
    while engine.busy:
        for batch in engine.step().streams.values():
            ids += batch.ids
    assert "Paris" in prompts.decode(ids), prompts.decode(ids)


@pytest.mark.slow
@pytest.mark.skipif("DRAY_TEST_R1_TOKENIZER" not in os.environ, reason="DRAY_TEST_R1_TOKENIZER names no folder")
@pytest.mark.parametrize("pre", ["deepseek-r1-qwen", "qwen2"])
def test_a_real_tokenizer_is_rebuilt_token_by_token(pre: str) -> None:
    """The tokenizer of the R1 distills on Qwen2, against its own tokenizer.json."""
    file = Path(os.environ["DRAY_TEST_R1_TOKENIZER"], "tokenizer.json")
    document, original = json.loads(file.read_text()), Tokenizer.from_file(str(file))
    added = {entry["id"]: (entry["content"], 3 if entry["special"] else 4) for entry in document["added_tokens"]}
    words = {number: (word, 1) for word, number in document["model"]["vocab"].items()}
    known = words | added
    tokens = [known.get(number, (f"[PAD{number}]", 5)) for number in range(151_936)]
    rebuilt = build_tokenizer(
        Header(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": pre,
                "tokenizer.ggml.tokens": tuple(token for token, _ in tokens),
                "tokenizer.ggml.token_type": tuple(kind for _, kind in tokens),
                "tokenizer.ggml.merges": tuple(" ".join(pair) for pair in document["model"]["merges"]),
            },
            {},
        )
    )
    for sample in samples(200):
        ids = original.encode(sample, add_special_tokens=False).ids
        assert rebuilt.encode(sample, add_special_tokens=False).ids == ids, sample
        assert rebuilt.decode(ids) == original.decode(ids)


def samples(count: int) -> list[str]:
    chance = np.random.default_rng(0)
    parts = [
        *(
            "你好，世界！",
            "今天天气怎么样？",
            "def f(x):\n    return x**2\n",
            "12345 67",
            "3.14159",
            "😀👨‍👩‍👧‍👦",
            " ",
            "   ",
            "\n\n",
        ),
        *(
            "\t",
            "<think>",
            "</think>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<tool_call>",
            "don't I'LL we've",
            "é e\u0301",
            "ﬁ",
        ),
        *("한국어", "русский", "العربية", "\r\n", "a_b-c/d", "http://x.y/?q=1&z=2", "…—“”", "x" * 40, "½²", "\u200b"),
        *("\x00\x7f", "<|fim_prefix|>", "<｜tool▁calls▁begin｜>", "[PAD151700]", "ĠĠ"),
    ]
    return ["".join(chance.choice(parts, size=chance.integers(1, 13))) for _ in range(count)]
