"""What is logged of real requests: ids, never what was asked, answered or presented as a key."""

import json
import secrets

import httpx

from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_traces import logged


def test_no_prompt_answer_or_key_is_ever_logged(http: httpx.Client, dray: Dray) -> None:
    secret, mark = f"zq{secrets.token_hex(8)}", f"id-{secrets.token_hex(8)}"
    asked = [{"role": "user", "content": f"{secret}?"}]
    chat = {"model": MODEL, "messages": asked, "max_tokens": 30}
    bodies = [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/v1/completions", {"model": MODEL, "prompt": secret, "max_tokens": 5}),
        ("/v1/completions", {"model": MODEL, "prompt": [secret, secret], "max_tokens": 5}),
        ("/v1/responses", {"model": MODEL, "input": secret, "max_output_tokens": 20}),
        ("/v1/messages", {"model": MODEL, "messages": asked, "max_tokens": 5}),
        ("/v1/embeddings", {"model": MODEL, "input": secret}),
        ("/tokenize", {"model": MODEL, "prompt": secret}),
        # What goes wrong is what is logged.
        ("/v1/chat/completions", chat | {"messages": [{"role": secret, "content": secret}]}),
        ("/v1/chat/completions", chat | {"messages": [{"role": "user", "content": secret * 20_000}]}),
        ("/v1/chat/completions", chat | {"chat_template_kwargs": {"messages": secret}}),
        ("/v1/chat/completions", chat | {"response_format": {"type": "json_schema", "json_schema": {"name": secret}}}),
        (f"/v1/{secret}", chat),
    ]
    headers = {"x-request-id": mark, "Authorization": f"Bearer dray-{secret}"}
    given = [http.post(path, json=body, headers=headers) for path, body in bodies]
    given.append(http.post("/v1/chat/completions", content=f'{{"model": "{secret}', headers=headers))
    assert [one.status_code for one in given[:4]] == [200] * 4 and given[-1].status_code == 400
    made = given[0].json()["choices"][0]["message"]["reasoning_content"]
    assert len(made) > 10
    http.post("/v1/chat/completions", json=chat | {"max_tokens": 0}, headers={"x-request-id": f"{mark}-last"})
    wait_for(lambda: any(f"{mark}-last" in line for line in logged(dray)))
    lines = logged(dray)
    ours = [json.loads(line) for line in lines if mark in line]
    assert {one["message"] for one in ours} == {"request not answered"}
    assert len(ours) == sum(one.status_code >= 400 for one in given) + 1
    assert all("trace_id" not in one for one in ours), "no traces are made here"
    assert not [line for line in lines if secret in line or made in line]
