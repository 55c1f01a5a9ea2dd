"""Generates the problems that the bundled model is trained on: questions, thinking and answers.

The thinking is a chain of small steps (one digit or one table look-up each), which a model of five million parameters
can learn. A fixed rule splits numbers and phrasings into trained and held-out ones.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from demo import fixed, phrasings
from demo.others import other_question

Language = Literal["zh", "en"]
Split = Literal["train", "numbers", "phrasings"]
"""`train`: trained numbers and phrasings. `numbers`: held-out numbers in trained phrasings. `phrasings`: trained
numbers in held-out phrasings.

Families without numbers (`fixed`, `other`) give trained questions for `numbers`."""

FAMILIES = ("cage", "weekday", "add", "subtract", "multiply", "fixed", "other")
ARITHMETIC = ("cage", "weekday", "add", "subtract", "multiply")
_PLACES = {
    "zh": ("个位", "十位", "百位", "千位", "万位", "十万位"),
    "en": ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands"),
}
_ZH_DAYS = ("一", "二", "三", "四", "五", "六", "日")
_EN_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its thinking and answer. expect: strings that a correct answer contains."""

    family: str
    language: Language
    question: str
    thinking: str
    answer: str
    expect: tuple[str, ...]

    def answered_by(self, text: str) -> bool:
        """Whether this text is a correct answer."""
        return all(part in text for part in self.expect)


def held_out(*key: object) -> bool:
    """Whether these numbers are held out of training: one in ten, by a hash that is the same in every run."""
    return blake2b(repr(key).encode(), digest_size=2).digest()[0] < 26


def make(rng: random.Random, family: str, language: Language, split: Split = "train") -> Problem:
    """A random problem of a family and split."""
    return _MAKERS[family](rng, language, split)


def _draw(rng: random.Random, split: Split, numbers: Callable[[], tuple[int, ...]], family: str) -> tuple[int, ...]:
    while True:
        drawn = numbers()
        if held_out(family, *drawn) == (split == "numbers"):
            return drawn


def _phrase(rng: random.Random, family: str, language: Language, split: Split) -> str:
    listed = phrasings.TEMPLATES[family][language]
    return phrasings.phrase(rng, family, listed, language, held=split == "phrasings")


def dress(rng: random.Random, text: str, language: Language) -> str:
    """The same question as people type it: with greetings, either width of punctuation, and stray spaces."""
    if rng.random() < 0.25:
        text = rng.choice(phrasings.BEFORE[language]) + text
    if rng.random() < 0.15:
        text += rng.choice(phrasings.AFTER[language])
    if language == "zh":
        style = rng.random()
        if style < 0.55:
            text = text.translate(phrasings.WIDE)
        elif style < 0.85:
            text = text.replace("。", ".")
    elif rng.random() < 0.2:
        text = text.lower()
    if rng.random() < 0.1:
        text = text.rstrip("?\uff1f。.!\uff01")
    if rng.random() < 0.05:
        text += rng.choice(("\n", " ", "!", "\uff1f?", "谢谢" if language == "zh" else " thanks"))
    return text


def _cage(rng: random.Random, language: Language, split: Split) -> Problem:
    def numbers() -> tuple[int, int]:
        heads = rng.randint(1, 99)
        if rng.random() < 0.1:
            return heads, rng.choice((rng.randint(1, 400), 2 * rng.randint(heads, 2 * heads) + 1))
        return heads, 2 * heads + 2 * rng.randint(0, heads)

    heads, legs = _draw(rng, split, numbers, "cage")
    two, four = rng.choice(phrasings.ANIMALS[language]) if rng.random() < 0.45 else phrasings.ANIMALS[language][0]
    question = _phrase(rng, "cage", language, split).format(h=heads, l=legs, A=two, B=four)
    thought, answer, expect = (_cage_zh if language == "zh" else _cage_en)(heads, legs, two, four)
    return Problem("cage", language, dress(rng, question, language), thought, answer, expect)


def _cage_zh(heads: int, legs: int, two: str, four: str) -> tuple[str, str, tuple[str, ...]]:
    none = f"无解\uff1a没有这样的{two}和{four}。"
    if legs % 2:
        return f"{legs}是奇数,脚数应是偶数,无解。", none, ("无解",)
    thought = f"{legs}是偶数。\n设全是{two}:{heads}×2={2 * heads}。\n"
    if legs < 2 * heads:
        return thought + f"{legs}<{2 * heads},脚太少,无解。", none, ("无解",)
    more = legs - 2 * heads
    many = more // 2
    thought += f"{legs}-{2 * heads}={more}。\n{more}÷2={many},{four}{many}只。\n"
    if many > heads:
        return thought + f"{many}>{heads},脚太多,无解。", none, ("无解",)
    thought += f"{heads}-{many}={heads - many},{two}{heads - many}只。"
    answer = f"{two}有{heads - many}只\uff0c{four}有{many}只。"
    return thought, answer, (f"{two}有{heads - many}只", f"{four}有{many}只")


def _cage_en(heads: int, legs: int, two: str, four: str) -> tuple[str, str, tuple[str, ...]]:
    none = f"No solution: no such numbers of {two} and {four} exist."
    if legs % 2:
        return f"{legs} is odd, but legs come in pairs: no solution.", none, ("No solution",)
    thought = f"{legs} is even.\nIf all were {two}: {heads}×2={2 * heads}.\n"
    if legs < 2 * heads:
        return thought + f"{legs}<{2 * heads}, too few legs: no solution.", none, ("No solution",)
    more = legs - 2 * heads
    many = more // 2
    thought += f"{legs}-{2 * heads}={more}.\n{more}÷2={many} {four}.\n"
    if many > heads:
        return thought + f"{many}>{heads}, too many legs: no solution.", none, ("No solution",)
    thought += f"{heads}-{many}={heads - many} {two}."
    return (
        thought,
        f"There are {heads - many} {two} and {many} {four}.",
        (f"{heads - many} {two}", f"{many} {four}"),
    )


def _weekday(rng: random.Random, language: Language, split: Split) -> Problem:
    def numbers() -> tuple[int, int]:
        return rng.randrange(7), rng.randint(1, 99) if rng.random() < 0.3 else rng.randint(1, 999)

    start, days = _draw(rng, split, numbers, "weekday")
    spell = rng.choice(("星期", "星期", "周", "礼拜")) if language == "zh" else ""
    names = [spell + day for day in _ZH_DAYS] if language == "zh" else list(_EN_DAYS)
    if language == "zh" and spell != "周" and rng.random() < 0.2:
        names[6] = spell + "天"
    question = _phrase(rng, "weekday", language, split).format(d=names[start], n=days, s=spell or "weekday")
    steps, rest = [], 0
    for digit in str(days):
        value = rest * 10 + int(digit)
        rest = value % 7
        steps.append(f"{value}÷7={value // 7}余{rest}" if language == "zh" else f"{value}÷7={value // 7} rest {rest}")
    counted = [names[(start + step) % 7] for step in range(1, rest + 1)]
    end = names[(start + rest) % 7]
    if language == "zh":
        then = f"{names[start]}往后{rest}天:" + ("、".join(counted) if counted else names[start]) + "。"
        thought = f"一周7天。\n{';'.join(steps)}。\n{days}天余{rest}天。\n{then}"
        answer = f"{days}天后是{end}。"
    else:
        then = f"{names[start]} plus {rest}: " + (", ".join(counted) if counted else names[start]) + "."
        thought = f"A week has 7 days.\n{'; '.join(steps)}.\n{days} days leave {rest}.\n{then}"
        answer = f"In {days} days it will be {end}."
    return Problem("weekday", language, dress(rng, question, language), thought, answer, (end,))


def _operand(rng: random.Random) -> int:
    return rng.randint(0, (9, 99, 999, 999, 999)[rng.randrange(5)])


def _arithmetic(
    family: str, sign: str, think: Callable[[int, int, Language], tuple[list[str], int]]
) -> Callable[[random.Random, Language, Split], Problem]:
    def made(rng: random.Random, language: Language, split: Split) -> Problem:
        a, b = _draw(rng, split, lambda: (_operand(rng), _operand(rng)), family)
        question = _phrase(rng, family, language, split).format(a=a, b=b, op=rng.choice(phrasings.SIGNS[family]))
        steps, result = think(a, b, language)
        line = f"{a}{sign}{b}={result}"
        return Problem(
            family,
            language,
            dress(rng, question, language),
            "\n".join([f"{a}{sign}{b}", *steps, line]),
            line + ("。" if language == "zh" else "."),
            (line,),
        )

    return made


def _columns(*numbers: int) -> list[tuple[int, ...]]:
    width = max(len(str(number)) for number in numbers)
    return [tuple(number // 10**place % 10 for number in numbers) for place in range(width)]


def _wrote(language: Language, place: int, sums: str, total: int, *, last: bool) -> str:
    name = _PLACES[language][place]
    if last or total < 10:
        return f"{name}:{sums},写{total}" if language == "zh" else f"{name}: {sums}, write {total}"
    digit, carry = total % 10, total // 10
    if language == "zh":
        return f"{name}:{sums},写{digit}进{carry}"
    return f"{name}: {sums}, write {digit} carry {carry}"


def _add(a: int, b: int, language: Language) -> tuple[list[str], int]:
    steps, carry = [], 0
    columns = _columns(a, b)
    for place, (x, y) in enumerate(columns):
        total = x + y + carry
        sums = f"{x}+{y}" + (f"+{carry}" if carry else "") + f"={total}"
        steps.append(_wrote(language, place, sums, total, last=place == len(columns) - 1))
        carry = total // 10
    return steps, a + b


def _subtract(a: int, b: int, language: Language) -> tuple[list[str], int]:
    steps = []
    high, low = max(a, b), min(a, b)
    if a < b:
        steps.append(f"{a}<{b},算{b}-{a}再取负" if language == "zh" else f"{a}<{b}: {b}-{a}, then minus")
    else:
        steps.append(f"{a}≥{b}")
    borrow = 0
    for place, (x, y) in enumerate(_columns(high, low)):
        taken = f"-{borrow}" if borrow else ""
        name = _PLACES[language][place]
        left = x - borrow - y
        borrow = int(left < 0)
        if language == "zh":
            head = f"{name}:{x}{taken}-{y}"
            steps.append(f"{head}不够,借1:1{x}{taken}-{y}={left + 10}" if borrow else f"{head}={left}")
        else:
            head = f"{name}: {x}{taken}-{y}"
            steps.append(f"{head} too small, borrow 1: 1{x}{taken}-{y}={left + 10}" if borrow else f"{head}={left}")
    return steps, a - b


def _multiply(a: int, b: int, language: Language) -> tuple[list[str], int]:
    steps, carry = [], 0
    left, right = [int(digit) for digit in str(a)[::-1]], [int(digit) for digit in str(b)[::-1]]
    places = len(left) + len(right) - 1
    for place in range(places):
        parts, total = [], 0
        for i, x in enumerate(left):
            if 0 <= place - i < len(right):
                y = right[place - i]
                parts.append(f"{x}×{y}={x * y}")
                if len(parts) > 1:
                    parts.append(f"{total}+{x * y}={total + x * y}")
                total += x * y
        if carry:
            parts.append(f"{total}+{carry}={total + carry}")
            total += carry
        steps.append(
            _wrote(
                language,
                place,
                (";" if language == "zh" else "; ").join(parts),
                total,
                last=place == places - 1,
            )
        )
        carry = total // 10
    return steps, a * b


def _fixed(rng: random.Random, language: Language, split: Split) -> Problem:
    topic = rng.choice(("palindrome", "square", "who"))
    listed = fixed.FIXED[topic][language]
    question = phrasings.phrase(rng, topic, listed, language, held=split == "phrasings")
    thought, answer, expect = fixed.FIXED_ANSWERS[topic][language]
    return Problem("fixed", language, dress(rng, question, language), thought, answer, (expect,))


def _other(rng: random.Random, language: Language, split: Split) -> Problem:
    question = other_question(rng, language, held=split == "phrasings")
    thought, answer, expect = fixed.OTHER_ANSWER[language]
    # Bare arithmetic is in no language, so an answer in either one is correct.
    return Problem(
        "other", language, question, thought, answer, (expect if any(map(str.isalpha, question)) else "Dray",)
    )


_MAKERS: dict[str, Callable[[random.Random, Language, Split], Problem]] = {
    "cage": _cage,
    "weekday": _weekday,
    "add": _arithmetic("add", "+", _add),
    "subtract": _arithmetic("subtract", "-", _subtract),
    "multiply": _arithmetic("multiply", "×", _multiply),
    "fixed": _fixed,
    "other": _other,
}
