"""The questions that an empty conversation offers: four, in the page's language, which the chosen model can answer."""

import re

from cluster.models.folder import BUNDLED_NAME
from deployments.pages.client import PageModel
from deployments.pages.i18n import CHINESE, Texts

_SMALL = 500e6
"""Parameters. Models below it know common facts and follow one short instruction, but hardly calculate."""
_SIZE = re.compile(r"(?<![a-z0-9.])(\d{1,4}(?:\.\d{1,3})?)([mb])(?![a-z0-9])")

_BUNDLED_ENGLISH = (
    "There are 35 chickens and rabbits in a cage, with 94 feet. How many of each?",
    "What is 347 times 586?",
    "If today is Friday, which day is it in 45 days?",
    "Write a Python function that checks whether a string is a palindrome",
)
_BUNDLED_CHINESE = (
    "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?",
    "请证明：任意奇数的平方减1都能被8整除",
    "写一个Python函数判断回文字符串",
    "如果今天是星期三，100天后是星期几？",
)
"""What the bundled model was trained for."""
_SMALL_ENGLISH = (
    "What is the capital of France?",
    "Name three animals that live in the sea.",
    "Write a short greeting for a birthday card.",
    "What is the opposite of hot?",
)
_SMALL_CHINESE = ("中国的首都是哪里？", "说出三种生活在海里的动物。", "写一句简短的生日祝福。", "“热”的反义词是什么？")
_ENGLISH = (
    "There are 35 chickens and rabbits in a cage, with 94 feet. How many of each?",
    "Explain in three sentences how a vaccine works.",
    "Prove that the square of an odd number minus 1 is divisible by 8.",
    "Write a Python function that merges two sorted lists, with a test.",
)
_CHINESE = (
    "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?",
    "用三句话解释疫苗的原理。",
    "请证明：任意奇数的平方减1都能被8整除",
    "写一个合并两个有序列表的Python函数，并附上测试。",
)


def examples(model: PageModel | None, texts: Texts) -> tuple[str, ...]:
    """Questions for this model; none without one, as where only embedding models are served."""
    if model is None:
        return ()
    if model.name == BUNDLED_NAME:
        english, chinese = _BUNDLED_ENGLISH, _BUNDLED_CHINESE
    elif _parameters(model.name) < _SMALL:
        english, chinese = _SMALL_ENGLISH, _SMALL_CHINESE
    else:
        english, chinese = _ENGLISH, _CHINESE
    return chinese if texts is CHINESE else english


def _parameters(name: str) -> float:
    """How many parameters a model has by its name, such as smollm2-135m-instruct; infinitely many if that has none."""
    size = _SIZE.search(name.lower())
    return float(size[1]) * {"m": 1e6, "b": 1e9}[size[2]] if size else float("inf")
