"""Seconds until `dray up --detach` is ready, and of `dray down`, with the bundled model."""

import argparse
from statistics import median

from benchmarks.service import prepared, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ups, downs = [], []
    for _ in range(args.rounds):
        with prepared() as service:
            ups.append(service.up())
            downs.append(service.down())
    rows = [
        [name, f"{median(times):.1f}", f"{min(times):.1f} to {max(times):.1f}"]
        for name, times in (("up, to ready", ups), ("down", downs))
    ]
    print(report("Start and stop", ["step", "median s", "range s"], rows))


if __name__ == "__main__":
    main()
