"""How each family of models writes tool calls, and how prompts describe tools.

Sources: the chat templates of Qwen3 (Hermes' format), Llama 3.1, Phi-4-mini and DeepSeek-R1.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from deployments.common.types import Tool, ToolCall

_JSON_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*+")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{\[])')
_JSON_TAIL = re.compile(r"\s*\}")
_R1_HEAD = re.compile(r"<｜tool▁call▁begin｜>\s*+\w*+\s*+<｜tool▁sep｜>\s*+([^\n]++)\n\s*+```(?:json)?\s*+(?=[{\[])")
_R1_TAIL = re.compile(r"\s*```\s*<｜tool▁call▁end｜>")


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How the parser recognizes a call, with what models vary in: white space, other names of a key.

    start: text that a call begins with. head: from there to the arguments; its group is the tool's name. tail: what
    follows the arguments.
    """

    start: str
    head: re.Pattern[str]
    tail: re.Pattern[str]


JSON_CALL = CallSyntax("{", _JSON_HEAD, _JSON_TAIL)
R1_CALL = CallSyntax("<｜tool▁call▁begin｜>", _R1_HEAD, _R1_TAIL)


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The texts around the calls of an answer, in order: begin, calls with `between` in the middle, end.

    A call is `before`, the tool's name, `middle`, the arguments, `after`. bare: the name is written as it is, and not
    as a JSON string. syntax: how a call is parsed. opens: text that distinguishes the first call from an answer's
    text; empty: an answer that begins with "{" is a call. closes: text that ends a run of calls.
    """

    name: str
    opens: str
    closes: str
    begin: str
    between: str
    end: str
    before: str
    middle: str
    after: str
    bare: bool = False
    syntax: CallSyntax = JSON_CALL

    def around(self, tool: str) -> tuple[str, str]:
        """The texts before and after the arguments of a call of this tool."""
        return self.before + (tool if self.bare else json.dumps(tool, ensure_ascii=False)) + self.middle, self.after

    def write(self, calls: Iterable[ToolCall]) -> str:
        """Calls as the model writes them, for chat templates without tool calls."""
        written = [call.arguments.join(self.around(call.name)) for call in calls]
        return self.begin + self.between.join(written) + self.end

    def instruct(self, tools: Iterable[Tool]) -> str:
        """The tools as text for the system prompt, for chat templates without tools."""
        descriptions = "\n".join(
            f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, '
            f'"description": {json.dumps(tool.description, ensure_ascii=False)}, "parameters": {tool.parameters}}}'
            for tool in tools
        )
        pattern = "ARGUMENTS".join(self.around("NAME"))
        return (
            f"You may call these functions:\n{descriptions}\nTo call one, answer with nothing but\n"
            f"{self.begin}{pattern}{self.end}\nwhere ARGUMENTS is a JSON object that its parameters allow."
        )


HERMES = ToolFormat(
    name="hermes",
    opens="<tool_call>",
    closes="</tool_call>",
    begin="",
    between="\n",
    end="",
    before='<tool_call>\n{"name": ',
    middle=', "arguments": ',
    after="}\n</tool_call>",
)
LLAMA = ToolFormat(
    name="llama",
    opens="",
    closes="",
    begin="",
    between="; ",
    end="",
    before='{"name": ',
    middle=', "parameters": ',
    after="}",
)
PHI = ToolFormat(
    name="phi",
    opens="<|tool_call|>",
    closes="<|/tool_call|>",
    begin="<|tool_call|>[",
    between=", ",
    end="]<|/tool_call|>",
    before='{"name": ',
    middle=', "arguments": ',
    after="}",
)
R1 = ToolFormat(
    name="r1",
    opens="<｜tool▁calls▁begin｜>",
    closes="<｜tool▁calls▁end｜>",
    begin="<｜tool▁calls▁begin｜>",
    between="\n",
    end="<｜tool▁calls▁end｜>",
    before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    middle="\n```json\n",
    after="\n```<｜tool▁call▁end｜>",
    bare=True,
    syntax=R1_CALL,
)
_MARKS = (
    ("<｜tool▁calls▁begin｜>", R1),
    ("<tool_call>", HERMES),
    ("<|tool_call|>", PHI),
    ("<|tool|>", PHI),
    ("ipython", LLAMA),
)
MARKERS = (
    *("<tool_call>", "</tool_call>", "<|tool_call|>", "<|/tool_call|>", "<|python_tag|>"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
)
"""Texts that a vocabulary may have as special tokens. Decoding would drop them."""


def tool_format_of(chat_template: str) -> ToolFormat:
    """The format that the chat template uses; Hermes' if it uses none."""
    return next((tool_format for mark, tool_format in _MARKS if mark in chat_template), HERMES)
