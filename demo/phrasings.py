"""Templates of questions for every family. Every sixth is held out of training."""

import random

from demo.clauses import CLAUSES

WIDE = str.maketrans(",?:()!", "\uff0c\uff1f\uff1a\uff08\uff09\uff01")
"""Translates half-width punctuation to the full-width punctuation of Chinese text."""

BEFORE = {
    "zh": ("请问", "请问:", "你好,", "帮我算一下:", "问题:", "题目:", "请回答:", "数学题:", "麻烦问一下,", "想请教一下,"),
    "en": ("Please: ", "Question: ", "Hi, ", "Hello! ", "Problem: ", "Quick question: ", "Solve this: ", "Can you help? ",
           "Q: ", "Math: "),
}
AFTER = {
    "zh": ("请一步一步想。", "谢谢!", "写出过程。", "请给出答案。", "只要结果。"),
    "en": (" Think step by step.", " Thanks!", " Show your work.", " Please answer.", " Just the result."),
}
ANIMALS = {
    "zh": (("鸡", "兔子"), ("鸡", "兔"), ("鹤", "龟"), ("鸭", "兔"), ("鹅", "羊"), ("鸡", "狗")),
    "en": (("chickens", "rabbits"), ("hens", "rabbits"), ("cranes", "turtles"), ("ducks", "rabbits"), ("geese", "sheep"),
           ("birds", "dogs")),
}
SIGNS = {"add": ("+", "+", " + "), "subtract": ("-", "-", " - ", " − "), "multiply": ("*", "×", " × ", " * ", "x", " x ")}

TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "cage": {
        "zh": (
            "一个笼子里有{A}和{B}共{h}只,脚共{l}只,问各有多少?",
            "{A}{B}同笼,共{h}个头,{l}只脚,{A}和{B}各有几只?",
            "今有{A}{B}同笼,上有{h}头,下有{l}足,问{A}{B}各几何?",
            "笼子里有{A}和{B}一共{h}只,一共有{l}条腿,{A}和{B}各多少只?",
            "{A}和{B}共{h}只,共有{l}只脚。{A}有多少只?{B}有多少只?",
            "农场里{A}和{B}加起来{h}只,腿加起来{l}条,各有多少只?",
            "有{h}只{A}和{B},它们一共有{l}只脚,问{A}、{B}各多少只?",
            "{A}{B}同笼:头{h}个,脚{l}只,求{A}{B}各多少只。",
            "笼中有若干{A}和{B},从上面数有{h}个头,从下面数有{l}只脚,{A}和{B}各有几只?",
            "共有{l}只脚、{h}个头,笼里的{A}和{B}各有几只?",
            "一个笼子里关着{A}和{B},数头有{h}个,数脚有{l}只,{A}和{B}各多少?",
            "院子里有{A}有{B},头共{h}个,腿共{l}条,请问{A}和{B}分别是多少?",
            "{A}{B}同笼问题:{h}个头,{l}条腿,{A}和{B}各几只?",
            "小明家养了{A}和{B}共{h}只,它们共有{l}条腿,小明家各养了几只?",
            "脚数是{l},头数是{h},问{A}{B}各几只?",
            "笼里{A}和{B}共有{h}个头和{l}只脚,求{A}和{B}的只数。",
            "如果{A}和{B}的头一共有{h}个,脚一共有{l}只,那么{A}、{B}各是多少只?",
            "把{A}和{B}关在一起,总共{h}只,总共{l}只脚,各是几只?",
            "{A}和{B}一共{h}个头{l}只脚,各几只?",
            "已知{A}{B}共{h}只,足{l}只,求{A}{B}各多少",
        ),
        "en": (
            "A cage holds {A} and {B}: {h} heads and {l} legs. How many of each?",
            "There are {h} {A} and {B} with {l} legs in total. How many {A} and how many {B} are there?",
            "A farm has {A} and {B}. Together they have {h} heads and {l} legs. How many of each are there?",
            "{h} heads, {l} legs, {A} and {B}: how many of each?",
            "If {A} and {B} together have {h} heads and {l} feet, how many {A} and {B} are there?",
            "In a yard there are {h} animals, {A} and {B}, and {l} legs. How many of each kind?",
            "A farmer counts {h} heads and {l} legs among {A} and {B}. How many {A}? How many {B}?",
            "Some {A} and {B} share a cage. There are {l} feet and {h} heads. Find the number of each.",
            "{A} and {B} in a cage, {h} in total, {l} feet in total. How many are there of each?",
            "We have {l} legs and {h} heads of {A} and {B}. How many {A} and how many {B}?",
            "A cage contains {h} {A} and {B}. They have {l} feet. How many of each does it contain?",
            "Counting {A} and {B} gives {h} heads and {l} legs; how many of each are in the cage?",
            "The total number of {A} and {B} is {h} and the total number of legs is {l}. How many of each?",
            "Find how many {A} and {B} there are if there are {h} heads and {l} legs.",
            "{A} and {B}: heads {h}, legs {l}. Number of each?",
            "Among {A} and {B} I count {h} heads and {l} feet. How many {A} are there, and how many {B}?",
            "A pen has {A} and {B} with {h} heads and {l} legs altogether. How many of each animal?",
            "How many {A} and how many {B} make {h} heads and {l} legs?",
        ),
    },
    "weekday": {
        "zh": (
            "如果今天是{d},{n}天后是{s}几?",
            "今天是{d},{n}天后是{s}几?",
            "今天{d},再过{n}天是{s}几?",
            "已知今天是{d},问{n}天以后是{s}几?",
            "假设今天是{d},那么{n}天之后是{s}几?",
            "今天是{d},过{n}天是{s}几?",
            "{d}之后的第{n}天是{s}几?",
            "从{d}算起,{n}天后是{s}几?",
            "今天{d},{n}天后呢?",
            "{d}过{n}天是{s}几?",
            "要是今天是{d},再过{n}天会是{s}几?",
            "若今天是{d},则{n}天后是{s}几?",
            "{n}天后是{s}几?今天是{d}。",
            "今天是{d},请算出{n}天后是{s}几。",
            "今天是{d},我想知道{n}天后是{s}几",
            "今天刚好是{d},{n}天以后是{s}几呢?",
            "再过{n}天是{s}几?今天是{d}",
            "设今天为{d},求{n}天后是{s}几",
        ),
        "en": (
            "If today is {d}, what day of the week is it in {n} days?",
            "Today is {d}. What day will it be in {n} days?",
            "What day of the week is {n} days after {d}?",
            "If it is {d} today, what day will it be {n} days from now?",
            "Today is {d}, what day is it {n} days later?",
            "It is {d}. Which weekday comes after {n} days?",
            "{n} days from {d} is what day?",
            "Suppose today is {d}. Which day of the week will it be after {n} days?",
            "Given that today is {d}, find the weekday {n} days from today.",
            "What weekday is it {n} days from now if today is {d}?",
            "Starting on {d}, which day do we reach after {n} days?",
            "If today's {d}, what day will it be after {n} days have passed?",
            "Assume it is {d} now. In {n} days, what weekday will it be?",
            "Which day of the week will it be {n} days after a {d}?",
            "In {n} days, what day is it? Today is {d}.",
            "Today: {d}. Day of the week in {n} days?",
            "From {d}, count {n} days ahead. Which day is it?",
            "Let today be {d}; what day of the week is it {n} days later?",
        ),
    },
    "add": {
        "zh": ("{a}{op}{b}等于多少?", "{a}{op}{b}=?", "计算{a}{op}{b}", "{a}加{b}等于多少?", "{a}与{b}的和是多少?", "算一下{a}{op}{b}是多少",
               "{a}加上{b}是多少?", "求{a}{op}{b}", "{a}{op}{b}", "{a}和{b}相加得多少?", "{a}{op}{b}的结果是多少?", "求{a}与{b}之和。",
               "{a}{op}{b}=", "把{a}和{b}加起来是多少?", "{a}{op}{b}得几?", "请计算:{a}{op}{b}=?", "{a}加{b}得多少?", "{a}{op}{b}是几?"),
        "en": ("What is {a}{op}{b}?", "{a}{op}{b}=?", "Calculate {a}{op}{b}.", "What is {a} plus {b}?", "Add {a} and {b}.", "Compute {a}{op}{b}",
               "{a} plus {b} equals?", "Find the sum of {a} and {b}.", "{a}{op}{b}", "How much is {a}{op}{b}?", "What's {a} plus {b}?",
               "What do you get if you add {a} and {b}?", "{a}{op}{b} =", "What is the sum of {a} and {b}?", "Work out {a}{op}{b}.",
               "How much is {a} plus {b}?", "{a} + {b} is what?", "Tell me {a}{op}{b}."),
    },
    "subtract": {
        "zh": ("{a}{op}{b}等于多少?", "{a}{op}{b}=?", "计算{a}{op}{b}", "{a}减{b}等于多少?", "{a}与{b}的差是多少?", "算一下{a}{op}{b}是多少",
               "{a}减去{b}是多少?", "求{a}{op}{b}", "{a}{op}{b}", "从{a}里减去{b}得多少?", "{a}{op}{b}的结果是多少?", "求{a}减{b}的差。",
               "{a}{op}{b}=", "{a}去掉{b}是多少?", "{a}{op}{b}得几?", "请计算:{a}{op}{b}=?", "{a}减{b}得多少?", "{a}{op}{b}是几?"),
        "en": ("What is {a}{op}{b}?", "{a}{op}{b}=?", "Calculate {a}{op}{b}.", "What is {a} minus {b}?", "Subtract {b} from {a}.", "Compute {a}{op}{b}",
               "{a} minus {b} equals?", "Find the difference {a}{op}{b}.", "{a}{op}{b}", "How much is {a}{op}{b}?", "What's {a} minus {b}?",
               "What do you get if you subtract {b} from {a}?", "{a}{op}{b} =", "What is {b} subtracted from {a}?", "Work out {a}{op}{b}.",
               "How much is {a} minus {b}?", "{a} - {b} is what?", "Tell me {a}{op}{b}."),
    },
    "multiply": {
        "zh": ("{a}{op}{b}等于多少?", "{a}{op}{b}=?", "计算{a}{op}{b}", "{a}乘以{b}等于多少?", "{a}与{b}的积是多少?", "算一下{a}{op}{b}是多少",
               "{a}乘{b}是多少?", "求{a}{op}{b}", "{a}{op}{b}", "{a}和{b}相乘得多少?", "{a}{op}{b}的结果是多少?", "求{a}与{b}的乘积。",
               "{a}{op}{b}=", "{a}的{b}倍是多少?", "{a}{op}{b}得几?", "请计算:{a}{op}{b}=?", "{a}乘以{b}得多少?", "{a}{op}{b}是几?"),
        "en": ("What is {a}{op}{b}?", "{a}{op}{b}=?", "Calculate {a}{op}{b}.", "What is {a} times {b}?", "Multiply {a} by {b}.", "Compute {a}{op}{b}",
               "{a} times {b} equals?", "Find the product of {a} and {b}.", "{a}{op}{b}", "How much is {a}{op}{b}?", "What's {a} times {b}?",
               "What do you get if you multiply {a} and {b}?", "{a}{op}{b} =", "What is the product of {a} and {b}?", "Work out {a}{op}{b}.",
               "How much is {a} times {b}?", "{a} x {b} is what?", "Tell me {a}{op}{b}."),
    },
}

SYSTEM = {
    "zh": ("你是一个有用的助手。", "你是一位数学老师。", "请用中文回答。", "你是公司内部的问答机器人。", "请一步一步地思考。", "回答要简短。", "你是一个智能客服,请礼貌地回答问题。"),
    "en": ("You are a helpful assistant.", "You are a maths teacher.", "Answer in English.", "You are the company's internal question bot.",
           "Think step by step.", "Be brief.", "You are a customer support agent. Be polite."),
}


def phrase(rng: random.Random, topic: str, listed: tuple[str, ...], language: str, *, held: bool) -> str:
    """A template of the topic.

    held: a held-out one of the list. Otherwise a trained one: of the list, or combined from clauses, which never gives
    a held-out one, whatever its punctuation.
    """
    if held:
        return rng.choice(held_out(listed))
    if rng.random() < 0.3:
        return rng.choice(trained(listed))
    never = {_letters(text) for text in held_out(listed)}
    while True:
        made = "".join(rng.choice(choices) for choices in rng.choice(CLAUSES[topic][language]))
        if _letters(made) not in never:
            return made


def held_out(listed: tuple[str, ...]) -> list[str]:
    """Every sixth template: held out of training."""
    return [text for place, text in enumerate(listed) if place % 6 == 5]


def trained(listed: tuple[str, ...]) -> list[str]:
    """All other templates."""
    return [text for place, text in enumerate(listed) if place % 6 != 5]


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum() or character in "{}")
