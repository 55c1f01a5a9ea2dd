"""Texts to token ids and back, whole and token by token, with each kind of tokenizer that models have."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from deployments.common.byte_level import BYTE_OF
from deployments.common.messages import Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.generation.output_parser import OutputParser
from deployments.generation.prompts import PromptRenderer
from tests.models.vocabularies import KINDS, REAL, copied, model_with, opened, real_folder

TEXTS = {
    "chinese": "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?",
    "rare chinese": "龘𠮷䲜 鸡兔",
    "emoji": "👩‍👩‍👧‍👦 and 🏳️‍🌈, 👍🏽!",
    "code": "def f(x):\n\treturn {'a': x ** 2}  # é\n\n",
    "control": "a <|im_end|> b </think> c <｜User｜><s>[INST]",
    "spaces": "two  spaces,   three, and a tab\t.",
    "byte marks": "<0x0A> Ġ ##",
}
SMALL = {"metaspace", "wordpiece", "words"}
"""Kinds that have no bytes: what their few tokens cannot write is lost."""
KNOWN = ["the quick brown fox", "一个笼子里有鸡和兔子共", "rabbits and chickens: 35 heads"]


@pytest.fixture(scope="module", params=[*KINDS, *REAL])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def prompts(kind: str, tmp_path_factory: pytest.TempPathFactory) -> PromptRenderer:
    folder = tmp_path_factory.mktemp("model")
    if kind in KINDS:
        return PromptRenderer(model_with(folder, KINDS[kind]()))
    return PromptRenderer(opened(copied(real_folder(kind), folder)))


def raw(prompts: PromptRenderer) -> tuple[list[int], OutputParser]:
    """A prompt, and a parser that changes nothing of what follows it."""
    request = GenerationRequest((), Sampling(1), "x")
    prompt = prompts.render(request)
    return prompt.ids, prompts.parser(request, prompt)


def text_ids(prompts: PromptRenderer, text: str) -> list[int]:
    """A text's ids, control tokens' texts in it as text."""
    template_free = GenerationRequest((Message("user", text),), Sampling(1))
    careful = PromptRenderer(opened(prompts.folder), control_in_prompts=False)
    assert prompts.render(template_free).ids
    return careful.prompt_ids(text)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_come_back(prompts: PromptRenderer, kind: str, name: str) -> None:
    ids, text = text_ids(prompts, TEXTS[name]), TEXTS[name]
    if kind in SMALL:  # what is left of it does not change any more
        text = prompts.decode(ids).replace("<unk>", "").replace("[UNK]", "").strip()
        text = prompts.decode(ids := text_ids(prompts, text))
    assert prompts.decode(ids) == text
    prompt, parser = raw(prompts)
    pieces = [parser.feed([token]).text for token in ids] + [parser.finish("stop").text]
    begun = prompts.decode(prompt)
    assert "".join(pieces) == prompts.decode([*prompt, *ids]).removeprefix(begun), "also the space between the two"
    assert all("\ufffd" not in piece for piece in pieces)


def test_what_a_small_vocabulary_knows_comes_back(prompts: PromptRenderer, kind: str) -> None:
    for text in KNOWN[:1] if kind == "words" else KNOWN:
        compact = prompts.decode(text_ids(prompts, text)).replace(" ", "").replace("##", "")
        assert compact == text.replace(" ", "")


@pytest.mark.parametrize("name", TEXTS)
def test_the_bytes_of_tokens_make_the_text(prompts: PromptRenderer, kind: str, name: str) -> None:
    """As log probabilities report them."""
    if kind in SMALL:
        pytest.skip("not of bytes")
    ids = text_ids(prompts, TEXTS[name])
    utf8 = bytes(byte for token in ids for byte in prompts.vocabulary.bytes_of(token))
    assert utf8.decode().removeprefix(" ") == TEXTS[name]


def test_part_of_a_character_waits_for_the_rest(prompts: PromptRenderer, kind: str) -> None:
    if kind in SMALL:
        pytest.skip("not of bytes")
    ids = text_ids(prompts, "a龘b")
    assert len(ids) > 3, "the character takes several tokens"
    parser = raw(prompts)[1]
    assert [parser.feed([token]).text for token in ids if token][-1].endswith("b")
    cut = raw(prompts)[1]
    text = "".join(cut.feed([token]).text for token in [*ids[:-2], *text_ids(prompts, "b")])
    assert text.replace("\ufffd", "").replace(" ", "") == "ab", (
        "a character that never ends does not swallow what follows"
    )


def test_lone_bytes_swallow_nothing(prompts: PromptRenderer, kind: str) -> None:
    """A model may write any byte, whether or not it makes a character with what comes before and after."""
    if kind in SMALL:
        pytest.skip("not of bytes")
    tokenizer = prompts.vocabulary.tokenizer
    before, after = text_ids(prompts, "a"), text_ids(prompts, "b")
    characters = {byte: character for character, byte in BYTE_OF.items()}
    names = {byte: (f"<0x{byte:02X}>", characters[byte]) for byte in (0x80, 0xBF, 0xC3, 0xE9, 0xF0)}
    tokens = {
        byte: tokenizer.token_to_id(own) or tokenizer.token_to_id(shared) for byte, (own, shared) in names.items()
    }
    assert all(tokens.values())
    for byte, token in tokens.items():
        parser, cut = raw(prompts)[1], raw(prompts)[1]
        pieces = [parser.feed([number]).text for number in (*before, token, *after)]
        text = "".join([*pieces, parser.finish("stop").text])
        assert text.replace("\ufffd", "").replace(" ", "") == "ab", byte
        assert cut.feed([token]).text + cut.finish("stop").text in ("", "\ufffd"), byte


def test_a_declared_class_changes_nothing(tmp_path: Path) -> None:
    """Llama's class over a byte-level tokenizer, as DeepSeek-R1-Distill-Llama-8B declares it."""
    model = model_with(tmp_path, KINDS["byte-level"](), tokenizer_class="LlamaTokenizerFast", add_bos_token=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    prompts = PromptRenderer(model)
    text = "The capital of 法国 is Paris."
    expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert prompts.encode(text) == expected and prompts.decode(expected) == text
    assert prompts.text(GenerationRequest((Message("user", text),), Sampling(1))).count("<s>") == 1


def test_a_tokenizer_that_truncates_and_pads_does_not_cut_prompts(tmp_path: Path) -> None:
    tokenizer = KINDS["byte-level"]()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    prompts = PromptRenderer(model_with(tmp_path, tokenizer))
    assert prompts.decode(prompts.encode("a text of more than four tokens")) == "a text of more than four tokens"
    assert len(prompts.encode("a")) == 1
