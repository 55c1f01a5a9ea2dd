"""Each parameter of chat completions and completions has its effect."""

import json
import math
from typing import Any

import httpx
import pytest

from tests.conftest import MODEL
from tests.service.test_cache import new_question, text_of

REQUEST = {"model": MODEL, "messages": [{"role": "user", "content": "What is 27 + 48?"}]}


def ask(http: httpx.Client, **more: Any) -> dict[str, Any]:
    answer = http.post("/v1/chat/completions", json=REQUEST | more)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def message(body: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = body["choices"][0]["message"]
    return first


def test_n_choices_are_drawn_independently(http: httpx.Client) -> None:
    body = ask(http, n=4, temperature=2.0, top_p=1.0, seed=7, max_tokens=60)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    single = ask(http, temperature=2.0, top_p=1.0, seed=7, max_tokens=60)
    assert body["usage"]["completion_tokens"] > 3 * single["usage"]["completion_tokens"] / 2
    assert message(body) == message(single), "the first choice is the same as that of n=1"
    streamed = http.post("/v1/chat/completions", json=REQUEST | {"n": 2, "stream": True})
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    finished = sorted(c["index"] for e in events for c in e["choices"] if c["finish_reason"])
    assert finished == [0, 1]


def test_logprobs_are_those_of_the_answers_tokens(http: httpx.Client) -> None:
    body = ask(http, logprobs=True, top_logprobs=1)
    content = body["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == message(body)["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == message(body)["content"]
    assert all(-20 < token["logprob"] <= 0 for token in content)
    assert all(token["top_logprobs"][0]["token"] == token["token"] for token in content)
    assert math.exp(sum(token["logprob"] for token in content)) > 0.5, "the model was trained on it"
    assert ask(http)["choices"][0]["logprobs"] is None


def test_alternatives_are_the_models_own_whatever_the_sampling(http: httpx.Client) -> None:
    greedy = ask(http, logprobs=True, top_logprobs=20)["choices"][0]["logprobs"]["content"]
    for token in greedy:
        values = [likely["logprob"] for likely in token["top_logprobs"]]
        assert len(values) == 20 and values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) < 1.001 and token["top_logprobs"][0]["token"] == token["token"]
    # At this temperature all tokens are almost equally likely to be drawn, if top_k did not leave only the first.
    hot = ask(http, logprobs=True, top_logprobs=20, temperature=2.0, top_k=1, seed=1)["choices"][0]["logprobs"][
        "content"
    ]
    assert [token["token"] for token in hot] == [token["token"] for token in greedy]
    assert [token["logprob"] for token in hot] == pytest.approx([token["logprob"] for token in greedy], abs=0.05)


def test_biases_force_and_ban_tokens(http: httpx.Client) -> None:
    def token_of(text: str) -> str:
        body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
        [token] = http.post("/tokenize", json=body).json()["tokens"]
        return str(token)

    def complete(**more: Any) -> str:
        body = {"model": MODEL, "prompt": "What is", "max_tokens": 5, "temperature": 0} | more
        text: str = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        return text

    assert complete(logit_bias={token_of("7"): 100}) == "77777"
    assert complete(logit_bias={token_of("7"): 100}, temperature=1.0, seed=3) == "77777"
    banned = {token_of(digit): -100 for digit in "0123456789"}
    forced = {token_of("a"): 50, **banned}
    assert complete(logit_bias=forced) == "aaaaa"


@pytest.mark.parametrize("fields", [{}, {"max_thinking_tokens": 2}, {"max_thinking_tokens": 0}], ids=str)
@pytest.mark.parametrize("constrained", [False, True], ids=["free", "schema"])
def test_no_answer_is_longer_than_its_limit(http: httpx.Client, fields: dict[str, Any], constrained: bool) -> None:
    """The texts that end the thinking count too."""
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    answer_format = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    for limit in range(1, 10):
        answer = ask(http, max_tokens=limit, **fields, **({"response_format": answer_format} if constrained else {}))
        assert answer["usage"]["completion_tokens"] <= limit
        assert answer["choices"][0]["finish_reason"] == "length" or answer["usage"]["completion_tokens"] < limit


def test_thinking_can_be_limited_and_turned_off(http: httpx.Client) -> None:
    free = ask(http)
    limited = ask(http, max_thinking_tokens=4)
    assert limited["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 4 + 4
    assert free["usage"]["completion_tokens_details"]["reasoning_tokens"] > 8
    assert message(limited)["content"] and "think>" not in message(limited)["content"]
    none = ask(http, reasoning_effort="none")
    assert message(none)["reasoning_content"] is None and message(none)["content"]
    left_out = ask(http, include_reasoning=False)
    assert "reasoning_content" not in message(left_out)
    assert left_out["usage"] == free["usage"] and message(left_out)["content"] == message(free)["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_constrains_the_answer_and_not_the_thinking(http: httpx.Client, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "maximum": 99, "minimum": 10}},
        "required": ["sum"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    body = REQUEST | {"response_format": form, "stream": stream}
    answer = http.post("/v1/chat/completions", json=body)
    if stream:
        reasoning, text = text_of(answer)
    else:
        reasoning, text = message(answer.json())["reasoning_content"], message(answer.json())["content"]
    assert "27+48" in reasoning and 10 <= json.loads(text)["sum"] <= 99


def test_json_object_is_an_object(http: httpx.Client) -> None:
    body = ask(http, response_format={"type": "json_object"}, max_tokens=300)
    if body["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(message(body)["content"]), dict)


def test_penalties_and_sampling_change_the_answer(http: httpx.Client) -> None:
    # Beyond its end the model repeats itself, which penalties change.
    long: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True}
    repeating = message(ask(http, **long))
    for change in ({"repetition_penalty": 2.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}):
        assert message(ask(http, **long, **change)) != repeating, change
    plain = message(ask(http, max_tokens=60))
    hot: dict[str, Any] = {"temperature": 2.0, "seed": 3, "max_tokens": 60}
    assert message(ask(http, **hot, top_k=1)) == message(ask(http, **hot, min_p=0.999)) == plain


def test_the_end_can_be_moved(http: httpx.Client) -> None:
    assert ask(http, ignore_eos=True, max_tokens=80)["usage"]["completion_tokens"] == 80
    tokens = ask(http)["usage"]["completion_tokens"]
    assert ask(http, min_tokens=tokens + 5, max_tokens=tokens + 30)["usage"]["completion_tokens"] >= tokens + 5


def test_template_arguments_reach_the_template(http: httpx.Client) -> None:
    """The bundled model's template uses no arguments, so the answer is the same; reserved names are refused."""
    assert message(ask(http, chat_template_kwargs={"unknown": 1})) == message(ask(http))
    refused = http.post("/v1/chat/completions", json=REQUEST | {"chat_template_kwargs": {"tokenize": True}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "chat_template_kwargs")


def test_content_parts_and_the_developer_role(http: httpx.Client) -> None:
    parts = [{"type": "text", "text": "What is 27"}, {"type": "text", "text": " + 48?"}]
    assert message(ask(http, messages=[{"role": "user", "content": parts}])) == message(ask(http))
    system = [{"role": "system", "content": "Be brief."}, *REQUEST["messages"]]
    developer = [{"role": "developer", "content": "Be brief."}, *REQUEST["messages"]]
    assert message(ask(http, messages=system)) == message(ask(http, messages=developer))


def test_completions_continue_texts_and_ids(http: httpx.Client) -> None:
    # The model is sure only about rendered questions: with other prompts, the batch would change the result.
    ids, other_ids = (
        http.post("/tokenize", json={"model": MODEL, "messages": [{"role": "user", "content": text}]}).json()["tokens"]
        for text in ("What is 27 + 48?", "What is 12 + 13?")
    )
    text, other_text = (
        http.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"]
        for tokens in (ids, other_ids)
    )
    body = {"model": MODEL, "max_tokens": 8}
    of_text, of_ids, of_both = (
        http.post("/v1/completions", json=body | {"prompt": prompt}).json()["choices"]
        for prompt in (text, ids, [text, ids])
    )
    first = of_text[0]["text"]
    assert first == of_ids[0]["text"] and [choice["text"] for choice in of_both] == [first, first]
    assert [choice["index"] for choice in of_both] == [0, 1]
    echoed = http.post("/v1/completions", json=body | {"prompt": ids, "echo": True, "logprobs": None}).json()
    assert echoed["choices"][0]["text"] == text + first
    choice = http.post("/v1/completions", json=body | {"prompt": text, "logprobs": 1}).json()["choices"][0]
    assert "".join(choice["logprobs"]["tokens"]) == first and len(choice["logprobs"]["text_offset"]) == 8
    events = http.post("/v1/completions", json=body | {"prompt": [text, other_text], "stream": True}).text
    lines = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    texts = ["".join(c["text"] for e in lines for c in e["choices"] if c["index"] == n) for n in (0, 1)]
    assert texts[0] == first and events.rstrip().endswith("[DONE]")


@pytest.mark.parametrize("more", [{}, {"n": 2, "temperature": 1.0, "seed": 5}], ids=["one", "two"])
def test_the_chunks_of_a_completion_add_up_to_the_whole(http: httpx.Client, more: dict[str, Any]) -> None:
    rendered = http.post("/tokenize", json={"model": MODEL, "messages": REQUEST["messages"]}).json()["tokens"]
    body = {"model": MODEL, "max_tokens": 24, "logprobs": 1, "prompt": rendered} | more
    stored = {"Idempotency-Key": f"chunks-{len(more)}"}
    whole = http.post("/v1/completions", json=body, headers=stored).json()["choices"]
    for result, headers in (("hit", stored), ("bypass", {"Cache-Control": "no-cache, no-store"})):
        streamed = http.post("/v1/completions", json=body | {"stream": True}, headers=headers)
        assert streamed.headers["x-dray-cache"] == result
        lines = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        for choice in whole:
            parts = [part for line in lines for part in line["choices"] if part["index"] == choice["index"]]
            tokens, offsets = (
                [value for part in parts for value in part["logprobs"][name]] for name in ("tokens", "text_offset")
            )
            assert "".join(tokens) == "".join(part["text"] for part in parts)
            assert offsets == [len("".join(tokens[:index])) for index in range(len(tokens))]
            if result == "hit":
                assert (tokens, offsets) == (choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"])


def test_an_echo_scores_the_prompt_as_its_own_generation_did(http: httpx.Client) -> None:
    """What lm-evaluation-harness asks for: how likely a given continuation is."""
    rendered = http.post("/tokenize", json={"model": MODEL, "messages": REQUEST["messages"]}).json()["tokens"]
    body = {"model": MODEL, "logprobs": 1, "temperature": 0}
    generated = http.post("/v1/completions", json=body | {"prompt": rendered, "max_tokens": 8}).json()["choices"][0]
    text = http.post("/detokenize", json={"model": MODEL, "tokens": rendered}).json()["prompt"] + generated["text"]
    whole = http.post("/tokenize", json={"model": MODEL, "prompt": text, "add_special_tokens": False}).json()["tokens"]
    scored = http.post("/v1/completions", json=body | {"prompt": whole, "max_tokens": 1, "echo": True}).json()
    reported = scored["choices"][0]["logprobs"]
    assert len(reported["token_logprobs"]) == len(whole) + 1 and reported["token_logprobs"][0] is None
    own = reported["token_logprobs"][len(rendered) : -1]
    assert own == pytest.approx(generated["logprobs"]["token_logprobs"], abs=0.05)
    alone = http.post("/v1/completions", json=body | {"prompt": whole, "max_tokens": 0, "echo": True}).json()
    assert alone["choices"][0]["logprobs"]["token_logprobs"][1:] == pytest.approx(
        reported["token_logprobs"][1:-1], abs=0.05
    )
    assert (alone["choices"][0]["text"], alone["usage"]["completion_tokens"]) == (text, 0)
    for value, likely in list(zip(reported["token_logprobs"], reported["top_logprobs"], strict=True))[1:]:
        assert value in likely.values() and value <= max(likely.values())


def test_an_answer_that_has_begun_goes_on_as_its_text_does(http: httpx.Client) -> None:
    """In chat completions and messages: what the model writes after the same text in /v1/completions."""
    thought = {"role": "assistant", "content": "27 + 48"}
    messages = [*REQUEST["messages"], thought]
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 24}
    text = "<｜begin▁of▁sentence｜><｜User｜>What is 27 + 48?<｜Assistant｜>27 + 48"
    raw = http.post("/v1/completions", json=fields | {"prompt": text}).json()
    going_on = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    chat = http.post("/v1/chat/completions", json=fields | going_on).json()
    [block] = http.post("/v1/messages", json=fields | {"messages": messages}).json()["content"]
    assert message(chat)["content"] == block["text"] == raw["choices"][0]["text"] != ""
    assert message(chat)["reasoning_content"] is None
    assert chat["usage"]["prompt_tokens"] == raw["usage"]["prompt_tokens"]
    streamed = http.post("/v1/chat/completions", json=fields | going_on | {"stream": True}).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == block["text"]


def test_tokens_and_back(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "鸡兔同笼 23", "add_special_tokens": False, "return_token_strs": True}
    tokens = http.post("/tokenize", json=body).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"]) and tokens["max_model_len"] == 2048
    text = http.post("/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]}).json()
    assert text == {"prompt": "鸡兔同笼 23"}
    chat = http.post("/tokenize", json={"model": MODEL, "messages": REQUEST["messages"]}).json()
    assert chat["count"] == ask(http)["usage"]["prompt_tokens"]
    outside = http.post("/detokenize", json={"model": MODEL, "tokens": [10**6]})
    assert (outside.status_code, outside.json()["error"]["param"]) == (400, "tokens")


def test_responses_have_the_clients_request_id_or_a_new_one(http: httpx.Client) -> None:
    with_id = http.get("/v1/models", headers={"x-request-id": "my-id-1"})
    without_id = http.get("/v1/nothing")
    assert with_id.headers["x-request-id"] == "my-id-1"
    assert len(without_id.headers["x-request-id"]) > 16 and without_id.headers["x-request-id"] != "my-id-1"


def test_the_first_event_has_the_role(http: httpx.Client) -> None:
    body = REQUEST | {"stream": True, "messages": [{"role": "user", "content": new_question()}]}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        first = next(answer.iter_lines())
    delta = json.loads(first[6:])["choices"][0]["delta"]
    assert delta == {"role": "assistant", "content": "", "reasoning_content": None}
