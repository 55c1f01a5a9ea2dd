"""How a compiled graph multiplies: what the plugin made of the properties that it was given."""

from collections import Counter
from typing import Any

FUSED_MLP = "LLMMLP"
_FUSED = (FUSED_MLP, "QKVProjection")
"""The plugin gives these no kernel's name; they multiply in AMX' INT8."""


def multiplications(graph: Any) -> Counter[str]:
    """How many operations multiply by weights, by type and kernel: `FullyConnected brgemm_avx512_amx_bf16 i8`.

    graph: an openvino.Model from `get_runtime_model`, after a forward pass, since only that chooses the kernels.
    """
    found: Counter[str] = Counter()
    for node in graph.get_ops():
        details = node.get_rt_info()
        kind, kernel, number = (_text(details, key) for key in ("layerType", "primitiveType", "runtimePrecision"))
        if kind in _FUSED or kind == "FullyConnected":
            found[kind if kind in _FUSED else f"{kind} {kernel} {number}"] += 1
    return found


def in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _text(details: Any, key: str) -> str:
    return str(details[key].astype(str)) if key in details else ""
