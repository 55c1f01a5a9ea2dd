"""The processor's name."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The model names of this machine's processors. cpuinfo: in the format of /proc/cpuinfo."""
    lines = cpuinfo.read_text().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or "unknown CPU"
