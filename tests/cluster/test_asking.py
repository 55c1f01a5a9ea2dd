"""`dray run` and `dray chat`: pipes, terminals, models, exit codes, Ctrl-C, line editing."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.commands.answering import WordWriter
from tests.cluster.streams import DONE, END, KINDS, USAGE, delta, event, serving

ANSWER = [*KINDS["content null"], event(USAGE), DONE]
WAIT_S = 60.0


def invoke(*arguments: str, typed: str = "") -> Result:
    return CliRunner(env={"OPENAI_API_KEY": ""}).invoke(app, [*arguments], input=typed)


def test_a_pipe_gets_the_answer_and_nothing_else() -> None:
    asked: list[dict[str, Any]] = []
    with serving(*ANSWER, asked=asked) as url:
        result = invoke("run", "hi", "--url", url, "--system", "Be brief.")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "so it\n", "hm\n")
    assert asked[0]["model"] == "m", "the first one served"
    assert asked[0]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("arguments", "typed", "question"),
    [([], "what?\n", "what?"), (["sum it up"], "a text\n", "a text\n\nsum it up"), (["hi"], "", "hi")],
)
def test_standard_input_is_the_question_or_the_text_before_it(arguments: list[str], typed: str, question: str) -> None:
    asked: list[dict[str, Any]] = []
    with serving(*ANSWER, asked=asked) as url:
        assert invoke("run", *arguments, "--url", url, typed=typed).exit_code == 0
    assert asked[0]["messages"] == [{"role": "user", "content": question}]


def test_json_has_the_answer_with_its_thinking() -> None:
    with serving(*ANSWER) as url:
        result = invoke("run", "hi", "--url", url, "--json")
    report = json.loads(result.stdout)
    assert report.pop("seconds") > 0 and result.stderr == ""
    assert report == {"model": "m", "thinking": "hm", "text": "so it", "finish_reason": "stop", "tokens": 5}


@pytest.mark.parametrize("command", ["run", "chat"])
def test_an_unknown_model_is_refused_with_those_there_are(command: str) -> None:
    with serving(*ANSWER) as url:
        result = invoke(command, *(["hi"] if command == "run" else []), "--url", url, "--model", "gpt-9", typed="hi\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: gpt-9 is not served here; there is m, other\n"


def test_a_server_without_a_list_of_models_is_asked_for_the_given_one() -> None:
    with serving(*ANSWER, models=()) as url:
        assert invoke("run", "hi", "--url", url, "--model", "any").stdout == "so it\n"
        refused = invoke("run", "hi", "--url", url)
    assert refused.exit_code == 1 and "give one with --model" in refused.stderr


def test_the_exit_code_of_run_says_whether_there_is_a_whole_answer() -> None:
    cut = event('{"choices":[{"index":0,"delta":{"content":"so"},"finish_reason":"length"}]}')
    with serving(cut, DONE) as url:
        result = invoke("run", "hi", "--url", url)
    assert (result.exit_code, result.stdout) == (1, "so\n") and "cut at the limit" in result.stderr
    with serving(b'{"error":{"message":"all busy"}}', status=503) as url:
        result = invoke("run", "hi", "--url", url, "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: all busy\n")
    assert invoke("run", "--url", "http://127.0.0.1:1/v1").exit_code == 1, "there is no question"
    assert invoke("run", "hi", "--url", "http://127.0.0.1:1/v1").exit_code == 1


def test_a_pipe_chats_a_line_at_a_time() -> None:
    asked: list[dict[str, Any]] = []
    with serving(*ANSWER, asked=asked) as url:
        result = invoke("chat", "--url", url, typed="hi\n\n/system Be kind.\nagain\n/model other\n/clear\nonce more")
    assert result.exit_code == 0 and result.stdout.count("so it\n") == 3 and "you>" not in result.stdout
    assert [body["model"] for body in asked] == ["m", "m", "other"]
    assert [[message["content"] for message in body["messages"]] for body in asked] == [
        ["hi"],
        ["Be kind.", "hi", "so it", "again"],
        ["Be kind.", "once more"],
    ]


def test_a_pipe_with_a_question_that_failed_ends_with_1() -> None:
    with serving(b'{"error":{"message":"all busy"}}', status=503) as url:
        result = invoke("chat", "--url", url, typed="hi\nagain\n")
    assert (result.exit_code, result.stdout) == (1, "") and result.stderr.count("error: all busy\n") == 2


def test_commands_of_the_chat_say_what_there_is() -> None:
    with serving(*ANSWER) as url:
        result = invoke("chat", "--url", url, typed="/help\n/model\n/model nine\n/system\n/what\n/exit\nhi\n")
    assert result.exit_code == 0 and "so it" not in result.stdout
    for expected in (
        "/clear",
        "m; there is m, other",
        "nine is not served here",
        "no system prompt",
        "/what is no command",
    ):
        assert expected in result.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_terminal_gets_whole_words(size: int) -> None:
    text = "Now the total is thirty-five heads, so x + y = 35.\n\n    code stays\n"
    text += "鸡有23只,兔有12只。所以答案是二十三与十二!\n"
    screen = Terminal()
    writer = WordWriter(Console(file=screen, width=20, color_system=None))
    for start in range(0, len(text), size):
        writer.write(text[start : start + size])
    writer.end()
    lines = screen.getvalue().split("\n")
    assert lines[:5] == ["Now the total is", "thirty-five heads,", "so x + y = 35.", "", "    code stays"]
    assert "".join(lines[5:]) == "鸡有23只,兔有12只。所以答案是二十三与十二!"
    assert not [line for line in lines if line[:1] in (",", "。", "!") and line]
    assert max(len(line.encode("gb18030")) for line in lines) <= 20


def test_a_model_cannot_steer_the_terminal() -> None:
    screen = Terminal()
    writer = WordWriter(Console(file=screen, width=80, color_system=None))
    writer.write("a\x1b]0;title\x07 \x1b[2Jb \x9b31mc\r\n")
    writer.end()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", screen.getvalue())


class Typing:
    """A command on a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], controller: int) -> None:
        self.process, self._controller, self.screen = process, controller, ""

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def end(self) -> int:
        """Types Ctrl-D until the process ends, and returns its exit code."""
        deadline = time.monotonic() + WAIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.screen!r}"
            with suppress(OSError):  # the terminal has just gone
                self.type("\x04")
                # A terminal that nobody reads would hold up the process' end.
                while select.select([self._controller], [], [], 0.3)[0] and time.monotonic() < deadline:
                    self.screen += os.read(self._controller, 65_536).decode(errors="replace")
        return self.process.returncode

    def wait_for(self, text: str) -> None:
        """Reads on until the text appears, and forgets what stands before its end."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} did not appear: {self.screen!r}"
            if select.select([self._controller], [], [], 0.1)[0]:
                data = os.read(self._controller, 65_536).decode(errors="replace")
                # What a terminal answers to the question where its cursor is.
                if "\x1b[6n" in data:
                    self.type("\x1b[1;1R")
                self.screen += data
        self.screen = self.screen.partition(text)[2]


@contextmanager
def on_terminal(*arguments: str, folder: Path) -> Iterator[Typing]:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env=os.environ | {"DRAY_DATA_DIR": str(folder / "d"), "TERM": "xterm", "NO_COLOR": "1", "OPENAI_API_KEY": ""},
    )
    os.close(terminal)
    try:
        yield Typing(process, controller)
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def test_a_terminal_has_line_editing_and_a_private_history(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []
    with serving(*ANSWER, asked=asked) as url:
        for turn, keys in enumerate(("hell\x01o\x04\x05o\r", "\x1b[A\r")):  # Ctrl-A, Ctrl-D deletes, Ctrl-E; Up
            with on_terminal("chat", "--url", url, folder=tmp_path) as chat:
                chat.wait_for("you>")
                chat.type(keys)
                chat.wait_for("(5 tokens")
                chat.wait_for("you>")
                assert chat.end() == 0
            assert len(asked) == turn + 1
    questions = [body["messages"][-1]["content"] for body in asked]
    assert questions == ["oello", "oello"]
    assert (tmp_path / "d" / "chat-history").stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_answer_only(tmp_path: Path) -> None:
    wait = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield event(delta('{"content":"a long story "}'))
        if not wait.is_set():
            wait.wait(WAIT_S)
        yield from (END, DONE)

    with serving(pieces) as url, on_terminal("chat", "--url", url, folder=tmp_path) as chat:
        chat.wait_for("you>")
        chat.type("tell\r")
        chat.wait_for("a long")
        os.killpg(chat.process.pid, signal.SIGINT)
        chat.wait_for("(stopped)")
        wait.set()
        chat.wait_for("you>")
        chat.type("again\r")
        chat.wait_for("a long story")
        assert chat.end() == 0
