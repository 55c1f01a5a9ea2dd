"""The processor's name and what it can do."""

import os
from collections.abc import Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
"""Environment variable by which OpenVINO multiplies as a lesser processor would."""
_AMX, _LATER, _AVX512 = ("amx_",), ("avx512_bf16", "avx512_fp16"), ("avx512",)
_BEYOND: Mapping[str, tuple[str, ...]] = {
    "AVX2": ("avx_vnni", *_AVX512, *_AMX),
    "AVX2_VNNI": (*_AVX512, *_AMX),
    "AVX512_CORE": ("avx_vnni", "avx512_vnni", *_LATER, *_AMX),
    "AVX512_CORE_VNNI": (*_LATER, *_AMX),
    "AVX512_CORE_BF16": ("avx512_fp16", *_AMX),
}
"""What the beginnings of the names of flags are that a limit takes away."""


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The model names of this machine's processors, with a limit that is set. cpuinfo: in /proc/cpuinfo's format."""
    lines = cpuinfo.read_text().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    limit = os.environ.get(ISA_LIMIT, "")
    return (", ".join(sorted(names)) or "unknown CPU") + (f", limited to {limit}" if limit else "")


def processor_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The features of this machine's first processor that OpenVINO may use, such as `avx512_vnni`; none on Arm, which
    lists others."""
    lines = cpuinfo.read_text().splitlines()
    line = next((line for line in lines if line.startswith("flags")), "")
    beyond = _BEYOND.get(os.environ.get(ISA_LIMIT, "").upper(), ())
    return frozenset(flag for flag in line.partition(":")[2].split() if not flag.startswith(beyond))
