"""Grammars that combine clauses into questions: many more phrasings than a list could hold (`demo.phrasings` has one).

A topic has grammars for each language. A grammar is a sequence of choices, and a question takes one of each.
"""

Grammar = tuple[tuple[str, ...], ...]

_CAGE_ZH: tuple[Grammar, ...] = (
    (
        ("一个笼子里有{A}和{B},", "{A}{B}同笼,", "农场里养着{A}和{B},", "{A}和{B}关在一个笼子里,", "小红家有{A}和{B},", "有一些{A}和{B},",
         "笼里有若干只{A}和{B},", "王大爷养了{A}和{B},", "动物园里有{A}和{B},", "", "把{A}和{B}放在一起,", "笼子里关着{A}和{B},", "院子里{A}和{B}都有,",
         "草地上有{A}和{B},", "{A}与{B}在一起,", "一个笼子里关了{A}和{B},", "{A}{B}在同一个笼子里,", "已知笼中有{A}和{B},", "现有{A}和{B},", "若干{A}和{B}",
         "如果有{A}和{B}", "{A}和{B}"),
        ("共{h}只,脚共{l}只,", "一共{h}个头,一共{l}只脚,", "头共{h}个,腿共{l}条,", "有{h}个头和{l}条腿,", "总共{h}只,有{l}条腿,", "上有{h}头,下有{l}足,",
         "脚数为{l},头数为{h},", "共有{l}只脚,共有{h}个头,", "数一数有{h}个头、{l}只脚,", "腿加起来{l}条,头加起来{h}个,", "{h}个头,{l}只脚,",
         "总共{h}个头,总共{l}条腿,", "共{h}个头{l}只脚,", "数头有{h}个,数腿有{l}条,", "头有{h}个,脚有{l}只,", "合计{h}只,{l}只脚,", "一共{h}只,一共{l}只脚,",
         "加起来{h}只,腿{l}条,", "它们有{l}只脚和{h}个头,", "脚共{l}只,头共{h}个,", "头{h}个,脚{l}只;", "共{l}条腿,{h}个头,", "头的总数是{h},脚的总数是{l},",
         "从上面看有{h}个头,从下面看有{l}条腿,", "共{h}只,足共{l}只,", "总数{h}只,总脚数{l}只,"),
        ("各有多少?", "{A}和{B}各有几只?", "问{A}{B}各多少只?", "求{A}和{B}的只数。", "{A}有几只,{B}有几只?", "问各有几何?", "各几只?",
         "{A}、{B}分别有多少只?", "请问{A}和{B}各是多少只?", "各是几只?", "{A}多少只?{B}多少只?", "分别是几只?", "{A}和{B}分别有几只?", "求各有几只。",
         "它们各有多少只?", "各为多少?", "问{A}、{B}各有多少?", "那么{A}和{B}各几只?", "求{A}{B}各有多少只", "请算出{A}和{B}的数量", "{A}几只{B}几只?"),
    ),
    (
        ("共有{h}只{A}和{B},", "{h}只{A}和{B},", "笼里一共{h}只{A}和{B},", "{h}个头的{A}和{B},", "养了{h}只{A}和{B},", "小明数了{h}只{A}和{B},"),
        ("脚共{l}只,", "一共{l}条腿,", "共有{l}只脚,", "有{l}条腿,", "它们的脚有{l}只,", "腿数是{l},", "总共{l}只脚,"),
        ("各有多少?", "{A}和{B}各有几只?", "各多少只?", "求{A}和{B}各几只。", "问{A}几只,{B}几只?", "{A}、{B}各是多少?", "分别有多少只?"),
    ),
)
_CAGE_EN: tuple[Grammar, ...] = (
    (
        ("A cage holds {A} and {B}", "There are {A} and {B} on a farm", "{A} and {B} live together", "I have some {A} and {B}",
         "In a field there are {A} and {B}", "A barn has {A} and {B}", "My uncle keeps {A} and {B}", "In a pen there are {A} and {B}",
         "The zoo has {A} and {B}", "A farmer owns {A} and {B}", "Some {A} and {B} are in a cage", "{A} and {B} share a yard",
         "On the farm I count {A} and {B}", "A box contains {A} and {B}", "Only {A} and {B} are in the cage", "{A} and {B}", "A yard has {A} and {B}",
         "In a cage are {A} and {B}", "We keep {A} and {B}"),
        (" with {h} heads and {l} legs", ": {h} heads, {l} legs", ". There are {h} heads and {l} feet", ". They have {l} legs and {h} heads",
         ", {h} in total, with {l} legs", ". In all, {h} heads and {l} feet", ". The heads number {h} and the legs {l}",
         ", and I see {h} heads and {l} legs", ". Altogether there are {h} animals and {l} feet", ", {h} heads and {l} feet in total",
         ". Together they have {h} heads and {l} legs", ". There are {l} legs and {h} heads in total", ", {h} of them with {l} legs",
         ". I count {h} heads and {l} legs", "; heads: {h}, legs: {l}", ". In total there are {h} animals with {l} legs", " with {l} feet and {h} heads",
         ". Heads: {h}. Feet: {l}", " have {h} heads and {l} legs together", ", with {h} heads in total and {l} legs in total", ". They have {l} feet and are {h} in number"),
        (". How many of each?", ". How many {A} and how many {B} are there?", "; how many of each are there?", ". Find the number of {A} and of {B}.",
         ". How many {A}? How many {B}?", ". What are the numbers of {A} and {B}?", ". How many of each animal are there?", ". How many of each kind?",
         ". How many are {A} and how many are {B}?", ". How many of each kind are there?", ". Find how many of each there are.",
         ". Tell me the number of each animal.", "; how many {A} and {B} are there?", ". What is the number of each?", ". How many of each do we have?",
         ". How many of them are {A}, and how many {B}?", ", how many of each?"),
    ),
    (
        ("There are {h} {A} and {B}", "A pen holds {h} {A} and {B}", "Together {h} {A} and {B} live here", "We see {h} {A} and {B}", "{h} {A} and {B} are in a cage",
         "A farm keeps {h} {A} and {B}", "Given {h} {A} and {B}"),
        (" with {l} legs", ". They have {l} legs in total", " with {l} feet in total", ", having {l} legs", ". There are {l} feet", " and {l} legs", ". I count {l} feet"),
        (". How many of each?", ". How many {A} and how many {B}?", "; how many of each kind are there?", ". Find the number of each.", ", how many of each are there?",
         ". How many {A} are there? And how many {B}?"),
    ),
    (
        ("How many {A} and {B}", "How many of the animals are {A} and how many {B}", "What numbers of {A} and {B}", "Find the number of {A} and {B}"),
        (" are there with {h} heads and {l} legs", " are there if there are {h} heads and {l} feet", " give {h} heads and {l} legs", " have {h} heads and {l} feet",
         " if the heads are {h} and the legs {l}", " given {h} heads and {l} legs"),
        ("?", " in total?", " together?", ""),
    ),
)

_TODAY_ZH = ("今天是{d},", "如果今天是{d},", "假如今天{d},", "已知今天为{d},", "今日{d},", "现在是{d},", "要是今天{d},", "今儿是{d},", "假如今天是{d},", "今天{d},",
             "假设今天是{d},", "设今天是{d},", "若今天是{d},", "若今天为{d},", "今天刚好{d},", "今天正好是{d},", "倘若今天是{d},", "今天为{d},", "我们知道今天是{d},",
             "这天是{d},", "如果今天{d},", "今日是{d},", "现在{d},", "要是今天为{d},")
_WEEKDAY_ZH: tuple[Grammar, ...] = (
    (
        _TODAY_ZH,
        ("{n}天后", "再过{n}天", "过{n}天", "{n}天以后", "{n}天之后", "往后数{n}天", "从今天起{n}天后", "那么{n}天后", "则{n}天后", "请问{n}天后", "再过{n}天后", "过了{n}天",
         "过完{n}天", "等{n}天", "那{n}天之后", "向后数{n}天", "问{n}天后", "求{n}天后", "我想知道{n}天后", "请算出{n}天之后", "那么再过{n}天", "问再过{n}天"),
        ("是{s}几?", "会是{s}几?", "那天是{s}几?", "是{s}几呢?", "应该是{s}几?", "为{s}几?", "是{s}几", "将是{s}几?", "那一天是{s}几?", "是{s}几啊?", "呢?", "到{s}几?"),
    ),
    (
        ("{n}天后", "再过{n}天", "{n}天以后", "{n}天之后", "过{n}天", "请问{n}天后", "过了{n}天"),
        ("是{s}几?", "会是{s}几?", "应该是{s}几?", "是{s}几呢?", "将是{s}几?"),
        ("今天是{d}。", "已知今天是{d}", "今天{d}", "如果今天是{d}", "假如今天是{d}。", "(今天是{d})", "现在是{d}", "今天为{d}。"),
    ),
    (
        ("{d}", "从{d}开始", "从{d}起", "由{d}", "请问{d}", "求{d}", "算一下{d}", "我想知道{d}", "以{d}为起点,"),
        ("往后{n}天", "再过{n}天", "过后{n}天", "之后{n}天", "后{n}天", "数{n}天", "往后数{n}天", "的{n}天后", "再数{n}天", "后面第{n}天", "以后{n}天"),
        ("是{s}几?", "会是{s}几?", "是{s}几", "到{s}几?", "应该是{s}几?", "那天是{s}几?", "是{s}几呢?"),
    ),
)
_WEEKDAY_EN: tuple[Grammar, ...] = (
    (
        ("Today is {d}", "Today's {d}", "Since today's {d}", "As today's {d}", "If today is {d}", "Suppose it is {d} today", "It's {d} now", "Imagine today is {d}",
         "Given today is {d}", "When today is {d}", "If it's {d} today", "Assume today is {d}", "Assuming today is {d}", "Say today is {d}", "It is {d} today",
         "It is {d}", "Now it is {d}", "Today's a {d}", "Because today is {d}", "Knowing that today is {d}", "Given that it is {d}", "Let's say it is {d}",
         "If today were {d}", "Today happens to be {d}", "We have {d} today", "Let today be a {d}", "I know that today is {d}"),
        (", ", "; ", ", then ", ", and ", ", so ", ": ", " - "),
        ("what day will it be in {n} days?", "what weekday is it {n} days from now?", "which day of the week comes {n} days later?",
         "what is the weekday after {n} days?", "what day of the week will it be {n} days later?", "which day is it in {n} days?",
         "what day is {n} days away?", "name the weekday {n} days ahead.", "what day will it be when {n} days have passed?",
         "which day is it after {n} days have gone by?", "what day will it be once {n} days pass?", "what day will it be {n} days later?",
         "what day will it be after {n} days?", "what weekday will it be after {n} days have passed?", "what day of the week will it be in {n} days?",
         "which weekday will it be {n} days from today?", "what's the day in {n} days?", "which weekday do we have in {n} days?",
         "what day of the week is it after {n} days?", "tell me the weekday in {n} days.", "find the day of the week {n} days from now.",
         "what will the day be in {n} days?", "{n} days from now is what day?", "in {n} days it will be what day?", "after {n} days, what day is it?",
         "{n} days later it is what day?", "what day is it {n} days later?", "which day comes after {n} days?", "the day {n} days later is what?",
         "what is the day of the week {n} days from today?", "on what weekday do {n} days end?"),
    ),
    (
        ("Today is {d}. ", "It is {d}. ", "It's {d} today. ", "Now it is {d}. ", "Assume it is {d}. ", "Suppose today is {d}. ", "It is {d} now. ", "Today: {d}. "),
        ("What day will it be in {n} days?", "Which day is it after {n} days?", "In {n} days, which day of the week is it?", "What weekday comes {n} days later?",
         "After {n} days, what day will it be?", "What will be the weekday {n} days from now?", "Which day of the week follows {n} days later?",
         "Weekday in {n} days?", "Which weekday will we have after {n} days?", "What day of the week comes in {n} days?", "{n} days later, what day is it?",
         "Day of the week after {n} days?"),
    ),
    (
        ("What day is it", "What day will it be", "Which day of the week is it", "Which weekday is it", "What day of the week will it be", "What weekday comes",
         "Tell me which weekday it is", "Find the day of the week", "Which day falls"),
        (" {n} days after {d}", " {n} days from {d}", " {n} days past {d}", " in {n} days if today is {d}", " in {n} days when today is {d}",
         " {n} days from now if it is {d}", " after {n} days if it is {d} now", " {n} days later if we start on {d}", " {n} days following {d}",
         " when {n} days have passed since {d}", " {n} days after today, {d}"),
        ("?", "", " please?"),
    ),
    (
        ("Starting from {d}", "Counting from {d}", "Beginning on {d}", "Starting at {d}", "If we begin on {d}", "Going forward from {d}", "Leaving on {d}"),
        (", which day do we reach in {n} days?", ", what day is {n} days later?", ", count {n} days: which day is it?", ", go {n} days forward. What day is it?",
         ", what weekday comes after {n} days?", ", {n} days later is which day?", ", in {n} days we reach which day?", ", where are we after {n} days?"),
    ),
    (
        ("{n} days after {d}", "{n} days past {d}", "{n} days later than {d}", "{n} days on from {d}", "Add {n} days to {d}", "{d} plus {n} days", "{d} and {n} days more"),
        (" is what day?", " is which weekday?", ": which day?", " will be what day?", ", what day is it?", ": what weekday is that?", " gives which day?", "?"),
    ),
)

_ZH_BEFORE = ("", "", "", "请算出", "计算", "求", "帮忙计算", "答案是什么:", "心算:", "请计算", "算一下", "算算", "告诉我", "请告诉我", "我想知道", "麻烦算下", "来算一道题:", "口算:",
              "列式计算:", "帮我算算", "快速计算", "请求出", "试求", "那么", "计算一下")
_ZH_AFTER = ("等于多少?", "是多少?", "", "=?", "=", "等于?", "的结果?", "的结果是多少?", "得多少?", "等于几", "等于几?", "得几?", "是几?", "应该是几?", "结果是什么?", "的值",
             "的值是多少?", "为多少?", "是多少呢?", "的答案", "的结果是什么?", "应该等于多少?", "等于什么?", "怎么算?", "能得多少?", "结果是几?")
_EN_BEFORE = ("What is ", "What's ", "Evaluate ", "Determine ", "How much is ", "Find ", "Give me ", "Please work out ", "Work out ", "I need ", "Can you compute ",
              "Now compute the value of ", "What do I get from ", "Calculate ", "Compute ", "Tell me ", "Please calculate ", "Please compute ", "Could you tell me ",
              "I want to know ", "Do you know ", "Let's compute ", "Please find ", "Show me ", "Compute the value of ", "Work out the value of ", "", "", "")
_EN_AFTER = ("?", ".", "", " please", " for me.", ", please.", "? Thank you.", "!")
_EN_TAILS = (" equals?", " =", " = ?", " is what?", " is how much?", " equals what?", " makes what?", " gives what?", " comes to what?", " is equal to?", ": what is it?",
             "? How much is it?", ", how much is that?", ": result?")
_ZH_TERMS = {
    "add": ("{a}{op}{b}", "{a}{op}{b}", "{a}{op}{b}", "{a}加{b}", "{a}加上{b}", "{a}与{b}的和", "{a}和{b}的和", "{a}和{b}相加", "{a}与{b}相加", "{a}、{b}之和", "{a}和{b}之和",
            "{a}与{b}之和", "{a}跟{b}的和", "{a}再加{b}", "{a}再加上{b}", "{a}同{b}的和"),
    "subtract": ("{a}{op}{b}", "{a}{op}{b}", "{a}{op}{b}", "{a}减{b}", "{a}减去{b}", "{a}与{b}的差", "{a}和{b}的差", "{a}减掉{b}", "{a}和{b}之差", "{a}与{b}之差", "从{a}中减去{b}",
                 "从{a}里去掉{b}", "{a}减{b}的差", "{a}减去{b}的差", "{a}去掉{b}", "{a}扣掉{b}", "{a}再减{b}", "{a}拿走{b}"),
    "multiply": ("{a}{op}{b}", "{a}{op}{b}", "{a}{op}{b}", "{a}乘{b}", "{a}乘以{b}", "{a}乘上{b}", "{a}与{b}的积", "{a}和{b}的积", "{a}和{b}的乘积", "{a}与{b}的乘积", "{a}和{b}之积",
                 "{a}与{b}之积", "{a}和{b}相乘", "{a}与{b}相乘", "{a}的{b}倍", "{a}再乘{b}", "{a}跟{b}的积"),
}
_EN_TERMS = {
    "add": ("{a}{op}{b}", "{a}{op}{b}", "{a}{op}{b}", "{a} plus {b}", "the sum of {a} and {b}", "{a} added to {b}", "{a} and {b} added together", "the total of {a} and {b}",
            "{a} and {b} in sum", "{a} increased by {b}", "the addition of {a} and {b}"),
    "subtract": ("{a}{op}{b}", "{a}{op}{b}", "{a}{op}{b}", "{a} minus {b}", "{b} subtracted from {a}", "{a} less {b}", "{a} take away {b}", "the difference of {a} and {b}",
                 "the difference {a} minus {b}", "{a} reduced by {b}", "{a} decreased by {b}", "{b} taken from {a}", "{b} taken away from {a}"),
    "multiply": ("{a}{op}{b}", "{a}{op}{b}", "{a}{op}{b}", "{a} times {b}", "{a} multiplied by {b}", "the product of {a} and {b}", "{a} multiplied with {b}",
                 "{a} and {b} multiplied together", "the multiplication of {a} and {b}", "{a} by {b} multiplied"),
}
_EN_ORDERS = {
    "add": ("Add {a} and {b}", "Add up {a} and {b}", "Sum {a} and {b}", "Sum up {a} and {b}", "Add together {a} and {b}", "Put {a} and {b} together", "If you add {a} and {b} you get what"),
    "subtract": ("Subtract {b} from {a}", "Take {b} from {a}", "Take {b} away from {a}", "Take away {b} from {a}", "Deduct {b} from {a}", "If you subtract {b} from {a} you get what"),
    "multiply": ("Multiply {a} by {b}", "Multiply {a} with {b}", "Multiply {a} and {b}", "Multiply together {a} and {b}", "Find {a} multiplied by {b}", "If you multiply {a} and {b} you get what"),
}
_ZH_ORDERS = {
    "add": ("把{a}和{b}相加", "把{a}与{b}加起来", "将{a}加上{b}", "将{a}和{b}相加", "{a}和{b}加在一起", "{a}和{b}加起来"),
    "subtract": ("把{a}减去{b}", "用{a}减去{b}", "用{a}减{b}", "将{a}减去{b}", "从{a}中拿走{b}", "从{a}减去{b}"),
    "multiply": ("把{a}和{b}相乘", "把{a}乘以{b}", "用{a}乘以{b}", "用{a}乘{b}", "将{a}与{b}相乘", "将{a}乘以{b}"),
}


def _sums(operation: str) -> dict[str, tuple[Grammar, ...]]:
    zh, en = _ZH_TERMS[operation], _EN_TERMS[operation]
    return {
        "zh": ((_ZH_BEFORE, zh, _ZH_AFTER), (_ZH_BEFORE, zh, _ZH_AFTER), (("", "请", "请你", "现在"), _ZH_ORDERS[operation], _ZH_AFTER)),
        "en": ((_EN_BEFORE, en, _EN_AFTER), (("", "", "So ", "Then "), en, _EN_TAILS), (("", "Please "), _EN_ORDERS[operation], (".", "", "?", " please.", ", please"))),
    }


_PALINDROMES_ZH = ("判断回文字符串", "检查字符串是否为回文", "检查一段文字是不是回文", "检查单词是否是回文", "检查一个字符串是否回文", "判断字符串是不是回文", "检测回文串", "判断回文数和回文串",
                   "判断一个词是不是回文", "判断字符串是否是回文", "判断是否回文", "判断输入是否为回文", "检查回文", "识别回文字符串", "验证回文串", "看一个字符串是不是回文")
_PALINDROMES_EN = (" that checks whether a string is a palindrome", " to check for palindromes", " that tests if text is a palindrome", " to see if a word is a palindrome",
                   " for palindrome checking", " to check whether words are palindromes", " which recognizes a palindrome", " which tells if a string is palindromic",
                   " to detect a palindrome", " that detects palindromes", " to test for a palindrome", " to decide if a string is a palindrome", " for palindromes",
                   " that says whether a text is a palindrome", " to verify palindromes")
_ODD_ZH = ("任意奇数的平方减1", "任何一个奇数的平方减去1", "奇数平方减一", "奇数n的平方减1", "每个奇数的平方减1", "任何奇数平方后减1", "奇数的平方减去1", "任意一个奇数平方减1", "一个奇数的平方减1",
           "奇数的平方减一", "所有奇数的平方减1", "任意奇数平方再减1")
_BY_8_ZH = ("能被8整除", "都能被8整除", "是8的倍数", "一定被8整除", "都是8的倍数", "可以被8整除", "总能被8整除", "必是8的倍数", "总是8的倍数", "一定是8的倍数")
_ODD_EN = ("the square of an odd number minus 1 ", "an odd number's square minus one ", "any odd n squared minus 1 ", "n^2-1 for odd n ",
           "the square of every odd integer minus 1 ", "n squared minus one for an odd integer n ", "an odd number, once squared, minus one ",
           "the square of any odd integer, minus 1, ", "one less than the square of an odd number ", "an odd square minus 1 ", "an odd number squared minus 1 ",
           "n^2 - 1 with n odd ")
_BY_8_EN = ("is divisible by 8", "is a multiple of 8", "is always divisible by 8", "can be divided by 8", "is always a multiple of 8", "must be divisible by 8",
            "is evenly divisible by 8")

CLAUSES: dict[str, dict[str, tuple[Grammar, ...]]] = {
    "cage": {"zh": _CAGE_ZH, "en": _CAGE_EN},
    "weekday": {"zh": _WEEKDAY_ZH, "en": _WEEKDAY_EN},
    "add": _sums("add"),
    "subtract": _sums("subtract"),
    "multiply": _sums("multiply"),
    "palindrome": {
        "zh": (
            (("写一个", "编写", "实现一个", "给我一个", "请写出", "帮我写", "用代码写", "请提供", "请写个", "给我写个", "写", "请编写一个", "我要一个", "设计一个", "写个"),
             ("Python函数", "Python程序", "python函数", "Python方法", "Python 函数", "Python代码", "Python脚本"), ("", ",", ",用来", "来", "去", ",要能"), _PALINDROMES_ZH),
            (("用Python", "请用Python", "怎么用Python", "如何用Python", "用python", "使用Python", "在Python里", "Python如何", "Python里怎么", "帮我用Python"),
             ("", "写个函数", "写一个函数", "写代码", "写一段程序", "编程"), _PALINDROMES_ZH, ("", "?", "。")),
        ),
        "en": (
            (("Write", "Give me", "Please write", "Show me", "Create", "Can you write", "I need", "Code", "Implement", "Provide", "Help me write", "Could you write", "Make"),
             (" a Python function", " Python code", " a function in Python", " a short Python script", " a Python program", " some Python", " a Python method"),
             _PALINDROMES_EN, (".", "?", "", ", please.")),
            (("In Python, how do I", "How can I", "How do you", "How to", "Use Python to", "With Python,"), (" check", " test", " detect", " find out", " verify", " tell"),
             (" whether a string is a palindrome", " if a word is a palindrome", " whether text is a palindrome", " if something is a palindrome"), (" in Python?", " using Python?", " with Python.")),
        ),
    },
    "square": {
        "zh": (
            (("请证明:", "证明", "求证", "说明为什么", "为什么", "如何证明", "请解释为什么", "试证:", "请证明", "证明:", "怎么证明", "请说明", "请推导:", "能证明", "帮我证明", "求证:", "请给出证明:"),
             _ODD_ZH, _BY_8_ZH, ("", "?", "。", "吗?")),
        ),
        "en": (
            (("Prove that ", "Show that ", "Why is it that ", "Explain why ", "Demonstrate that ", "Please show that ", "Please prove that ", "Give a proof that ",
              "How do I prove that ", "Show why ", "Can you prove that ", "Verify that ", "Prove: ", "Tell me why ", "How can one show that "), _ODD_EN, _BY_8_EN, (".", "?", "")),
        ),
    },
    "who": {
        "zh": (
            (("你好,", "请问", "嗨,", "", "", "您好,", "哈喽,", "那么"),
             ("你是谁", "你叫什么名字", "你是什么模型", "你能做什么", "你会回答什么问题", "请介绍你自己", "你有什么功能", "你是AI吗", "你的名字是什么", "介绍一下你", "请自我介绍", "介绍介绍自己",
              "说说你自己", "你到底是什么", "你叫啥", "告诉我你是谁", "请介绍自己", "介绍你自己", "你是干什么的", "你是做什么的", "你会做什么", "你会哪些东西", "你能回答哪些问题", "你是人吗", "你是机器吗",
              "你是什么", "你是哪个模型", "你叫什么呢", "谁是你", "请问你是哪位", "你有名字吗", "你是谁做的", "谁训练了你", "你来自哪里", "简单介绍一下自己", "做个自我介绍"), ("?", "", "呢?", "。", "!")),
        ),
        "en": (
            (("Hello, ", "Hi! ", "Please tell me: ", "", "", "Hey, ", "Hello. ", "So ", "Hi, "),
             ("who are you", "what are you", "what is your name", "what can you do", "which model are you", "introduce yourself", "what questions can you answer", "are you an AI",
              "who built you", "tell me something about you", "describe yourself", "tell me who you are", "what do you do best", "say something about yourself", "who trained you",
              "are you human", "are you a person", "what kind of model are you", "what model is this", "what is this model", "tell me your name", "what are you able to do",
              "what can I ask you", "what do you know", "who am I talking to", "what should I call you", "where do you come from", "please introduce yourself", "do you have a name"),
             ("?", "", "!", ".")),
        ),
    },
}
