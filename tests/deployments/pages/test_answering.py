"""An answer that a page waits for, with a real HTTP server behind it."""

import asyncio
import json

import pytest

pytest.importorskip("gradio", reason="the chat page needs the extra `page`")

from deployments.pages.answering import Answering
from deployments.pages.attachment import File
from deployments.pages.client import ChatClient, ChatQuery, Rating
from deployments.pages.conversation import Answer, Conversation, Turn
from deployments.pages.fields import Chosen
from deployments.pages.i18n import CHINESE, ENGLISH, Texts
from tests.cluster.streams import DONE, END, delta, event, serving

ASKED = Conversation("1", (Turn("what?"),))
START = event(delta('{"content":"so"}'))


def answer_of(conversation: Conversation) -> Answer:
    answer = conversation.turns[-1].answer
    assert answer is not None
    return answer


def last(
    *pieces: bytes, status: int = 200, key: str = "", asked: Conversation = ASKED, texts: Texts = ENGLISH
) -> Answer:
    """The answer at its end."""

    async def run(url: str) -> Answer:
        answering = Answering(ChatClient(url))
        states = [state async for state in answering.answer("s", asked, ChatQuery("m", ()), key, texts)]
        assert not answering.busy("s")
        return answer_of(states[-1])

    with serving(*pieces, status=status) as url:
        return asyncio.run(run(url))


def test_an_answer_arrives_beside_those_before_it() -> None:
    whole = last(START, END, DONE)
    assert (whole.model, whole.progress.text, whole.ended, whole.error) == ("m", "so", True, "")
    twice = Turn("what?", (Answer("m"),)).with_answer(whole)
    assert twice.answer is whole and twice.turned(-1).answer == Answer("m") and twice.turned(5).answer is whole


def test_the_parts_of_a_file_that_an_answer_quotes_stay_with_it() -> None:
    file = File("rules.txt", "Doors close at six. The last one out turns off the light. Nobody runs.")
    asked = Conversation("1", (Turn("when?", file=file), Turn("and then?")))
    words = event(delta('{"content":"Remember: the last one out turns off the light!"}'))
    whole = last(words, END, DONE, asked=asked)
    assert (whole.source, whole.passages) == ("rules.txt", ("The last one out turns off the light.",))
    assert last(words, END, DONE).passages == ()


def test_what_went_wrong_is_part_of_the_answer() -> None:
    assert last(START).error == ENGLISH.lost
    assert last(b'{"error":{"message":"too long"}}', status=400).error == "Error: too long"
    refusal = b'{"error":{"message":"no"}}'
    assert last(refusal, status=401).error == ENGLISH.key_needed
    assert last(refusal, status=401, key="dray-x").error == ENGLISH.key_refused


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "context_length_exceeded", "not_a_teams_key"])
def test_chinese_readers_are_told_why_in_chinese(code: str) -> None:
    body = json.dumps({"error": {"message": "no", "code": code}}).encode()
    for refused in (last(body, status=429, texts=CHINESE), last(START, event(body.decode()), texts=CHINESE)):
        assert refused.error.startswith("请求失败：") and "no" not in refused.error
    assert last(body, status=429).error == "Error: no"
    other = b'{"error":{"message":"no","code":7}}'
    assert last(other, status=400, texts=CHINESE).error == "请求失败：no", "better than nothing"


def test_a_stopped_answer_keeps_what_arrived_and_ends_the_request() -> None:
    closed = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + START)
        await reader.read()  # until the client goes
        closed.set()
        writer.close()

    async def run() -> Answer:
        async with await asyncio.start_server(endless, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            answering = Answering(ChatClient(f"http://127.0.0.1:{port}/v1"))
            async with asyncio.timeout(30):
                async for state in answering.answer("s", ASKED, ChatQuery("m", ()), "", ENGLISH):
                    if answer_of(state).progress.text:
                        answering.stop("another page")
                        assert answering.busy("s")
                        answering.stop("s")
                await closed.wait()
            return answer_of(state)

    stopped = asyncio.run(run())
    assert stopped.stopped and stopped.progress.text == "so"


def test_what_a_person_chose_is_asked_for() -> None:
    chosen = Chosen("m", "", "Be brief.", temperature=0.6, top_p=0.9, max_tokens=7, seed=3, effort="low")
    body = chosen.query(ASKED, fresh=False).body()
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    wanted = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 7, "seed": 3, "reasoning_effort": "low"}
    assert {name: body[name] for name in wanted} == wanted
    anew = [chosen.query(ASKED, fresh=True) for _ in range(2)]
    assert all(query.fresh for query in anew) and len({3, *(query.seed for query in anew)}) == 3


def test_a_rating_is_sent_with_the_answers_id() -> None:
    received: list[tuple[str, object]] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r")[0])
        received.append((head.split()[1], json.loads(await reader.readexactly(length))))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await ChatClient(f"http://127.0.0.1:{port}/v1").rate(Rating("chatcmpl-1", "down", reason="wrong"), "")

    asyncio.run(run())
    body = {"id": "chatcmpl-1", "rating": "down", "reason": "wrong", "correction": None}
    assert received == [("/v1/feedback", body)]
