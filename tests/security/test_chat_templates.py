"""The chat template of a model from anywhere: it reaches nothing, and no template takes seconds or gigabytes."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from cluster.models.folder import BUNDLED_FOLDER
from deployments.generation.chat_template import ChatTemplate
from deployments.generation.template_budget import TemplateTooDear

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi <b>"},
    {
        "role": "assistant",
        "content": "x</think>y",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "北京"}}}],
    },
    {"role": "user", "content": "z"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
DOUBLING = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = TWICE %}{% endfor %}{{ ns.x }}"
DEAR = {
    "long text": "{{ 'a' * 10**10 }}",
    "long text, constant": "{{ 'a' * 10000000000 }}",
    "long text from the right": "{{ 10000000000 * 'a' }}",
    "list": "{{ [1] * 10**10 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "powers": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x ** 9 %}{% endfor %}",
    "products": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over texts": "{% for i in 'a' * 9999 %}{% for j in 'a' * 9999 %}{% endfor %}{% endfor %}",
    "a range": "{{ range(10**9) | list }}",
    "output": "{% for i in range(9999) %}{{ 'a' * 99999 }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive loops": "{% for i in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "doubled text": DOUBLING.replace("START", "'a'").replace("TWICE", "ns.x + ns.x"),
    "doubled by ~": DOUBLING.replace("START", "'a'").replace("TWICE", "ns.x ~ ns.x"),
    "doubled list": DOUBLING.replace("START", "[1]").replace("TWICE", "ns.x + ns.x"),
    "nested lists": DOUBLING.replace("START", "[1]").replace("TWICE", "[ns.x, ns.x]"),
    "nested tuples": DOUBLING.replace("START", "(1,)").replace("TWICE", "(ns.x, ns.x)"),
    "nested mappings": DOUBLING.replace("START", "{}").replace("TWICE", "{'a': ns.x, 'b': ns.x}"),
    "nested by dict": DOUBLING.replace("START", "{}").replace("TWICE", "dict(a=ns.x, b=ns.x)"),
    "replace": DOUBLING.replace("START", "'a'").replace("TWICE", "ns.x.replace('a', 'aaaa')"),
    "replace filter": DOUBLING.replace("START", "'a'").replace("TWICE", "ns.x | replace('a', 'aaaa')"),
    "join": DOUBLING.replace("START", "'ab'").replace("TWICE", "ns.x.join([ns.x, ns.x])"),
    "join filter": DOUBLING.replace("START", "'ab'").replace("TWICE", "[ns.x, ns.x] | join(ns.x)"),
    "width": "{{ 'a'.center(10000000000) }}",
    "width of zfill": "{{ 'a'.zfill(10000000000) }}",
    "width filter": "{{ 'a' | center(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "indent of JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "separators of JSON": "{{ [1] | tojson(separators=('a' * 9999, 'b')) }}",
    "format": "{{ '%1000000000d' % 1 }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format with a width": "{{ '%*d' % (1000000000, 1) }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "format method with a width": "{{ '{:{}}'.format(1, 1000000000) }}",
    "comparisons": "{% set x = 'a' * 9999999 %}{% for i in range(99999) %}{{ 'b' in x }}{% endfor %}",
    "slices": "{% set x = 'a' * 9999999 %}{% for i in range(99999) %}{% set y = x[::-1] %}{% endfor %}",
    "filters of lists": "{% set x = range(99999) | list %}{% for i in x %}{{ x | list | last }}{% endfor %}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "time": "{{ strftime_now('%c' * 999999) }}",
    "source": " " * 2_000_000,
}


@pytest.fixture
def two_gigabytes() -> Iterator[None]:
    """Whatever takes more memory fails, and the machine goes on."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("source", DEAR.values(), ids=DEAR.keys())
def test_a_dear_template_ends_soon_in_an_error(two_gigabytes: None, source: str) -> None:
    started = time.thread_time()
    with pytest.raises((TemplateError, OverflowError, RecursionError)):
        ChatTemplate(source).render(messages=MESSAGES)
    assert time.thread_time() - started < 20


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}{{ x.y }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_reaches_nothing_but_what_it_is_given(source: str) -> None:
    with pytest.raises((TemplateError, TypeError)):
        ChatTemplate(source).render(messages=MESSAGES)


USUAL = """{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}
{{- messages[0].content + '\\n\\n' }}{%- endif %}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- endif %}{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.multi_step and message.role == "user" and message.content is string
and not(message.content.startswith('<tool_response>')) %}
{%- set ns.multi_step = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}
{%- for message in messages %}{%- if message.tool_calls %}{%- for call in message.tool_calls %}
{%- set call = call.function %}{{- '{"name": "' ~ call.name ~ '", "arguments": ' }}{{- call.arguments | tojson }}
{%- endfor %}{%- endif %}{{ message.content.split('</think>')[-1].lstrip('\\n') }}{{ loop.last }}
{{ message['content'] | trim | replace("<", "&") }}{% if loop.first or loop.nextitem is defined %}n{% endif %}
{% generation %}g{% endgeneration %}{%- if loop.index0 > 100 %}{% break %}{% endif %}{%- endfor %}
{{ [1, 2] | join(",") }}{{ ([1] + [2]) | map("string") | list }}{{ "%s-%d" | format("a", 3) }}{{ "{}".format(3) }}
{{ {"a": 1} | tojson(indent=2) }}{{ dict(a=1).items() | list }}{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(3) }}
{{ messages | selectattr("role", "equalto", "user") | list | length }}{{ messages | map(attribute="role") | join("/") }}
{{ "ab" * 3 }}{{ 2 * 3 }}{{ 2 ** 3 }}{{ 7 % 4 }}{{ "a%s" % 1 }}{{ (1, 2) }}{{ none }}{{ undefined_thing }}"""


@pytest.mark.parametrize("source", [(BUNDLED_FOLDER / "chat_template.jinja").read_text(), USUAL])
def test_templates_render_as_transformers_renders_them(source: str) -> None:
    variables = {"add_generation_prompt": True, "bos_token": "B", "eos_token": "E", "documents": None}
    expected = render_jinja_template([MESSAGES], tools=TOOLS, chat_template=source, **variables)[0][0]
    assert ChatTemplate(source).render(messages=MESSAGES, tools=TOOLS, **variables) == expected
    long = [{"role": "user", "content": "x" * 2000}] * 1000
    rendered = ChatTemplate(source).render(messages=long, tools=TOOLS, **variables)
    assert rendered == render_jinja_template([long], tools=TOOLS, chat_template=source, **variables)[0][0]


def test_the_error_says_what_was_too_much() -> None:
    with pytest.raises(TemplateTooDear, match="text of more than 20000000 characters"):
        ChatTemplate(DEAR["long text"].replace("10**10", "10**9")).render()
