"""The audit log: what was written is found whole, and every line that is missing, changed or moved is named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from cluster.audit import AuditLog, Entry, _hashed
from cluster.cli import app

Lines = list[str]


def written(folder: Path, count: int, rotate_bytes: int = 10**6) -> AuditLog:
    log = AuditLog(folder / "audit", rotate_bytes)
    for number in range(count):
        log.record("user:ann", "key.create", f"k{number}", {"team": "support", "keys": number})
    return log


def lines_of(folder: Path) -> Lines:
    return (folder / "audit" / "audit.jsonl").read_text().splitlines()


def reasons(folder: Path) -> list[tuple[int, str]]:
    return [(fault.line, fault.reason) for fault in AuditLog(folder / "audit").verify().faults]


def test_entries_say_who_did_what_and_when(tmp_path: Path) -> None:
    written(tmp_path, 3)
    last = json.loads(lines_of(tmp_path)[-1])
    assert (last["number"], last["actor"], last["action"], last["target"]) == (3, "user:ann", "key.create", "k2")
    assert last["details"] == {"team": "support", "keys": 2} and last["time"].endswith("+00:00")
    found = AuditLog(tmp_path / "audit").verify()
    assert (found.entries, found.faults) == (3, [])
    for file in (tmp_path / "audit").iterdir():
        assert file.stat().st_mode & 0o077 == 0, "others of this machine read nothing"


def changed(line: str, **fields: object) -> str:
    return json.dumps(json.loads(line) | fields, separators=(",", ":"), sort_keys=True)


def forged(line: str, **fields: object) -> str:
    """The line with other fields, and a hash that fits them."""
    entry = msgspec.json.decode(line, type=Entry)
    return msgspec.json.encode(
        _hashed(msgspec.structs.replace(entry, hash="", **fields)), order="deterministic"
    ).decode()


@pytest.mark.parametrize(
    ("tamper", "line", "reason"),
    [
        (lambda lines: lines[1:], 1, "entry 1 is missing before this line"),
        (lambda lines: lines[:1] + lines[3:], 2, "entries 2 to 3 are missing before this line"),
        (lambda lines: lines[:-1], 4, "entry 5 is missing after this line"),
        (lambda lines: [], 0, "entries 1 to 5 are missing after this line"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 3, "entry 2 is out of order"),
        (lambda lines: [*lines, lines[2]], 6, "entry 3 is out of order"),
        (lambda lines: [changed(lines[0], actor="user:eve"), *lines[1:]], 1, "entry 1 was changed"),
        (lambda lines: [lines[0], changed(lines[1], details={}), *lines[2:]], 2, "entry 2 was changed"),
        (lambda lines: [lines[0] + " ", *lines[1:]], 1, "entry 1 was changed"),
        (lambda lines: [lines[0], forged(lines[1], actor="user:eve"), *lines[2:]], 3, "entry 2 is not the one"),
        (lambda lines: [*lines[:4], forged(lines[4], actor="user:eve")], 5, "not the entry that was written last"),
        (lambda lines: [lines[0], "nonsense", *lines[2:]], 2, "this line is no entry"),
        (lambda lines: [lines[0], "", *lines[1:]], 2, "this line is no entry"),
    ],
)
def test_every_removed_changed_or_moved_line_is_found(
    tmp_path: Path, tamper: Callable[[Lines], Lines], line: int, reason: str
) -> None:
    log = written(tmp_path, 5)
    tampered = tamper(lines_of(tmp_path))
    (tmp_path / "audit" / "audit.jsonl").write_text("".join(line + "\n" for line in tampered))
    assert any(at == line and reason in why for at, why in reasons(tmp_path)), reasons(tmp_path)
    log.record("user:ann", "key.create", "later", {})
    assert reasons(tmp_path), "a later entry does not heal it"


def test_a_rotated_log_is_one_chain(tmp_path: Path) -> None:
    log = written(tmp_path, 20, rotate_bytes=1000)
    files = sorted((tmp_path / "audit").glob("audit-*.jsonl"))
    assert len(files) > 3
    found = log.verify()
    assert (found.entries, found.faults) == (20, [])
    files[1].unlink()
    [fault] = log.verify().faults
    assert fault.file == files[2].name and fault.line == 1 and "missing before this line" in fault.reason


WRITE_30 = """
import sys
from pathlib import Path
from cluster.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), 3000)
for number in range(30):
    log.record("user:ann", "key.create", f"k{number}", {})
"""


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    writers = [subprocess.Popen([sys.executable, "-c", WRITE_30, str(folder)]) for _ in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    found = AuditLog(folder).verify()
    assert (found.entries, found.faults) == (90, [])


def test_a_process_that_died_while_it_wrote_leaves_a_whole_chain(tmp_path: Path) -> None:
    log = written(tmp_path, 3)
    head = (tmp_path / "audit" / "audit.head").read_text()
    log.record("user:ann", "key.create", "k3", {})
    (tmp_path / "audit" / "audit.head").write_text(head)  # died before it wrote the head
    log.record("user:ann", "key.create", "k4", {})
    with (tmp_path / "audit" / "audit.jsonl").open("a") as file:
        file.write(lines_of(tmp_path)[0][:50])  # died in the middle of a line
    log.record("user:ann", "key.create", "k5", {})
    found = log.verify()
    assert (found.entries, found.faults) == (6, [])


def test_the_command_says_where(tmp_path: Path) -> None:
    environment = {"DRAY_DATA_DIR": str(tmp_path), "DRAY_STATE_DIR": str(tmp_path / "s"), "COLUMNS": "200"}

    def verify(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["audit", "verify", *options], env=environment)
        return done.exit_code, done.output

    assert verify() == (0, "0 lines read, 0 faults found\n")
    written(tmp_path, 3)
    assert verify() == (0, "3 lines read, 0 faults found\n")
    lines = lines_of(tmp_path)
    (tmp_path / "audit" / "audit.jsonl").write_text("\n".join([lines[0], lines[2], ""]))
    code, output = verify()
    assert code == 1 and "audit.jsonl, line 2: entry 2 is missing before this line" in output
    code, output = verify("--json")
    assert code == 1 and json.loads(output)["faults"][0]["line"] == 2
