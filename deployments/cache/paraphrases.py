"""Ways to ask the same: rules that bring questions with the same answer into one form, in English and Chinese.

Each rule is about a whole question or its beginning, because hardly any two words mean the same everywhere: `remove` is
`delete` for an account, and not for a member of a team; `sign in` is `log in`, but not in `sign in ink`. A rule that is
not sure to keep the meaning does not belong here; benchmarks/near_twins.py counts what each finds and confuses.

Texts come as `equivalence` leaves them: in lower case at the start, without articles, greetings and the question mark;
`how to` and its like read `how do i`, and 如何 reads 怎么. Repetitions are bounded: no expression takes time out of
proportion to the text.
"""

import re
from collections.abc import Callable

MAX_CHARACTERS = 300
"""Rules describe short questions. A longer text is compared word by word."""

_Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

# A few words of a question, without punctuation.
_X = r"([^,.;:?!]{1,80})"
_WORD = r"([a-z]{2,20})"

_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
_UNITS += ["seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_BELOW_100 = {word: number for number, word in enumerate(_UNITS)} | {
    word: 10 * number for number, word in enumerate(_TENS, 2)
}
_BELOW_100 |= {
    f"{ten}{joint}{_UNITS[unit]}": 10 * number + unit
    for number, ten in enumerate(_TENS, 2)
    for unit in range(1, 10)
    for joint in "- "
}
_SMALL = "|".join(sorted(_BELOW_100, key=len, reverse=True))
_ONE_WORD = rf"(?:{'|'.join([*_UNITS, *_TENS])})\b"
# All number words that stand together, of which a part alone means something else.
_NUMBERS = re.compile(rf"\b{_ONE_WORD}(?:(?: and)?[ -](?:{_ONE_WORD}|hundred|thousand|million)\b){{0,9}}")
_NUMBER = re.compile(rf"(?:({_SMALL}) hundred(?:(?: and)? ({_SMALL}))?|({_SMALL}))")

_VERBS = {
    "modify": "change",
    "purchase": "buy",
    "begin": "start",
    "repair": "fix",
    "select": "choose",
    "obtain": "get",
    "view": "see",
}
_MEASURES = {"height": "how tall is", "age": "how old is", "length": "how long is"}


def _number(words: re.Match[str]) -> str:
    found = _NUMBER.fullmatch(words[0])
    if found is None or words[0] == "one":  # mostly a pronoun
        return words[0]
    hundreds, rest, small = found.groups()
    if small is not None:
        return str(_BELOW_100[small])
    return str(100 * _BELOW_100[hundreds] + (_BELOW_100[rest] if rest else 0))


_BEFORE_OPENINGS: tuple[_Rule, ...] = (
    (re.compile(r"^quick question[:,] "), ""),
    (re.compile(r"^(?:please )?(?:tell|give) me the "), "what is the "),
    (re.compile(r"^i (?:was|am) wondering,? "), ""),
    (re.compile(r"^(?:(?:can|could|would|will) you )?(?:please |kindly )?explain (?=how (?:to|do i) )"), ""),
    (re.compile(r"[.!,]? (?:thanks|thank you) in advance$"), ""),
)
_ENGLISH: tuple[_Rule, ...] = (
    (re.compile(r"^how (?:exactly do|would) i "), "how do i "),
    (re.compile(r"^what is way to "), "how do i "),
    (re.compile(r"^where can i "), "where do i "),
    (re.compile(r"^what (?:do i (?:have|need) to do|steps do i follow) to "), "how do i "),
    (re.compile(rf"^i (?:want|need|would like) to {_X}[,.] how(?: do i do (?:it|that|this))?$"), r"how do i \1"),
    (re.compile(rf"^{_X}: how do i ([a-z ]{{2,30}}) (?:it|them)$"), r"how do i \2 \1"),
    (re.compile(rf"^how do i (?:turn|switch) {_X} on$"), r"how do i enable \1"),
    (re.compile(rf"^how do i (?:turn|switch) {_X} off$"), r"how do i disable \1"),
    (re.compile(rf"^(how|where) do i ({'|'.join(_VERBS)})(?= )"), lambda found: f"{found[1]} do i {_VERBS[found[2]]}"),
    (re.compile(r"^how do i remove my account$"), "how do i delete my account"),
    (re.compile(r"^how do i sign (in|out)(?= to | with | using |$)"), r"how do i log \1"),
    (re.compile(rf"^in which {_WORD} (?:is|are) {_X} included$"), r"which \1 include \2"),
    (re.compile(rf"^which {_WORD} (?:is|are) {_X} included in$"), r"which \1 include \2"),
    (re.compile(rf"^{_X} (?:is|are) included in which {_WORD}$"), r"which \2 include \1"),
    (re.compile(r"^what (?!does |is |was |has |this )([a-z]{2,20}s) (?=are |do |include |support )"), r"which \1 "),
    (re.compile(rf"^which {_WORD} do you support$"), r"which \1 are supported"),
    (re.compile(r"^how much is (?=\d)"), "what is "),
    (re.compile(rf"^what does {_X} cost$"), r"how much does \1 cost"),
    (re.compile(rf"^what is (?:price|cost) of {_X}$"), r"how much does \1 cost"),
    (re.compile(rf"^how (?:much|expensive) is {_X}$"), r"how much does \1 cost"),
    (
        re.compile(rf"^what is ({'|'.join(_MEASURES)}) of {_X}$"),
        lambda found: f"{_MEASURES[found[1]]} {found[2]}",
    ),
    (re.compile(r"^(?:at )?what time does "), "when does "),
    (re.compile(rf"^how much time does {_X} take$"), r"how long does \1 take"),
    (re.compile(r"^who (?:is|was) author of "), "who wrote "),
    (re.compile(rf"^who was {_X} written by$"), r"who wrote \1"),
    (re.compile(r"^who (?:is|was) founder of "), "who founded "),
    (re.compile(rf"^what is meaning of {_X}$"), r"what does \1 mean"),
    (re.compile(rf"^explain how {_X} works$"), r"how does \1 work"),
    (re.compile(rf"^explain {_X} to me$"), r"explain \1"),
    (re.compile(r"^(?:is it possible to|am i able to) "), "can i "),
    (re.compile(rf"^how many {_WORD} are there (?:in|at) {_X}$"), r"how many \1 has \2"),
    (re.compile(rf"^how many {_WORD} does {_X} have$"), r"how many \1 has \2"),
    (re.compile(r"^calculate (?=\d)"), "what is "),
    (re.compile(r"(?<=\d) plus (?=\d)"), " + "),
    (re.compile(r"(?<=\d) minus (?=\d)"), " - "),
    (re.compile(r"(?<=\d) (?:times|multiplied by|x|×) (?=\d)"), " * "),
    (re.compile(r"(?<=\d) (?:divided by|/) (?=\d)"), " ÷ "),
)

_P = r"([^,.;:?!]{1,40}?)"
_ACTIONS = (
    "重置|修改|删除|取消|启用|禁用|关闭|创建|注销|购买|设置|查看|登录|申请|下载|安装|升级|导出|导入|续费|绑定|解绑"
)
# Who acts may stand where what is acted on does: 管理员怎么删除 asks for either.
_THING = r"([^,.;:?!怎么]{0,20}[^,.;:?!怎么员人者户师生方我你他她它们团队司家])"
_OPINION = "知道|觉得|认为|说|想|问|解释|告诉|明白"
_DIGITS = "零一二三四五六七八九"


def _in_chinese(number: int) -> str:
    """The number below 1,000 as it is written in full."""
    hundreds, tens, units = number // 100, number // 10 % 10, number % 10
    text = f"{_DIGITS[hundreds]}百" if hundreds else ""
    if tens:
        text += "十" if tens == 1 and not hundreds else f"{_DIGITS[tens]}十"
    elif hundreds and units:
        text += "零"
    return text + (_DIGITS[units] if units or not number else "")


_CHINESE_NUMBERS = {_in_chinese(number): str(number) for number in range(1000)}
_OPERATORS = {"加": "+", "减": "-", "乘以": "*", "乘": "*", "×": "*", "除以": "÷"}
_OPERAND = rf"([{_DIGITS}十百]{{1,7}}|\d{{1,9}})"
_CALCULATION = re.compile(rf"{_OPERAND} ?({'|'.join(_OPERATORS)}|[+*÷-]) ?{_OPERAND}(?![{_DIGITS}十百千万亿点\d.])")


def _calculation(found: re.Match[str]) -> str:
    first, operator, second = found.groups()
    operands = [text if text.isascii() else _CHINESE_NUMBERS.get(text) for text in (first, second)]
    if None in operands:
        return found[0]
    return f"{operands[0]} {_OPERATORS.get(operator, operator)} {operands[1]}"


_CHINESE: tuple[_Rule, ...] = (
    (re.compile(rf"^(?:能不能|可不可以|可否|能|可以)(?:请)?告诉我{_P}吗?$"), r"\1"),
    (re.compile("为何|为啥"), "为什么"),
    (re.compile("什么时候|什么时间"), "何时"),
    (re.compile("哪儿"), "哪里"),
    (re.compile("帐号"), "账号"),
    (re.compile("包括"), "包含"),
    (re.compile("更改"), "修改"),
    (re.compile("关掉"), "关闭"),
    (re.compile("多长时间"), "多久"),
    (re.compile("(?:一共|总共)有"), "有"),
    (re.compile("(?<!不)(?:应该|该|要)怎么"), "怎么"),
    (re.compile("^我怎么"), "怎么"),
    (re.compile("怎么(?:才能|才可以)"), "怎么"),
    (re.compile(rf"^我(?:想要|想|要){_P},怎么(?:操作|做)$"), r"怎么\1"),
    (re.compile(rf"^((?:{_ACTIONS})[^,.;:?!]{{1,20}})的(?:方法|步骤)是什么$"), r"怎么\1"),
    (re.compile("^怎么打开(?=[^,.;:?!]{1,12}(?:模式|功能|验证|提醒|续费)$)"), "怎么启用"),
    (re.compile("(?<=[式能证醒费])怎么打开$"), "怎么启用"),
    (re.compile(rf"^{_THING}怎么({_ACTIONS})$"), r"怎么\2\1"),
    (re.compile("^怎么购买"), "怎么买"),
    (re.compile("^怎么新建"), "怎么创建"),
    (re.compile("支持什么(?=浏览器|语言|格式|系统)"), "支持哪些"),
    (re.compile("(?<!不)(?:需要|要)(?=多少钱|多久)"), ""),
    (re.compile(rf"^{_P}的?价格是?多少$"), r"\1多少钱"),
    (re.compile(r"^计算(\d[^,;:?!]{0,40})$"), r"\1等于几"),
    (re.compile(r"(?<=\d) ?(?:等于多少|等于几|是多少|=)$"), "等于几"),
    (re.compile(rf"^我?(?:可不可以|能不能|是否可以|是否能|能否|可否){_P}吗?$"), r"可以\1吗"),
    (re.compile(rf"^我?(?:可以|能(?![源力量够])){_P}吗$"), r"可以\1吗"),
    (re.compile(r"^什么是([^,.;:?!是不]{1,30})$"), r"\1是什么"),
    (re.compile(r"^([^,.;:?!是不]{1,30})是指什么$"), r"\1是什么"),
    (re.compile(r"^谁是([^,.;:?!是]{1,30})$"), r"\1是谁"),
    (re.compile(r"^哪里是([^,.;:?!是]{1,30})$"), r"\1是哪里"),
    (re.compile(rf"^{_P}的意思是什么$"), r"\1是什么意思"),
    (re.compile(rf"^(?![^,.;:?!]{{0,9}}(?:{_OPINION}))([^,.;:?!]{{1,10}}?)为什么"), r"为什么\1"),
    (re.compile(r"^([^,.;:?!]{1,12})在哪里(看|查看|下载)$"), r"在哪里\2\1"),
    (re.compile("^在哪里(?:可以|能)"), "在哪里"),
    (re.compile(rf"^如果{_P}怎么办$"), r"\1怎么办"),
    (re.compile(r"有几(?=[条天只][^,.;:?!个]{0,4}$)"), "有多少"),
    (re.compile("^你们(?=支持)"), ""),
    (re.compile(rf"^{_P}是?何时(成立|发布|上线|出版|建立)的?$"), r"\1何时\2"),
    (re.compile(rf"^{_P}是谁(创立|创建|写|发明|发现)的$"), r"谁\2了\1"),
)


def without_preamble(text: str) -> str:
    """A question without words before and after it, and a command for a fact as a question."""
    return text if len(text) > MAX_CHARACTERS else _applied(_BEFORE_OPENINGS, text)


def canonical_english(text: str) -> str:
    """The form of a question that its paraphrases share."""
    if len(text) > MAX_CHARACTERS:
        return text
    return _applied(_ENGLISH, _NUMBERS.sub(_number, text))


def canonical_chinese(text: str) -> str:
    """The form of a question that its paraphrases share."""
    if len(text) > MAX_CHARACTERS:
        return text
    return _applied(_CHINESE, _CALCULATION.sub(_calculation, text.replace("÷", "除以")))


def _applied(rules: tuple[_Rule, ...], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
