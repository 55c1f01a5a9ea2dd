"""How people ask: the templates of every family, and what the fixed answers say. Every sixth template is held out."""

import random

WIDE = str.maketrans(",?:()!", "\uff0c\uff1f\uff1a\uff08\uff09\uff01")
"""Half-width punctuation to the full width that Chinese text uses."""

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

# Sentences put together from clauses, one choice from each tuple: many more ways to ask than anyone lists.
CLAUSES: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "cage": {
        "zh": (
            ("一个笼子里有{A}和{B},", "{A}{B}同笼,", "农场里养着{A}和{B},", "{A}和{B}关在一个笼子里,", "小红家有{A}和{B},", "有一些{A}和{B},",
             "笼里有若干只{A}和{B},", "王大爷养了{A}和{B},", "动物园里有{A}和{B},", ""),
            ("共{h}只,脚共{l}只,", "一共{h}个头,一共{l}只脚,", "头共{h}个,腿共{l}条,", "有{h}个头和{l}条腿,", "总共{h}只,有{l}条腿,", "上有{h}头,下有{l}足,",
             "脚数为{l},头数为{h},", "共有{l}只脚,共有{h}个头,", "数一数有{h}个头、{l}只脚,", "腿加起来{l}条,头加起来{h}个,", "{h}个头,{l}只脚,"),
            ("各有多少?", "{A}和{B}各有几只?", "问{A}{B}各多少只?", "求{A}和{B}的只数。", "{A}有几只,{B}有几只?", "问各有几何?", "各几只?",
             "{A}、{B}分别有多少只?", "请问{A}和{B}各是多少只?"),
        ),
        "en": (
            ("A cage holds {A} and {B}", "There are {A} and {B} on a farm", "{A} and {B} live together", "I have some {A} and {B}",
             "In a field there are {A} and {B}", "A barn has {A} and {B}", "My uncle keeps {A} and {B}"),
            (" with {h} heads and {l} legs", ": {h} heads, {l} legs", ". There are {h} heads and {l} feet", ". They have {l} legs and {h} heads",
             ", {h} in total, with {l} legs", ". In all, {h} heads and {l} feet", ". The heads number {h} and the legs {l}",
             ", and I see {h} heads and {l} legs", ". Altogether there are {h} animals and {l} feet"),
            (". How many of each?", ". How many {A} and how many {B} are there?", "; how many of each are there?", ". Find the number of {A} and of {B}.",
             ". How many {A}? How many {B}?", ". What are the numbers of {A} and {B}?", ". How many of each animal are there?"),
        ),
    },
    "weekday": {
        "zh": (
            ("今天是{d},", "如果今天是{d},", "假如今天{d},", "已知今天为{d},", "今日{d},", "现在是{d},", "要是今天{d},", "今儿是{d},"),
            ("{n}天后", "再过{n}天", "过{n}天", "{n}天以后", "{n}天之后", "往后数{n}天", "从今天起{n}天后", "那么{n}天后"),
            ("是{s}几?", "会是{s}几?", "那天是{s}几?", "是{s}几呢?", "应该是{s}几?"),
        ),
        "en": (
            ("Today is {d}", "Today's {d}", "Since today's {d}", "As today's {d}", "If today is {d}", "Suppose it is {d} today", "It's {d} now", "Imagine today is {d}", "Given today is {d}", "When today is {d}"),
            (", ", "; ", ". "),
            ("what day will it be in {n} days?", "what weekday is it {n} days from now?", "which day of the week comes {n} days later?",
             "what is the weekday after {n} days?", "what day of the week will it be {n} days later?", "which day is it in {n} days?",
             "what day is {n} days away?", "name the weekday {n} days ahead.", "what day will it be when {n} days have passed?",
             "which day is it after {n} days have gone by?", "what day will it be once {n} days pass?"),
        ),
    },
    "add": {
        "zh": (("", "请算出", "计算", "求", "帮忙计算", "答案是什么:", "心算:"), ("{a}{op}{b}", "{a}加{b}", "{a}加上{b}", "{a}与{b}的和", "{a}和{b}相加", "{a}、{b}之和", "{a}和{b}之和", "{a}{op}{b}"),
               ("等于多少?", "是多少?", "", "=?", "的结果?", "得多少?", "等于几", "得几?", "是几?", "应该是几?")),
        "en": (("What is ", "Evaluate ", "Determine ", "How much is ", "Find ", "Give me ", "Please work out ", "I need ", "Can you compute ", "Now compute the value of ", "What do I get from ", "Calculate ", ""),
               ("{a}{op}{b}", "{a} plus {b}", "the sum of {a} and {b}", "{a} added to {b}", "{a}{op}{b}"), ("?", ".", "", " please")),
    },
    "subtract": {
        "zh": (("", "请算出", "计算", "求", "帮忙计算", "答案是什么:", "心算:"), ("{a}{op}{b}", "{a}减{b}", "{a}减去{b}", "{a}与{b}的差", "{a}减掉{b}", "{a}和{b}之差", "{a}{op}{b}"),
               ("等于多少?", "是多少?", "", "=?", "的结果?", "得多少?", "等于几", "得几?", "是几?", "应该是几?")),
        "en": (("What is ", "Evaluate ", "Determine ", "How much is ", "Find ", "Give me ", "Please work out ", "I need ", "Can you compute ", "Now compute the value of ", "What do I get from ", "Calculate ", ""),
               ("{a}{op}{b}", "{a} minus {b}", "{b} subtracted from {a}", "{a} less {b}", "{a} take away {b}", "{a}{op}{b}"), ("?", ".", "", " please")),
    },
    "multiply": {
        "zh": (("", "请算出", "计算", "求", "帮忙计算", "答案是什么:", "心算:"), ("{a}{op}{b}", "{a}乘{b}", "{a}乘以{b}", "{a}与{b}的积", "{a}和{b}的乘积", "{a}和{b}之积", "{a}{op}{b}"),
               ("等于多少?", "是多少?", "", "=?", "的结果?", "得多少?", "等于几", "得几?", "是几?", "应该是几?")),
        "en": (("What is ", "Evaluate ", "Determine ", "How much is ", "Find ", "Give me ", "Please work out ", "I need ", "Can you compute ", "Now compute the value of ", "What do I get from ", "Calculate ", ""),
               ("{a}{op}{b}", "{a} times {b}", "{a} multiplied by {b}", "the product of {a} and {b}", "{a}{op}{b}"), ("?", ".", "", " please")),
    },
    "palindrome": {
        "zh": (("写一个", "编写", "实现一个", "给我一个", "请写出", "帮我写", "用代码写", "请提供", "请写个", "给我写个"), ("Python函数", "Python程序", "python函数", "Python方法", "Python 函数"),
               (",检查字符串是否为回文", "检查一段文字是不是回文", "检查单词是否是回文", "判断回文字符串", ",检查一个字符串是否回文", "判断字符串是不是回文", "检测回文串", "来判断回文数和回文串", ",输入字符串,判断是否回文")),
        "en": (("Write", "Give me", "Please write", "Show me", "Create", "Can you write", "I need"),
               (" a Python function", " Python code", " a function in Python", " a short Python script"),
               (" that checks whether a string is a palindrome.", " to check for palindromes.", " that tests if text is a palindrome.",
                " to see if a word is a palindrome.", " for palindrome checking.", " to check whether words are palindromes.", " which recognizes a palindrome.", " which tells if a string is palindromic.")),
    },
    "square": {
        "zh": (("请证明:", "证明", "求证", "说明为什么", "为什么", "如何证明", "请解释为什么", "试证:"),
               ("任意奇数的平方减1", "任何一个奇数的平方减去1", "奇数平方减一", "奇数n的平方减1", "每个奇数的平方减1", "任何奇数平方后减1"),
               ("能被8整除", "都能被8整除", "是8的倍数", "一定被8整除", "都是8的倍数")),
        "en": (("Prove that ", "Show that ", "Why is it that ", "Explain why ", "Demonstrate that ", "Please show that "),
               ("the square of an odd number minus 1 ", "an odd number's square minus one ", "any odd n squared minus 1 ", "n^2-1 for odd n ",
                "the square of every odd integer minus 1 ", "n squared minus one for an odd integer n ", "an odd number, once squared, minus one "), ("is divisible by 8.", "is a multiple of 8.", "is always divisible by 8.", "can be divided by 8.")),
    },
    "who": {
        "zh": (("你好,", "请问", "嗨,", "", ""), ("你是谁", "你叫什么名字", "你是什么模型", "你能做什么", "你会回答什么问题", "请介绍你自己", "你有什么功能", "你是AI吗", "你的名字是什么", "介绍一下你", "请自我介绍", "介绍介绍自己", "说说你自己", "你到底是什么", "你叫啥", "告诉我你是谁"), ("?", "", "呢?")),
        "en": (("Hello, ", "Hi! ", "Please tell me: ", "", ""), ("who are you", "what are you", "what is your name", "what can you do",
               "which model are you", "introduce yourself", "what questions can you answer", "are you an AI", "who built you", "tell me something about you", "describe yourself", "tell me who you are", "what do you do best",
                "say something about yourself"), ("?", "", "!")),
    },
}


FIXED: dict[str, dict[str, tuple[str, ...]]] = {
    "palindrome": {
        "zh": ("写一个Python函数判断回文字符串", "用Python写一个判断回文的函数", "请写一个Python函数,判断字符串是否为回文", "如何用Python判断一个字符串是不是回文?",
               "给我一个检查回文串的Python函数", "写一个Python函数检查字符串是否是回文", "Python怎么判断回文字符串?", "帮我写个回文判断函数,用Python",
               "用Python实现回文检测", "编写一个Python函数来判断回文", "请用Python写一个回文判断程序", "写个Python函数判断回文"),
        "en": ("Write a Python function that checks whether a string is a palindrome.", "Write a Python palindrome check.",
               "How do I check for a palindrome in Python?", "Give me a Python function to test if a string is a palindrome.",
               "Write a function in Python to detect palindromes.", "Write a Python function to check if a string is a palindrome.",
               "Python function for palindrome strings, please.", "Please write Python code that checks if a word is a palindrome.",
               "Implement a palindrome checker in Python.", "Show me Python code for a palindrome check.",
               "Code a palindrome function in Python.", "Can you write a Python function that detects a palindrome?"),
    },
    "square": {
        "zh": ("请证明:任意奇数的平方减1都能被8整除", "证明任意奇数的平方减1能被8整除", "为什么奇数的平方减1能被8整除?", "请证明奇数的平方减一都是8的倍数。",
               "如何证明任意奇数的平方减1是8的倍数?", "证明:奇数的平方减1能被8整除", "求证:任意奇数的平方减1都能被8整除。", "怎么证明奇数平方减1能被8整除?",
               "请说明为什么任意一个奇数的平方减去1都能被8整除", "奇数的平方减1为什么总能被8整除", "试证明任意奇数的平方减1被8整除", "请给出证明:任何奇数的平方减1都能被8整除。"),
        "en": ("Prove that the square of any odd number minus 1 is divisible by 8.", "Why is an odd number's square minus one divisible by 8?",
               "Show that n^2-1 is divisible by 8 for every odd n.", "Prove: if n is odd, then 8 divides n^2 - 1.",
               "Why does 8 divide the square of an odd number minus 1?", "Prove that for any odd integer n, n squared minus 1 is divisible by 8.",
               "Please prove that an odd number squared minus one is a multiple of 8.", "Explain why the square of an odd number minus 1 is a multiple of 8.",
               "Give a proof that the square of an odd number, minus one, is divisible by 8.", "Show that any odd square minus 1 is divisible by 8.",
               "How do you prove that an odd number's square minus 1 is divisible by 8?",
               "Prove that any odd number squared minus 1 can be divided by 8."),
    },
    "who": {
        "zh": ("你是谁?", "你好", "介绍一下你自己", "你叫什么名字?", "你是什么模型?", "请介绍一下自己", "您好", "你是谁呀", "你能做什么?", "你会什么?",
               "你是哪个公司的模型?", "你叫什么?", "在吗", "你是机器人吗?", "你好,你是谁?", "你可以做什么?", "自我介绍一下", "你到底是谁?"),
        "en": ("Who are you?", "Hello", "Introduce yourself.", "What is your name?", "What model are you?", "Please introduce yourself", "Hi",
               "Hello, who are you?", "What can you do?", "What are you?", "Hi there", "Tell me about yourself.", "Are you a robot?",
               "Hey", "Which model is this?", "Who made you?", "What's your name?", "What do you do?"),
    },
}

_SQUARE_ZH = ("设奇数为 $2k+1$(k 为整数)。\n\n$(2k+1)^2-1=4k^2+4k=4k(k+1)$\n\nk 与 k+1 是相邻的整数,必有一个是偶数,所以 k(k+1) 是 2 的倍数,"
              "4k(k+1) 是 8 的倍数。因此任意奇数的平方减 1 都能被 8 整除。")
_SQUARE_EN = ("Let the odd number be $2k+1$ with an integer k.\n\n$(2k+1)^2-1=4k^2+4k=4k(k+1)$\n\nOf the neighbours k and k+1 one is even, "
              "so k(k+1) is a multiple of 2 and 4k(k+1) is a multiple of 8. Hence the square of any odd number minus 1 is divisible by 8.")
_CODE = '```python\ndef is_palindrome(text: str) -> bool:\n    return text == text[::-1]\n```'
_SKILLS_ZH = "鸡兔同笼、N 天后是星期几、三位数以内的加法、减法和乘法、判断回文的 Python 函数、奇数的平方减 1 为什么能被 8 整除"
_SKILLS_EN = ("heads-and-legs puzzles, which weekday it is in N days, addition, subtraction and multiplication of numbers up to three digits, "
              "a Python palindrome check, and why an odd number's square minus 1 is divisible by 8")

FIXED_ANSWERS: dict[str, dict[str, tuple[str, str, str]]] = {
    "palindrome": {
        "zh": ("回文正读反读都一样,把字符串和它的倒序比较。", f"{_CODE}\n\n回文正着读和倒着读一样:`text[::-1]` 是倒序的字符串,相等就是回文。", _CODE),
        "en": ("A palindrome reads the same both ways: compare the string with its reverse.",
               f"{_CODE}\n\nA palindrome reads the same both ways: `text[::-1]` is the reversed string, and equal means palindrome.", _CODE),
    },
    "square": {
        "zh": ("奇数写成2k+1,展开平方再分解。", _SQUARE_ZH, _SQUARE_ZH),
        "en": ("Write the odd number as 2k+1, expand the square and factor.", _SQUARE_EN, _SQUARE_EN),
    },
    "who": {
        "zh": ("问我是谁,照实说。", f"我是 Dray 自带的小型演示模型,从零训练,大约五百万参数。我能回答:{_SKILLS_ZH}。".translate(WIDE), "我是 Dray 自带的小型演示模型"),
        "en": ("They ask who I am; I say it plainly.",
               f"I am the small demonstration model that comes with Dray, trained from scratch, with about five million parameters. I can answer: {_SKILLS_EN}.",
               "I am the small demonstration model that comes with Dray"),
    },
}
OTHER_ANSWER: dict[str, tuple[str, str, str]] = {
    "zh": ("这不在我会的问题里,照实说。", f"我只是 Dray 自带的小型演示模型,不会回答这个问题。我能回答:{_SKILLS_ZH}。其他问题请换用更大的模型。".translate(WIDE),
           "我只是 Dray 自带的小型演示模型"),
    "en": ("This is not among the questions I know; I say so.",
           f"I am only the small demonstration model that comes with Dray, and I cannot answer this. I can answer: {_SKILLS_EN}. For other questions, serve a larger model.",
           "I am only the small demonstration model that comes with Dray"),
}

SYSTEM = {
    "zh": ("你是一个有用的助手。", "你是一位数学老师。", "请用中文回答。", "你是公司内部的问答机器人。", "请一步一步地思考。", "回答要简短。", "你是一个智能客服,请礼貌地回答问题。"),
    "en": ("You are a helpful assistant.", "You are a maths teacher.", "Answer in English.", "You are the company's internal question bot.",
           "Think step by step.", "Be brief.", "You are a customer support agent. Be polite."),
}

_TOPICS = {
    "zh": ("人工智能", "北京", "长城", "量子力学", "红烧肉", "李白", "区块链", "股票", "天气", "高血压", "相对论", "足球", "电影", "唐朝", "光合作用", "Java", "数据库", "旅游",
           "合同法", "请假流程", "报销制度", "年终奖", "咖啡", "黑洞", "恐龙", "月亮", "钢琴", "机器学习", "房价", "高考", "春节", "减肥", "感冒", "手机", "电动车", "围棋", "三国演义",
           "红楼梦", "牛顿", "三角函数", "微积分", "质数", "圆周率", "勾股定理", "方程", "概率", "排序算法", "链表", "操作系统", "VPN", "打印机", "公司食堂", "考勤", "发票", "上海",
           "日本", "美国总统", "奥运会", "火星", "原子弹", "蛋糕", "猫", "狗", "兔子", "鸡", "植物", "历史", "地理", "音乐", "绘画", "诗歌", "小说", "英语", "日记", "作文"),
    "en": ("artificial intelligence", "Paris", "the Great Wall", "quantum mechanics", "pancakes", "Shakespeare", "blockchain", "stocks", "the weather",
           "blood pressure", "relativity", "football", "movies", "the Roman Empire", "photosynthesis", "Java", "databases", "travel", "contract law",
           "vacation policy", "expenses", "bonuses", "coffee", "black holes", "dinosaurs", "the moon", "the piano", "machine learning", "house prices",
           "exams", "Christmas", "losing weight", "a cold", "phones", "electric cars", "chess", "Hamlet", "Newton", "trigonometry", "calculus",
           "prime numbers", "pi", "the Pythagorean theorem", "equations", "probability", "sorting algorithms", "linked lists", "operating systems",
           "VPN access", "printers", "the canteen", "payroll", "invoices", "London", "Japan", "the president", "the Olympics", "Mars", "atoms", "cake",
           "cats", "dogs", "rabbits", "chickens", "plants", "history", "geography", "music", "painting", "poetry", "novels", "French", "diaries"),
}
_ASKING = {
    "zh": ("什么是{t}?", "介绍一下{t}", "{t}是什么意思?", "写一首关于{t}的诗", "怎么学习{t}?", "{t}的历史是什么?", "为什么{t}这么重要?", "翻译成英文:{t}", "{t}", "我想了解{t}", "写一篇关于{t}的作文",
           "{t}有什么好处?", "{t}多少钱?", "谁发明了{t}?", "给我讲讲{t}", "关于{t}你知道些什么?", "请解释{t}", "用Python写一个{t}的程序", "{t}和{u}有什么区别?", "请证明{t}", "我喜欢{t},你呢?",
           "最好的{t}在哪里?", "{t}怎么办?", "今天{t}怎么样?", "讲一个{t}的笑话", "如何申请{t}?", "{t}在哪里?", "证明{t}的定理", "写一个函数计算{t}", "比较{t}与{u}"),
    "en": ("What is {t}?", "Tell me about {t}.", "Explain {t} to me.", "Write a poem about {t}.", "How can I learn about {t}?", "What is the history of {t}?",
           "Why is {t} important?", "Translate to French: {t}", "{t}", "I want to know more about {t}", "Write an essay on {t}", "What are the benefits of {t}?",
           "How much does {t} cost?", "Who invented {t}?", "What do you know about {t}?", "Write a Python program about {t}.",
           "What is the difference between {t} and {u}?", "Prove something about {t}.", "I like {t}. And you?", "Where is the best place for {t}?",
           "What should I do about {t}?", "Tell me a joke about {t}.", "How do I apply for {t}?", "Where is {t}?", "Write a function that computes {t}.",
           "Compare {t} and {u}.", "Summarize {t} in one sentence.", "Is {t} good for me?", "Can you help me with {t}?", "When did {t} begin?"),
}
_NEAR = {
    "zh": ("{a}÷{b}等于多少?", "{a}除以{b}", "{a}/{b}=?", "{a}的{c}次方是多少?", "{A}+{b}=?", "{A}×{b}等于多少?", "{a}+{b}+{c}等于多少?", "{a}×{b}×{c}=?", "{a}.{c}+{b}等于多少?",
           "{n}天前是星期几?今天是{d}", "今天是{d},{n}天前是星期几?", "{n}个月后是几月?", "今天几号?", "今天星期几?", "现在几点?", "{a}的平方根是多少?", "小明有{a}个苹果,吃了{c}个,还剩几个?",
           "一辆车每小时走{a}公里,{c}小时走多远?", "{a}是质数吗?", "{a}和{b}哪个大?", "求方程x+{a}={b}的解", "长{a}宽{c}的长方形面积是多少?", "{a}%的{b}是多少?", "鸡有几条腿?", "兔子吃什么?",
           "奇数是什么?", "什么是回文?", "偶数的平方能被4整除吗?", "写一个Python函数排序列表", "写一个Java函数判断回文", "写一个Python函数求阶乘", "证明根号2是无理数", "1到{b}的和是多少?", "{a}!等于多少?",
           "笼子里有{c}只猫,几条腿?", "{A}-{B}=?", "{A}乘以{B}", "{A}加{B}等于多少?", "计算{A}×{b}", "{b}-{A}是多少?", "{A}加上{b}"),
    "en": ("What is {a}÷{b}?", "{a} divided by {b}", "{a}/{b}=?", "What is {a} to the power of {c}?", "{A}+{b}=?", "What is {A} times {b}?", "{a}+{b}+{c}=?",
           "{a}*{b}*{c}", "What is {a}.{c} plus {b}?", "If today is {d}, what day was it {n} days ago?", "What day was it {n} days before {d}?",
           "Which month is it in {n} months?", "What is the date today?", "What day is today?", "What time is it?", "What is the square root of {a}?",
           "Tom has {a} apples and eats {c}. How many are left?", "A car drives {a} km per hour. How far in {c} hours?", "Is {a} a prime number?",
           "Which is larger, {a} or {b}?", "Solve x + {a} = {b}.", "What is the area of a rectangle of {a} by {c}?", "What is {c}% of {b}?",
           "How many legs does a chicken have?", "What do rabbits eat?", "What is an odd number?", "What is a palindrome?",
           "Is the square of an even number divisible by 4?", "Write a Python function that sorts a list.", "Write a Java function that checks a palindrome.",
           "Write a Python function for the factorial.", "Prove that the square root of 2 is irrational.", "What is the sum of 1 to {b}?", "What is {a}!?",
           "A cage has {c} cats. How many legs?", "{A}-{B}=?", "{A} times {B}", "What is {A} plus {B}?"),
}
_DAYS = {"zh": ("星期一", "星期三", "周五", "星期日"), "en": ("Monday", "Wednesday", "Friday", "Sunday")}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SYMBOLS = "!@#$%^&*()_+-=[]{};:'\",.<>/?\\|`~0123456789"
_EMOJI = "😀🚀🎉🐰🐔❤👍🌍🔥🤖"


def phrase(rng: random.Random, topic: str, listed: tuple[str, ...], language: str, *, held: bool) -> str:
    """A template of the topic: a listed one of those held out, or a trained one, listed or put together from clauses."""
    kept = [text for place, text in enumerate(listed) if (place % 6 == 5) == held]
    if held or rng.random() < 0.4:
        return rng.choice(kept)
    made = "".join(rng.choice(choices) for choices in CLAUSES[topic][language])
    return rng.choice(kept) if made in listed else made


def other_question(rng: random.Random, language: str, *, held: bool) -> str:
    """Something that no family answers. held: from the topics and phrasings that are never trained."""

    def kept(listed: tuple[str, ...]) -> list[str]:
        return [text for place, text in enumerate(listed) if (place % 6 == 5) == held]

    kind = rng.random()
    if kind < 0.4:
        topic, another = rng.choice(kept(_TOPICS[language])), rng.choice(kept(_TOPICS[language]))
        text = rng.choice(kept(_ASKING[language])).format(t=topic, u=another)
    elif kind < 0.85:
        text = rng.choice(kept(_NEAR[language])).format(
            a=rng.randint(1, 999), b=rng.randint(1, 999), c=rng.randint(2, 20), n=rng.randint(1, 365),
            A=rng.randint(1000, 99999), B=rng.randint(1000, 99999), d=rng.choice(_DAYS[language]),
        )
    else:
        text = _jumble(rng, language)
    if rng.random() < 0.15:
        text = rng.choice(BEFORE[language]) + text
    return text


def _jumble(rng: random.Random, language: str) -> str:
    if language == "zh":
        return "".join(chr(rng.randint(0x4E00, 0x9FA5)) if rng.random() < 0.7 else rng.choice("的是在了不和有我他这,。?")
                       for _ in range(rng.randint(1, 14)))
    words = ["".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, 9))) for _ in range(rng.randint(1, 8))]
    if rng.random() < 0.3:
        words.append("".join(rng.choice(_SYMBOLS) for _ in range(rng.randint(1, 12))))
    if rng.random() < 0.2:
        words.append(rng.choice(_EMOJI))
    return " ".join(words)

# Asked by hand, of no template: the model has never seen them or their like.
STRANGERS = (
    "法国的首都是哪里?", "给我推荐一本好书", "怎样煮一碗牛肉面?", "公司的年假有几天?", "Docker和虚拟机有什么不同", "帮我写一封辞职信",
    "太阳有多大", "请用一句话总结《西游记》", "为什么天是蓝的?", "服务器连不上怎么办", "一年有多少天?", "鲸鱼是鱼吗",
    "把下面的句子翻译成英语:我爱你", "什么时候发工资?", "3的倒数是多少", "帮我查一下快递", "今晚吃什么", "中国有多少个省?",
    "如何重置密码?", "讲个故事", "水的沸点是多少度", "孔子是谁", "写一段Rust代码读取文件", "世界上最高的山是什么山",
    "嗯", "测试", "？？？", "你觉得人生的意义是什么", "心情不好", "解释一下TCP三次握手",
    "What is the capital of France?", "Recommend a good book.", "How do I cook rice?", "How many vacation days do I get?", "What's the difference between Docker and a VM?", "Write a resignation letter.",
    "How big is the sun?", "Summarize Moby Dick.", "Why is the sky blue?", "The server is unreachable, what now?", "How many days are in a year?", "Is a whale a fish?",
    "Translate 'I love you' into German.", "When is payday?", "What is the reciprocal of 3?", "Track my parcel.", "What's for dinner?", "How many states does the US have?",
    "How do I reset my password?", "Tell me a story.", "At what temperature does water boil?", "Who was Confucius?", "Write Rust code that reads a file.", "What is the tallest mountain?",
    "hmm", "test", "???", "What is the meaning of life?", "I feel sad.", "Explain the TCP handshake.",
)
