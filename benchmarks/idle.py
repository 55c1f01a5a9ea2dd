"""What a Dray that nobody asks takes: processor time by process, and what it writes to disk."""

import argparse
import time
from contextlib import suppress

import psutil

from benchmarks.memory import process_name
from benchmarks.service import Service, report, running

_SETTLED_S = 20.0
_DAY_S = 86_400


def _used(process: psutil.Process) -> tuple[float, int]:
    """Seconds of processor time, and bytes written, since the process started."""
    times = process.cpu_times()
    return times.user + times.system, process.io_counters().write_bytes


def idle(service: Service, seconds: float) -> str:
    # What a start leaves to do, such as ending a replaced HAProxy, is done within these seconds.
    time.sleep(_SETTLED_S)
    before = {process: _used(process) for process in service.processes()}
    time.sleep(seconds)
    rows = []
    for process, (cpu_s, written) in before.items():
        with suppress(psutil.Error):
            now_cpu_s, now_written = _used(process)
            share, day_mb = (now_cpu_s - cpu_s) / seconds * 100, (now_written - written) / seconds * _DAY_S / 1e6
            rows.append((share, day_mb, process_name(process)))
    rows.sort(reverse=True)
    rows.append((sum(row[0] for row in rows), sum(row[1] for row in rows), "total"))
    table = [[name, f"{share:.1f}", f"{day_mb:.0f}"] for share, day_mb, name in rows]
    return report("Idle", ["process", "% of a core", "MB written a day"], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to measure")
    parser.add_argument("--no-page", action="store_true", help="without the chat page")
    args = parser.parse_args()
    with running(**({"DRAY_PAGE": "false"} if args.no_page else {})) as service:
        print(idle(service, args.seconds))


if __name__ == "__main__":
    main()
