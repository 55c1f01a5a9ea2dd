"""The chat page's texts, in English and in Chinese."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Labels:
    """Texts that the browser shows in its language, or in the one that its owner chose."""

    placeholder: str
    ask: str
    stop: str
    model: str
    key: str
    key_hint: str
    settings: str
    temperature: str
    top_p: str
    max_tokens: str
    max_tokens_hint: str
    seed: str
    seed_hint: str
    effort: str
    effort_hint: str
    preset: str
    system: str
    system_hint: str
    reason: str
    reason_hint: str
    send: str
    status: str
    docs: str
    chat: str
    console: str
    language: str
    light: str
    dark: str
    conversations: str
    toggle: str
    new: str
    search: str
    none_found: str
    rename: str
    copy: str
    copied: str
    markdown: str
    export: str
    import_: str
    import_failed: str
    delete: str
    delete_question: str
    full: str


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts that the server writes into answers and choices, beside the labels."""

    labels: Labels
    hello: str
    temperature_hint: str
    top_p_hint: str
    effort_full: str
    effort_none: str
    effort_low: str
    effort_medium: str
    waiting: str
    thinking: str
    thought: str
    one_token: str
    tokens: str
    rate: str
    first: str
    hit: str
    similar: str
    curated: str
    curated_similar: str
    join: str
    generated: str
    replica: str
    cut: str
    cut_notice: str
    cut_thinking: str
    stopped: str
    version: str
    previous: str
    next: str
    notice: str
    problem: str
    thanks: str
    key_needed: str
    key_refused: str
    unreachable: str
    lost: str
    refused: str
    bad_seed: str
    presets: tuple[tuple[str, str], ...]


ENGLISH_LABELS = Labels(
    placeholder="Ask a question",
    ask="Ask",
    stop="Stop",
    model="Model",
    key="API key",
    key_hint="API key: dray-…",
    settings="Settings",
    temperature="Temperature",
    top_p="Top-p",
    max_tokens="Maximum tokens",
    max_tokens_hint="Includes the thinking. Default: 2048",
    seed="Seed",
    seed_hint="A whole number: the same answer each time. Empty: random.",
    effort="Thinking",
    effort_hint="How long the model may think before it answers.",
    preset="Instructions for",
    system="System prompt",
    system_hint="Instructions that the model follows in the whole conversation.",
    reason="What was wrong with the answer?",
    reason_hint="A few words, or the right answer",
    send="Send",
    status="Status",
    docs="API",
    chat="Chat",
    console="Console",
    language="中文",
    light="Light",
    dark="Dark",
    conversations="Conversations",
    toggle="Show or hide the conversations",
    new="New conversation",
    search="Search conversations",
    none_found="None found",
    rename="Rename",
    copy="Copy as Markdown",
    copied="Copied",
    markdown="Save as Markdown",
    export="Export all",
    import_="Import",
    import_failed="This file holds no exported conversations.",
    delete="Delete",
    delete_question="Delete this conversation?",
    full="The browser's storage is full: delete conversations to keep new ones.",
)

ENGLISH = Texts(
    labels=ENGLISH_LABELS,
    hello="## What would you like to know?",
    temperature_hint="0: always the same answer. The model's default: {default:g}",
    top_p_hint="The model's default: {default:g}",
    effort_full="Unlimited (default)",
    effort_none="Off",
    effort_low="Short: up to 1,024 tokens",
    effort_medium="Medium: up to 4,096 tokens",
    waiting="Waiting for the first token…",
    thinking="Thinking",
    thought="Thought",
    one_token="{all} token ({thinking} thinking)",
    tokens="{all} tokens ({thinking} thinking)",
    rate="{rate:.0f} tokens/s",
    first="first token after {seconds:.2f} s",
    hit="from the cache",
    similar="from the cache, for a similar question",
    curated="approved by people",
    curated_similar="approved by people, for a similar question",
    join="shared with an identical request",
    generated="generated now",
    replica="replica {name}",
    cut="cut off at the token limit",
    cut_notice="The answer was cut off at the limit of {limit} tokens. Raise Maximum tokens in Settings and retry.",
    cut_thinking=(
        "No answer: all {limit} tokens went into the thinking. Raise Maximum tokens in Settings or limit the thinking,"
        " and retry."
    ),
    stopped="stopped",
    version="answer {number} of {all}",
    previous="‹ Previous answer",
    next="Next answer ›",
    notice="Notice",
    problem="That did not work",
    thanks="Thank you for the feedback.",
    key_needed="An API key is required. Enter yours above and ask again.",
    key_refused="Invalid API key: mistyped, expired or revoked. Enter another one above.",
    unreachable="Dray does not respond: it may be starting, or stopped. Try again in a moment.",
    lost="The connection was lost during the answer. Ask again.",
    refused="Error: {message}",
    bad_seed="The seed must be a whole number, or empty.",
    presets=(
        ("No instructions", ""),
        ("Short answers", "Answer in at most three sentences."),
        ("A tutor", "Explain each step so that a student can follow, and name the rule that you use."),
        ("A translator", "Translate what the user writes: Chinese into English, anything else into Chinese."),
    ),
)

CHINESE_LABELS = Labels(
    placeholder="请输入问题",
    ask="提问",
    stop="停止",
    model="模型",
    key="API 密钥",
    key_hint="API 密钥：dray-…",
    settings="设置",
    temperature="温度",
    top_p="Top-p",
    max_tokens="最大 token 数",
    max_tokens_hint="包含思考过程。默认值：2048",
    seed="随机种子",
    seed_hint="填整数则每次答案相同；留空则随机。",
    effort="思考",
    effort_hint="模型回答前最多思考多久。",
    preset="预设指令",
    system="系统提示词",
    system_hint="模型在整个对话中遵循的指令。",
    reason="这个回答哪里有问题？",
    reason_hint="简短说明，或写出正确答案",
    send="发送",
    status="状态",
    docs="API",
    chat="对话",
    console="控制台",
    language="English",
    light="浅色",
    dark="深色",
    conversations="对话",
    toggle="显示或隐藏对话列表",
    new="新对话",
    search="搜索对话",
    none_found="没有找到",
    rename="重命名",
    copy="复制为 Markdown",
    copied="已复制",
    markdown="保存为 Markdown",
    export="全部导出",
    import_="导入",
    import_failed="文件中没有导出的对话。",
    delete="删除",
    delete_question="删除这个对话？",
    full="浏览器存储空间已满：请删除一些对话，才能保存新对话。",
)

CHINESE = Texts(
    labels=CHINESE_LABELS,
    hello="## 有什么想问的？",
    temperature_hint="设为 0，每次答案相同。模型默认值：{default:g}",
    top_p_hint="模型默认值：{default:g}",
    effort_full="不限（默认）",
    effort_none="关闭",
    effort_low="较短：最多 1,024 个 token",
    effort_medium="中等：最多 4,096 个 token",
    waiting="等待首个 token…",
    thinking="思考中",
    thought="思考过程",
    one_token="{all} 个 token（思考 {thinking} 个）",
    tokens="{all} 个 token（思考 {thinking} 个）",
    rate="{rate:.0f} token/秒",
    first="首个 token 用时 {seconds:.2f} 秒",
    hit="来自缓存",
    similar="来自缓存（相似问题）",
    curated="人工审定",
    curated_similar="人工审定（相似问题）",
    join="与相同的请求共享",
    generated="新生成",
    replica="副本 {name}",
    cut="已达 token 上限，回答被截断",
    cut_notice="回答达到 {limit} 个 token 的上限而被截断。请在设置中调高最大 token 数，然后重试。",
    cut_thinking="没有回答：{limit} 个 token 全部用于思考。请在设置中调高最大 token 数或限制思考，然后重试。",
    stopped="已停止",
    version="第 {number} 个回答，共 {all} 个",
    previous="‹ 上一个回答",
    next="下一个回答 ›",
    notice="提示",
    problem="操作未完成",
    thanks="感谢反馈。",
    key_needed="需要 API 密钥。请在上方输入密钥，然后重新提问。",
    key_refused="API 密钥无效：输入有误、已过期或已被吊销。请在上方重新输入。",
    unreachable="Dray 没有响应，可能正在启动或已经停止。请稍后再试。",
    lost="回答过程中连接中断，请重新提问。",
    refused="请求失败：{message}",
    bad_seed="随机种子必须是整数，或留空。",
    presets=(
        ("无", ""),
        ("简短回答", "回答不超过三句话。"),
        ("老师", "逐步讲解，让学生能跟上，并说明每一步所用的规则。"),
        ("翻译", "翻译用户写的内容：中文译成英文，其他语言译成中文。"),
    ),
)

LABELS = {"en": ENGLISH_LABELS, "zh": CHINESE_LABELS}
"""By the language that the page is in."""
GRADIO_LANGUAGES = {"en": ("en",), "zh": ("zh", "zh-CN", "zh-TW", "zh-HK")}
"""The names that gradio may have for a language of the page."""


def texts_for(language: str) -> Texts:
    """The texts in a language: a name that the page's owner chose, or the first one of an Accept-Language header."""
    return CHINESE if language.strip().lower().startswith("zh") else ENGLISH
