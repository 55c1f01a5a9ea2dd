"""Log lines about requests: they have ids, but never a prompt, an answer or a key."""

import json
import secrets

import httpx

from tests.conftest import MODEL, Dray, logged, wait_for


def test_no_part_of_ray_looks_for_a_dashboard(dray: Dray) -> None:
    """There is none, and Ray's whole agent logs that every second."""
    assert not [line for line in logged(dray) if "dashboard http address" in line.lower()]


def test_no_prompt_answer_or_key_is_ever_logged(http: httpx.Client, dray: Dray) -> None:
    secret, mark = f"zq{secrets.token_hex(8)}", f"id-{secrets.token_hex(8)}"
    messages = [{"role": "user", "content": f"{secret}?"}]
    chat = {"model": MODEL, "messages": messages, "max_tokens": 30}
    bodies = [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/v1/completions", {"model": MODEL, "prompt": secret, "max_tokens": 5}),
        ("/v1/completions", {"model": MODEL, "prompt": [secret, secret], "max_tokens": 5}),
        ("/v1/responses", {"model": MODEL, "input": secret, "max_output_tokens": 20}),
        ("/v1/messages", {"model": MODEL, "messages": messages, "max_tokens": 5}),
        ("/v1/embeddings", {"model": MODEL, "input": secret}),
        ("/tokenize", {"model": MODEL, "prompt": secret}),
        # Refused requests, which are logged.
        ("/v1/chat/completions", chat | {"messages": [{"role": secret, "content": secret}]}),
        ("/v1/chat/completions", chat | {"messages": [{"role": "user", "content": secret * 20_000}]}),
        ("/v1/chat/completions", chat | {"chat_template_kwargs": {"messages": secret}}),
        ("/v1/chat/completions", chat | {"response_format": {"type": "json_schema", "json_schema": {"name": secret}}}),
        (f"/v1/{secret}", chat),
    ]
    headers = {"x-request-id": mark, "Authorization": f"Bearer dray-{secret}"}
    responses = [http.post(path, json=body, headers=headers) for path, body in bodies]
    headers |= {"Content-Type": "application/json"}
    responses.append(http.post("/v1/chat/completions", content=f'{{"model": "{secret}', headers=headers))
    assert [response.status_code for response in responses[:4]] == [200] * 4 and responses[-1].status_code == 400
    reasoning = responses[0].json()["choices"][0]["message"]["reasoning_content"]
    assert len(reasoning) > 10
    http.post("/v1/chat/completions", json=chat | {"max_tokens": 0}, headers={"x-request-id": f"{mark}-last"})
    wait_for(lambda: any(f"{mark}-last" in line for line in logged(dray)))
    lines = logged(dray)
    records = [json.loads(line) for line in lines if mark in line]
    assert {record["message"] for record in records} == {"request not answered"}
    assert len(records) == sum(response.status_code >= 400 for response in responses) + 1
    assert not any("trace_id" in record for record in records), "this Dray exports no traces"
    assert not [line for line in lines if secret in line or reasoning in line]
