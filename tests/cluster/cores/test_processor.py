"""What a processor can do, and what a limit takes away."""

from pathlib import Path

import pytest

from cluster.cores import processor_flags, processor_name

CPUINFO = """processor : 0
model name : Xeon
flags : sse2 avx2 avx512f avx512bw avx_vnni avx512_bf16 avx512_vnni avx512_fp16 amx_bf16 amx_int8
"""
ALL = frozenset(CPUINFO.split("flags : ")[1].split())
AMX = {"amx_bf16", "amx_int8"}


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        ("", ALL),
        ("ALL", ALL),
        ("AVX512_CORE_BF16", ALL - AMX - {"avx512_fp16"}),
        ("avx512_core_vnni", ALL - AMX - {"avx512_fp16", "avx512_bf16"}),
        ("AVX2_VNNI", {"sse2", "avx2", "avx_vnni"}),
        ("AVX2", {"sse2", "avx2"}),
    ],
)
def test_a_limit_of_onednn_counts(
    limit: str, left: frozenset[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPUINFO)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert processor_flags(file) == left
    assert processor_name(file) == (f"Xeon, limited to {limit}" if limit else "Xeon")
