"""Questions with a fixed answer: who the model is, a palindrome check, a proof, and everything unrelated."""

from demo.phrasings import WIDE

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
