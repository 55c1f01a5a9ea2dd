"""Clients of OpenAI's and Anthropic's APIs, unmodified, against the running service."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel, Field

from cluster.models.folder import BUNDLED_FOLDER
from tests.conftest import MODEL, Dray
from tests.fetched import from_npm, from_pypi

ROOT = Path(__file__).parents[2]
CLIENTS_PAGE = (ROOT / "docs" / "clients.md").read_text()
ADDRESS = "http://127.0.0.1:8000"
SUM = [{"role": "user", "content": "What is 27 + 48?"}]
CITY = {
    "type": "object",
    "properties": {"heads": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["heads"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "count", "description": "Counts heads", "parameters": CITY}}


class Sum(BaseModel):
    """A schema for `parse`."""

    total: int = Field(ge=0, le=999)
    sure: bool


def test_openai_async_streams_side_by_side(dray: Dray) -> None:
    async def work() -> list[str]:
        async with openai.AsyncOpenAI(base_url=dray.url, api_key="none", max_retries=0) as client:

            async def ask(a: int) -> str:
                messages: Any = [{"role": "user", "content": f"What is {a} + {a}?"}]
                text = ""
                async for chunk in await client.chat.completions.create(model=MODEL, messages=messages, stream=True):
                    text += chunk.choices[0].delta.content or ""
                return text

            return await asyncio.gather(*map(ask, range(20, 28)))

    for a, text in zip(range(20, 28), asyncio.run(work()), strict=True):
        assert f"{a}+{a}={2 * a}" in text


def test_openai_parse_returns_objects(client: Any) -> None:
    parsed = client.chat.completions.parse(model=MODEL, messages=SUM, response_format=Sum, temperature=0)
    assert isinstance(parsed.choices[0].message.parsed, Sum)
    with client.chat.completions.stream(model=MODEL, messages=SUM, response_format=Sum) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Sum)
    response = client.responses.parse(model=MODEL, input="What is 27 + 48?", text_format=Sum)
    assert isinstance(response.output_parsed, Sum)


def test_openai_tools_are_called_and_their_results_accepted(client: Any) -> None:
    called = client.chat.completions.create(model=MODEL, messages=SUM, tools=[TOOL], tool_choice="required")
    choice = called.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None and choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert call.function.name == "count" and 0 <= json.loads(call.function.arguments)["heads"] <= 99
    results = [{"role": "tool", "tool_call_id": call.id, "content": "75"} for call in choice.message.tool_calls]
    after = client.chat.completions.create(model=MODEL, messages=[*SUM, choice.message, *results], max_tokens=50)
    before = client.chat.completions.create(model=MODEL, messages=SUM, max_tokens=50)
    assert after.usage.prompt_tokens > before.usage.prompt_tokens, "the prompt has the call and its result"


def test_openai_tool_calls_are_the_same_streamed_and_whole(client: Any) -> None:
    choice = {"type": "function", "function": {"name": "count"}}
    request = {"model": MODEL, "messages": SUM, "tools": [TOOL], "tool_choice": choice, "temperature": 0}
    whole = client.chat.completions.create(**request)
    assert len(whole.choices[0].message.tool_calls) == 1
    with client.chat.completions.stream(**request) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    [call] = final.choices[0].message.tool_calls
    assert call.function.arguments == whole.choices[0].message.tool_calls[0].function.arguments


def test_openai_follows_and_cancels_responses_in_the_background(client: Any) -> None:
    response = client.responses.create(model=MODEL, input="What is 31 + 12?", background=True)
    while response.status in ("queued", "in_progress"):
        response = client.responses.retrieve(response.id)
    assert response.status == "completed" and "43" in response.output_text
    long = {"max_output_tokens": 1500, "extra_body": {"ignore_eos": True, "seed": 5}}
    response = client.responses.create(model=MODEL, input="What is 31 + 12?", background=True, **long)
    assert client.responses.cancel(response.id).status == "cancelled"
    assert client.responses.retrieve(response.id).status == "cancelled"


def test_openai_responses(client: Any) -> None:
    response = client.responses.create(model=MODEL, input="What is 27 + 48?", instructions="Be brief.")
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert "75" in response.output_text and response.status == "completed"
    assert "27+48" in response.output[0].content[0].text
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    with client.responses.stream(model=MODEL, input="What is 27 + 48?", instructions="Be brief.") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == response.output_text
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert {"response.reasoning_text.delta", "response.output_text.delta", "response.content_part.done"} <= set(kinds)
    again = client.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "What is 27 + 48?"},
            *[item.model_dump(exclude_none=True) for item in response.output],
            {"role": "user", "content": [{"type": "input_text", "text": "What is 40 + 2?"}]},
        ],
    )
    assert "42" in again.output_text
    cut = client.responses.create(model=MODEL, input="What is 27 + 48?", max_output_tokens=5)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    called = client.responses.create(
        model=MODEL,
        input="What is 27 + 48?",
        tools=[{"type": "function", "name": "count", "parameters": CITY, "strict": True}],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    [call] = [item for item in called.output if item.type == "function_call"]
    assert "heads" in json.loads(call.arguments)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


def test_anthropic(dray: Dray) -> None:
    with anthropic.Anthropic(base_url=dray.root, api_key="none", max_retries=0) as client:
        request: Any = {"model": MODEL, "max_tokens": 300, "messages": SUM, "system": "Be brief."}
        message = client.messages.create(**request)
        assert [block.type for block in message.content] == ["text"]
        assert "75" in message.content[0].text and message.stop_reason == "end_turn"
        thoughtful = client.messages.create(**request, thinking={"type": "adaptive"})
        assert [block.type for block in thoughtful.content] == ["thinking", "text"]
        assert thoughtful.content[1].text == message.content[0].text
        with client.messages.stream(**request) as stream:
            assert "".join(stream.text_stream) == message.content[0].text
            assert stream.get_final_message().usage.output_tokens == message.usage.output_tokens
        request |= {
            "tools": [{"name": "count", "input_schema": CITY}],
            "tool_choice": {"type": "tool", "name": "count"},
        }
        called = client.messages.create(**request)
        [use] = [block for block in called.content if block.type == "tool_use"]
        assert use.name == "count" and 0 <= use.input["heads"] <= 99 and called.stop_reason == "tool_use"
        with pytest.raises(anthropic.NotFoundError) as refused:
            client.messages.create(**(request | {"model": "claude"}))
        assert "not_found_error" in str(refused.value.body)


def test_langchain(dray: Dray) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=dray.url, api_key="none", model=MODEL, max_retries=0)
    assert "75" in str(chat.invoke("What is 27 + 48?").content)
    assert "75" in "".join(str(piece.content) for piece in chat.stream("What is 27 + 48?"))
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Sum, method=method).invoke("What is 27 + 48?"), Sum)
    usage = asyncio.run(chat.ainvoke("What is 27 + 48?")).usage_metadata
    assert usage is not None and usage["output_tokens"] > 0


def test_litellm(dray: Dray) -> None:
    import litellm

    request: dict[str, Any] = {
        "model": f"openai/{MODEL}",
        "api_base": dray.url,
        "api_key": "none",
        "messages": SUM,
        "num_retries": 0,
    }
    completion: Any = litellm.completion(**request)
    assert "75" in completion.choices[0].message.content
    assert "27+48" in completion.choices[0].message.reasoning_content
    chunks: Any = litellm.completion(**request, stream=True)
    assert "75" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def recipe(client: str, dray: Dray, folder: str = "") -> dict[str, str]:
    """The code of a client's section in docs/clients.md by language, for this Dray, without what installs the client.

    folder: the model's, where the recipe names one.
    """
    section = re.split(rf"^## {re.escape(client)}\n", CLIENTS_PAGE, flags=re.M)[1].split("\n## ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", section, re.M | re.S)
    code = {}
    for language, block in blocks:
        lines = [line for line in block.splitlines() if not re.match(r"(pip|npm) install ", line)]
        code[language] = "\n".join(lines).replace(ADDRESS, dray.root).replace("FOLDER", folder)
    return code


@pytest.mark.parametrize("client", ["OpenAI for Python", "Anthropic for Python", "LangChain", "LiteLLM"])
def test_recipes_in_python(client: str, dray: Dray, capsys: pytest.CaptureFixture[str]) -> None:
    exec(recipe(client, dray)["python"], {})
    assert "75" in capsys.readouterr().out


@pytest.mark.parametrize("client", ["curl", "llm"])
def test_recipes_of_commands(client: str, dray: Dray, tmp_path: Path) -> None:
    assert "75" in ran(recipe(client, dray)["bash"], tmp_path, Path(sys.executable).parent)


def ran(script: str, folder: Path, programs: Path, timeout: float = 250) -> str:
    """What commands print in an empty folder that is also their home. programs: the folder with the client."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "HF_HUB_OFFLINE": "1"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_recipe_for_node(dray: Dray, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(from_npm("openai-node", "openai"))
    (tmp_path / "ask.mjs").write_text(recipe("OpenAI for Node", dray)["js"])
    assert "75" in ran("node ask.mjs", tmp_path, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_recipe_for_llamaindex(dray: Dray, tmp_path: Path) -> None:
    programs = from_pypi("llamaindex", "llama-index-llms-openai-like")
    (tmp_path / "ask.py").write_text(recipe("LlamaIndex", dray)["python"])
    assert "75" in ran("python ask.py", tmp_path, programs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_recipe_for_lm_eval_with_the_tasks_of_the_guide(dray: Dray, tmp_path: Path) -> None:
    programs = from_pypi("lm-eval", "lm-eval[api]", "transformers")
    guide = (ROOT / "docs" / "guides" / "evaluation.md").read_text()
    for block in re.findall(r"^```yaml\n(.*?)^```", guide, re.M | re.S):
        (name,) = re.findall(r"\A# (\w+\.yaml)", block)
        (tmp_path / name).write_text(block)
    (question,) = re.findall(r"a line: (\{.*\})", guide)
    (tmp_path / "questions.jsonl").write_text(f"{question}\n" * 2)
    script = recipe("lm-evaluation-harness", dray, str(BUNDLED_FOLDER))["bash"]
    table = ran(script, tmp_path, programs)
    for task in ("sums_choice", "sums_text"):
        assert re.search(rf"^\|{task} *\|.*\| *1\|", table, re.M), table


def test_there_are_recipes_for_twelve_clients() -> None:
    """test_agents.py runs both agents by flags of its own. guidellm brings torch, so its recipe was tried by hand."""
    headings = re.findall(r"^## (.*)", CLIENTS_PAGE, re.M)
    assert len(headings) - 1 == 12 and headings[-1] == "What was tried"
