"""Tool calls: how each family of models writes them, how prompts ask for them, and how they can be forced.

Sources: the chat templates of Qwen3 (Hermes' format), Llama 3.1, Phi-4-mini and DeepSeek-R1.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from deployments.common.messages import Grammar, GrammarTag
from deployments.common.types import Tool, ToolCall, ToolChoice
from deployments.generation.grammar import ebnf, ebnf_of_calls

_MOST_CALLS = 16


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family writes calls: `begin`, calls parted by `between`, `end`. A call is `before`, the tool's name,
    `middle`, its arguments, `after`; the name stands there as JSON has it, or as it is (`bare`).

    opens: what the first call cannot do without, by which it is told from text; empty: an answer that begins with "{"
    is a call. closes: what ends a run of calls.
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

    def around(self, tool: str) -> tuple[str, str]:
        """What stands before and after the arguments of a call of this tool."""
        return self.before + (tool if self.bare else json.dumps(tool, ensure_ascii=False)) + self.middle, self.after

    def write(self, calls: Iterable[ToolCall]) -> str:
        """Calls as the model writes them, for templates that know of none."""
        written = [call.arguments.join(self.around(call.name)) for call in calls]
        return self.begin + self.between.join(written) + self.end

    def instruct(self, tools: Iterable[Tool]) -> str:
        """What a system prompt says of the tools, for templates that take none."""
        listed = "\n".join(
            f'{{"name": {json.dumps(tool.name)}, "description": {json.dumps(tool.description, ensure_ascii=False)}, '
            f'"parameters": {tool.parameters}}}'
            for tool in tools
        )
        pattern = "ARGUMENTS".join(self.around("NAME"))
        return (
            f"You may call these functions:\n{listed}\nTo call one, answer with nothing but\n"
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
"""Texts that a vocabulary may hold as special tokens, which decoding would leave out."""


def tool_format_of(chat_template: str) -> ToolFormat:
    """The family whose marks the template holds; Hermes' format where it holds none."""
    return next((family for mark, family in _MARKS if mark in chat_template), HERMES)


def forced_calls(family: ToolFormat, tools: tuple[Tool, ...], choice: ToolChoice, most_nodes: int) -> Grammar | None:
    """The grammar for a request with tools: calls that must come; or, where they may, those held to their schemas that
    are strict. None: nothing is held. Raises ApiError for a schema that cannot be."""
    if choice.mode == "required":
        wanted = [tool for tool in tools if choice.name in ("", tool.name)]
        calls = [(before, tool.parameters, after) for tool in wanted for before, after in [family.around(tool.name)]]
        most = _MOST_CALLS if choice.parallel and not choice.name else 1
        between = (family.begin, family.between, family.end)
        return Grammar(ebnf_of_calls(calls, between, most, "tools", most_nodes))
    if choice.mode == "none" or not family.opens or not any(tool.strict for tool in tools):
        return None
    # Once a call has begun it is held to, whichever tool it names: of those that are not strict, to any object.
    tags = [
        GrammarTag(
            family.begin + before,
            ebnf(tool.parameters if tool.strict else "{}", "tools", most_nodes),
            after + family.end,
        )
        for tool in tools
        for before, after in [family.around(tool.name)]
    ]
    return Grammar(trigger=family.opens, tags=tuple(tags))
