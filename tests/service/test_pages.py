"""The pages without a browser: the status page, and the address of a chat page that is turned off."""

import httpx

from tests.conftest import MODEL, Dray


def test_an_unchanged_status_page_is_sent_once(http: httpx.Client) -> None:
    page = http.get("/status")
    assert page.headers["content-type"].startswith("text/html") and "<title>Dray" in page.text
    again = http.get("/status", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_status_page_gets_the_machines_cores(dray: Dray, http: httpx.Client) -> None:
    machine = http.get("/status/machine").json()
    assert machine["models"] == [MODEL]
    usable = {cpu for core in machine["cores"] if core["usable"] for cpu in core["cpus"]}
    [replica] = dray.status()["replicas"]
    assert {int(cpu) for cpu in replica["cpus"].split(",")} <= usable


def test_a_chat_page_that_is_off_is_a_404_that_says_so(http: httpx.Client) -> None:
    assert http.get("/").headers["location"] == "/docs" and http.get("/status/machine").json()["chat"] is False
    assert 'data-chat="false"' in http.get("/status").text
    for path in ("/chat", "/chat/"):
        answer = http.get(path, follow_redirects=True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_chat_page")
