"""Profiles the router's, the replica's and the engine's Python under load, by the owner of the code.

Needs py-spy (`pip install py-spy`) and permission to inspect other processes. A sample is of the thread that holds the
GIL and counts for its innermost Python frame. So a library's C code counts for its caller, unless it releases the GIL.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from benchmarks.cache_hit import QUESTION, measured
from benchmarks.service import Service, report, running
from benchmarks.streams import streams
from benchmarks.token_path import KINDS

_FRAME = re.compile(r"^.+ \((.+?):\d+\)$")
_OWN = re.compile(r"/((?:cluster|deployments)/[^:]+)\.py$")
_INSTALLED = re.compile(r"/site-packages/([^/]+)")
_HZ = 250
_LEAST_SHARE = 0.02


def samples(pid: int, seconds: int) -> Counter[str]:
    """Samples of a process by owner of the code; "": idle."""
    with TemporaryDirectory(prefix="dray-b-") as folder:
        raw = Path(folder) / "raw"
        spy = str(Path(sys.executable).with_name("py-spy"))
        command = [spy, "record", "-p", str(pid), "-d", str(seconds), "-r", str(_HZ), "--gil", "--full-filenames"]
        command += ["-f", "raw", "-o", str(raw)]
        subprocess.run(command, check=True, capture_output=True)
        seen: Counter[str] = Counter()
        for line in raw.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            seen[_owner(stack.split(";")[-1])] += int(count)
        seen[""] = max(0, seconds * _HZ - seen.total())
    return seen


def _owner(frame: str) -> str:
    found = _FRAME.match(frame)
    if found is None:
        return "others"
    if own := _OWN.search(found[1]):
        return "Dray: " + own[1].replace("/", ".")
    if installed := _INSTALLED.search(found[1]):
        return installed[1].removesuffix(".py")
    return "Python: " + re.sub(r"^.*/python3\.\d+/", "", found[1]).removesuffix(".py")


def under_load(service: Service, kind: str, load: Callable[[], object], seconds: int) -> Counter[str]:
    """Samples a kind of process while the load repeats."""
    [pid] = [one.pid for one in service.processes() if KINDS[kind] in " ".join(one.cmdline())]
    over = threading.Event()

    def again() -> None:
        while not over.is_set():
            load()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        return samples(pid, seconds)
    finally:
        over.set()
        thread.join()


def table(title: str, seen: Counter[str]) -> str:
    idle, every = seen.pop(""), seen.total()
    busy = every / (every + idle)
    shown = {owner: count for owner, count in seen.most_common() if count >= _LEAST_SHARE * every}
    rows = [[owner, f"{count / every:.1%}"] for owner, count in shown.items()]
    rest = every - sum(shown.values())
    heads = [f"whose code ({every} samples, the lock held {busy:.0%} of the time)", "share"]
    return report(title, heads, [*rows, ["all else", f"{rest / every:.1%}"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--at-a-time", type=int, default=16)
    args = parser.parse_args()
    one_core = {"DRAY_MODEL__SOURCE": args.model, "DRAY_MODEL__CORES_PER_REPLICA": "1"}
    with running(**one_core) as service:
        body = {"model": service.status()["models"][0], "messages": [{"role": "user", "content": QUESTION}]}
        asked = json.dumps(body, ensure_ascii=False).encode()
        url = f"{service.url}/chat/completions"
        httpx.post(url, content=asked, headers={"Content-Type": "application/json"}, timeout=60).raise_for_status()

        def hits() -> None:
            measured(url, asked, args.at_a_time, 2)

        def tokens() -> None:
            streams(service.url, args.at_a_time, each=4, prompt=60, tokens=256)

        print(table("Cache hits, the router", under_load(service, "router", hits, args.seconds)))
        for kind in ("router", "engine replica", "engine process"):
            print(table(f"Streams, {kind}", under_load(service, kind, tokens, args.seconds)))


if __name__ == "__main__":
    main()
