"""The chat page's texts about files, in English and in Chinese."""

from dataclasses import dataclass

from deployments.pages.file_reader import MAX_BYTES, MAX_CHARACTERS, MAX_PAGES
from deployments.pages.i18n import CHINESE, Texts

_MEGABYTES = MAX_BYTES // 1_000_000


@dataclass(frozen=True, slots=True)
class FileLabels:
    """Texts that the browser shows. {name}: the file's."""

    attach: str
    attached: str
    detach: str
    reading: str
    drop: str
    large: str
    unanswered: str


@dataclass(frozen=True, slots=True)
class FileTexts:
    """Why a file is refused, by what its reader found, and the heading of its quoted parts. {name}: the file's."""

    labels: FileLabels
    kind: str
    long: str
    pages: str
    empty: str
    encoding: str
    locked: str
    broken: str
    costly: str
    busy: str
    context: str
    quoted: str


ENGLISH_FILES = FileTexts(
    labels=FileLabels(
        attach="Attach a file (txt, md, pdf, docx)",
        attached="Attached: {name}",
        detach="Remove {name}",
        reading="Reading {name}…",
        drop="Drop the file to attach it",
        large=f"{{name}} is too large: a file may have {_MEGABYTES} MB.",
        unanswered="{name} could not be sent: Dray does not respond. Try again in a moment.",
    ),
    kind="{name} is no txt, md, pdf or docx file. Save it as one of these and attach it again.",
    long=f"The text of {{name}} is too long: {MAX_CHARACTERS:,} characters fit. Attach the part that matters.",
    pages=f"{{name}} has more than {MAX_PAGES} pages. Attach the part that matters.",
    empty="{name} contains no text. Scanned pages need text recognition (OCR) first.",
    encoding="{name} is not text in UTF-8 or GB18030. Save it as UTF-8 and attach it again.",
    locked="{name} is protected by a password. Save it without one and attach it again.",
    broken="{name} cannot be read: it is damaged, or not what its name says.",
    costly="{name} takes too much time or memory to read. Save its text as txt and attach that.",
    busy="Other files are being read. Try again in a moment.",
    context=(
        "The text of {name} is too long for {model}, whose context holds {context:,} tokens: about {fits:,} of its "
        "{characters:,} characters fit beside a question and an answer. Attach the part that matters."
    ),
    quoted="From {name}",
)

CHINESE_FILES = FileTexts(
    labels=FileLabels(
        attach="添加文件（txt、md、pdf、docx）",
        attached="已添加：{name}",
        detach="移除 {name}",
        reading="正在读取 {name}…",
        drop="松开鼠标即可添加文件",
        large=f"{{name}} 太大：文件最大 {_MEGABYTES} MB。",
        unanswered="{name} 发送失败：Dray 没有响应。请稍后再试。",
    ),
    kind="{name} 不是 txt、md、pdf 或 docx 文件。请另存为其中一种格式后重新添加。",
    long=f"{{name}} 的文字太长：最多 {MAX_CHARACTERS:,} 个字符。请只添加需要的部分。",
    pages=f"{{name}} 超过 {MAX_PAGES} 页。请只添加需要的部分。",
    empty="{name} 中没有文字。扫描件需要先做文字识别（OCR）。",
    encoding="{name} 不是 UTF-8 或 GB18030 编码的文本。请另存为 UTF-8 后重新添加。",
    locked="{name} 有密码保护。请去掉密码后重新添加。",
    broken="无法读取 {name}：文件已损坏，或内容与扩展名不符。",
    costly="读取 {name} 需要过多时间或内存。请把文字另存为 txt 后添加。",
    busy="正在读取其他文件，请稍后再试。",
    context=(
        "{name} 的文字对 {model} 来说太长，其上下文为 {context:,} 个 token：除去问题和回答，"
        "{characters:,} 个字符中大约能放下 {fits:,} 个。请只添加需要的部分。"
    ),
    quoted="摘自 {name}",
)

FILE_LABELS = {"en": ENGLISH_FILES.labels, "zh": CHINESE_FILES.labels}
"""By the language that the page is in."""


def file_texts(texts: Texts) -> FileTexts:
    """The texts about files in the language of these texts."""
    return CHINESE_FILES if texts is CHINESE else ENGLISH_FILES
