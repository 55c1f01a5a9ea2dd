"""The processor's name and what it can do."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The model names of this machine's processors. cpuinfo: in the format of /proc/cpuinfo."""
    lines = cpuinfo.read_text().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or "unknown CPU"


def processor_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The features of this machine's first processor, such as `avx512_vnni`; none on Arm, which lists others."""
    lines = cpuinfo.read_text().splitlines()
    line = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())
