"""What the chat page says, in English and in Chinese."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Texts:
    """Labels are shown in the browser's language by gradio; the rest is written on the server, into answers."""

    placeholder: str
    ask: str
    stop: str
    hello: str
    model: str
    key: str
    key_hint: str
    settings: str
    temperature: str
    temperature_hint: str
    most_tokens: str
    most_tokens_hint: str
    thinking: str
    thought: str
    tokens: str
    rate: str
    first: str
    hit: str
    similar: str
    join: str
    made: str
    replica: str
    cut: str
    stopped: str
    key_needed: str
    key_refused: str
    away: str
    lost: str
    refused: str


ENGLISH = Texts(
    placeholder="Ask something",
    ask="Ask",
    stop="Stop",
    hello="### What would you like to know?",
    model="Model",
    key="Key",
    key_hint="This Dray asks for a key: dray-…",
    settings="Settings",
    temperature="Temperature",
    temperature_hint="0: always the same answer. Empty: as the model's makers advise.",
    most_tokens="Most tokens",
    most_tokens_hint="Thinking included. Empty: as many as the server allows.",
    thinking="Thinking",
    thought="Thought",
    tokens="{all} tokens, {thinking} of them thinking",
    rate="{rate:.0f} tokens/s",
    first="first after {seconds:.2f} s",
    hit="from the cache",
    similar="from the cache, for the same question in other words",
    join="made together with an equal request",
    made="made anew",
    replica="replica {name}",
    cut="cut off at the limit of tokens",
    stopped="stopped",
    key_needed="This Dray asks for a key. Enter yours in the field **Key**, and ask again.",
    key_refused="This key does not hold: it is wrong, has expired or was revoked. Mend it in the field **Key**.",
    away="Dray does not answer. It may be starting or have been stopped; ask again in a moment.",
    lost="The connection broke off in the middle of the answer. Ask again.",
    refused="Refused: {said}",
)

CHINESE = Texts(
    placeholder="问点什么",
    ask="提问",
    stop="停止",
    hello="### 想知道什么?",
    model="模型",
    key="密钥",
    key_hint="此服务需要密钥:dray-…",
    settings="设置",
    temperature="温度",
    temperature_hint="0:答案总是相同。留空:用模型自己的设定。",
    most_tokens="最多词元",
    most_tokens_hint="含思考。留空:以服务器的上限为准。",
    thinking="思考中",
    thought="思考过程",
    tokens="{all} 个词元,其中思考 {thinking} 个",
    rate="每秒 {rate:.0f} 个词元",
    first="{seconds:.2f} 秒后首个词元",
    hit="来自缓存",
    similar="来自缓存(同一问题的另一种说法)",
    join="与相同的请求一同生成",
    made="新生成",
    replica="副本 {name}",
    cut="达到词元上限,已截断",
    stopped="已停止",
    key_needed="此服务需要密钥。请在**密钥**栏中填写,然后再问一次。",
    key_refused="此密钥无效:有误、已过期或已被吊销。请在**密钥**栏中更正。",
    away="服务没有应答,可能正在启动或已经停止。请稍后再问。",
    lost="回答中途连接断开。请再问一次。",
    refused="被拒绝:{said}",
)

TRANSLATIONS = {"en": asdict(ENGLISH)} | dict.fromkeys(("zh", "zh-CN", "zh-TW", "zh-HK"), asdict(CHINESE))
"""By the browser's language, as gradio takes them."""

EXAMPLES = (
    "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?",
    "请证明：任意奇数的平方减1都能被8整除",
    "写一个Python函数判断回文字符串",
    "如果今天是星期三，100天后是星期几？",
    "There are 35 chickens and rabbits in a cage, with 94 feet. How many of each?",
    "What is 347 times 586?",
    "If today is Friday, which day is it in 45 days?",
    "Write a Python function that checks whether a string is a palindrome",
)


def texts_for(accept_language: str) -> Texts:
    """The words in the first language of an Accept-Language header."""
    return CHINESE if accept_language.strip().lower().startswith("zh") else ENGLISH
