"""Decides whether two questions are surely the same, by their words; similarity alone is never enough.

No measure of similarity separates `enable 2FA` / `turn on 2FA` from `enable 2FA` / `disable 2FA`. So nothing that
carries meaning may differ: the words and their order, numbers, units, negations and names. These may differ: width,
spacing, closing punctuation, greetings, politeness, articles, contractions, and ways to ask that surely mean the same
(`paraphrases`).
"""

import re
from collections.abc import Sequence

from deployments.cache.paraphrases import canonical_chinese, canonical_english, without_preamble

_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_MARKS = str.maketrans({"。": ".", "、": ",", "“": '"', "”": '"', "‘": "'", "’": "'", "「": '"', "」": '"', "…": "."})
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff"
# Every expression here takes time in proportion to the text (tests/security/test_regular_expressions.py). So one that
# begins or ends in a run of characters starts only where such a run does, and gives nothing of it back.
_BESIDE_HAN = re.compile(rf"(?<=[{_HAN}]) ++|(?<! ) ++(?=[{_HAN}])")
_CODE = re.compile(r"`|[{}\[\]<>]|\n\s")
_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))
_END = _SPACES + "?."
_MAX_CHARACTERS = 20_000
"""A longer text is no question that somebody else asks with other spacing."""

_TOKENS = re.compile(rf"\d+(?:[.,:/]\d+)*|[^\W\d_{_HAN}]+(?:[-'][^\W\d_{_HAN}]+)*|[{_HAN}]|[^\s\w,.?;:\"']")
_CAPITALIZED = re.compile(r"\b[A-Z][a-z']*\b")
_LONG_FORMS = {
    "what's": "what is",
    "where's": "where is",
    "who's": "who is",
    "why's": "why is",
    "how's": "how is",
    "it's": "it is",
    "i'm": "i am",
    "i'd": "i would",
    "you're": "you are",
    "can't": "can not",
    "cannot": "can not",
    "won't": "will not",
    "don't": "do not",
    "doesn't": "does not",
    "didn't": "did not",
    "isn't": "is not",
    "aren't": "are not",
    "shouldn't": "should not",
    "couldn't": "could not",
    "wouldn't": "would not",
}
_CONTRACTED = re.compile(rf"\b(?:{'|'.join(_LONG_FORMS)})\b")
_OPENINGS = re.compile(
    r"^(?:(?:hi|hello|hey|excuse me|good (?:morning|afternoon|evening))\b[\s,.!]*)*"
    r"(?:please\s+)?"
    r"(?:(?:can|could|would|will) you (?:please |kindly )?(?:tell me|explain to me|help me(?: to)?|let me know)\s+"
    r"|(?:i (?:want|need|would like) to (?:know|ask)|i am wondering|do you know|tell me)[\s,]+)?"
    r"(?:please\s+)?"
)
_CLOSINGS = re.compile(r"(?<![\s,])[\s,]*+\b(?:please|thanks|thank you|thank you very much|thanks a lot)\W*+\Z")
_PHRASES = (
    (re.compile(r"\b(?:turn|switch)(?:ing)? on\b(?! (?:the )?(?:left|right|red|green)\b)|\bactivate\b"), "enable"),
    (re.compile(r"\b(?:turn|switch)(?:ing)? off\b|\bdeactivate\b"), "disable"),
    (re.compile(r"\bhow (?:can|could|should|may) i\b|\bhow to\b|\bhow does one\b"), "how do i"),
    (re.compile(r"\be-mail\b"), "email"),
    (re.compile(r"\bwhat(?: is| was)? the result of\b"), "what is"),
    # After a word in -ing it says what that word is: `stop a running job`, `stop running a job`.
    (re.compile(r"(?<!ing )\b(?:the|an|a(?! (?:few|little)\b))\s+"), ""),
)
_HAN_OPENINGS = re.compile(
    r"^(?:(?:你好|您好|嗨|打扰一下|麻烦问一下|麻烦您?|请问一下|请问|请您?|我想知道|我想问一下|想问一下|帮我|告诉我|能不能告诉我)[,.!\s]*)+"
)
_HAN_CLOSINGS = ("谢谢您", "谢谢", "谢了", "多谢", "麻烦了", "呢", "呀", "啊")
_MARKS_AFTER_HAN = re.compile(rf"(?<=[{_HAN}])[,.!]++\Z")
_BEFORE_HAN_CLOSING = _SPACES + ",.!?"
_HAN_PHRASES = ((re.compile("如何|怎样|怎么样才能"), "怎么"), (re.compile("一下"), ""), (re.compile("开启"), "启用"))


def normalize(text: str) -> str:
    """The text with width, spacing and closing punctuation in one form. What may be code keeps its spacing."""
    if len(text) > _MAX_CHARACTERS:
        return text
    text = text.translate(_WIDE).translate(_MARKS)
    if not _CODE.search(text):
        text = _BESIDE_HAN.sub("", " ".join(text.split()))
    return text.strip().rstrip(_END)


def equivalent(first: str, second: str) -> bool:
    """Whether both questions surely ask the same."""
    return meaning_of(first) == meaning_of(second)


def meaning_of(text: str) -> str:
    """A text that equivalent questions share, and no others: so they are found without a comparison."""
    text = normalize(text)
    # In code every character counts, and so it does where no word is left. Words never contain the separator.
    words = [] if _CODE.search(text) else _words(text)
    return "\0".join(("", *words)) if words else text


def _words(text: str) -> Sequence[str]:
    """The words that carry meaning, in their order."""
    # A word with several capitals, such as US, keeps them; a single one only starts a sentence or a name.
    text = _CAPITALIZED.sub(lambda word: word[0].lower(), text)
    text = _CONTRACTED.sub(lambda short: _LONG_FORMS[short[0]], text)
    text = without_preamble(text)
    text = _CLOSINGS.sub("", _OPENINGS.sub("", text))
    for phrase, meaning in _PHRASES:
        text = phrase.sub(meaning, text)
    text = canonical_english(text)
    text = _without_han_closings(_HAN_OPENINGS.sub("", text.strip()))
    for phrase, meaning in _HAN_PHRASES:
        text = phrase.sub(meaning, text)
    return _TOKENS.findall(normalize(canonical_chinese(text)))


def _without_han_closings(text: str) -> str:
    """The text without polite words at its end, and without the punctuation before them."""
    text = _MARKS_AFTER_HAN.sub("", text)  # not those of `5!`
    end = len(text)
    while closing := next((closing for closing in _HAN_CLOSINGS if text.endswith(closing, 0, end)), ""):
        end -= len(closing)
        while end and text[end - 1] in _BEFORE_HAN_CLOSING:
            end -= 1
    return text[:end]
