"""The chat page's texts, in English and in Chinese."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Texts:
    """Up to max_tokens_hint, labels that gradio shows in the browser's language; below, texts that the server writes
    into answers."""

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
    max_tokens: str
    max_tokens_hint: str
    thinking: str
    thought: str
    one_token: str
    tokens: str
    rate: str
    first: str
    hit: str
    similar: str
    join: str
    generated: str
    replica: str
    cut: str
    stopped: str
    key_needed: str
    key_refused: str
    unreachable: str
    lost: str
    refused: str


ENGLISH = Texts(
    placeholder="Ask a question",
    ask="Ask",
    stop="Stop",
    hello="### What would you like to know?",
    model="Model",
    key="API key",
    key_hint="API key: dray-…",
    settings="Settings",
    temperature="Temperature",
    temperature_hint="0: always the same answer. Empty: the model's default.",
    max_tokens="Maximum tokens",
    max_tokens_hint="Includes the thinking. Empty: the server's limit.",
    thinking="Thinking",
    thought="Thought",
    one_token="{all} token ({thinking} thinking)",
    tokens="{all} tokens ({thinking} thinking)",
    rate="{rate:.0f} tokens/s",
    first="first token after {seconds:.2f} s",
    hit="from the cache",
    similar="from the cache, for a similar question",
    join="shared with an identical request",
    generated="generated now",
    replica="replica {name}",
    cut="cut off at the token limit",
    stopped="stopped",
    key_needed="An API key is required. Enter yours above and ask again.",
    key_refused="Invalid API key: mistyped, expired or revoked. Enter another one above.",
    unreachable="Dray does not respond: it may be starting, or stopped. Try again in a moment.",
    lost="The connection was lost during the answer. Ask again.",
    refused="Error: {message}",
)

CHINESE = Texts(
    placeholder="请输入问题",
    ask="提问",
    stop="停止",
    hello="### 有什么想问的？",
    model="模型",
    key="API 密钥",
    key_hint="API 密钥：dray-…",
    settings="设置",
    temperature="温度",
    temperature_hint="设为 0，每次答案相同；留空则使用模型的默认值。",
    max_tokens="最大 token 数",
    max_tokens_hint="包含思考过程；留空则以服务器上限为准。",
    thinking="思考中",
    thought="思考过程",
    one_token="{all} 个 token（思考 {thinking} 个）",
    tokens="{all} 个 token（思考 {thinking} 个）",
    rate="{rate:.0f} token/秒",
    first="首个 token 用时 {seconds:.2f} 秒",
    hit="来自缓存",
    similar="来自缓存（相似问题）",
    join="与相同的请求共享",
    generated="新生成",
    replica="副本 {name}",
    cut="已达 token 上限，回答被截断",
    stopped="已停止",
    key_needed="需要 API 密钥。请在上方输入密钥，然后重新提问。",
    key_refused="API 密钥无效：输入有误、已过期或已被吊销。请在上方重新输入。",
    unreachable="Dray 没有响应，可能正在启动或已经停止。请稍后再试。",
    lost="回答过程中连接中断，请重新提问。",
    refused="请求失败：{message}",
)

TRANSLATIONS = {"en": asdict(ENGLISH)} | dict.fromkeys(("zh", "zh-CN", "zh-TW", "zh-HK"), asdict(CHINESE))
"""By the browser's language, in gradio's format."""

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
    """The texts in the first language of an Accept-Language header."""
    return CHINESE if accept_language.strip().lower().startswith("zh") else ENGLISH
