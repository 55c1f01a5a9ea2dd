"""Names that gradio's chatbot has in English only."""

GRADIO_NAMES: dict[str, dict[str, str]] = {
    "en": {},
    "zh": {
        "Copy message": "复制",
        "Liked": "已赞",
        "Disliked": "已踩",
        "Scroll down": "滚动到底部",
        "Select example ": "示例 ",
        "Loading response": "正在等待回答",
        "chatbot conversation": "对话内容",
        "bot's message: ": "回答：",
        "user's message: ": "问题：",
    },
}
"""Names of buttons and regions, and beginnings of such names (gradio 6.31), by the language that the page is in."""
