"""How an engine may multiply by INT8 weights, what each way loses, and which of them a model's `precision` allows.

A processor has its own fastest way, so it is measured which of the allowed ones an engine takes.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from cluster.cores import processor_flags
from cluster.memory import memory_size
from cluster.models.folder import ServedModel, memory_needed, repacked_weights
from cluster.models.identity import MANIFEST, StoredWeights, read_json
from cluster.settings import BUNDLED, Precision

Format = Literal["auto", "bf16", "f32"]
Role = Literal["qkv", "o"]
"""Attention's projections: those that it reads, and the one that reads its result."""

_WHOLE_ROW = 2**64 - 1
_AND = "+"
_UNQUANTIZED = ("fp16", "fp32", "bf16")
AMX = frozenset({"amx_int8", "amx_bf16"})
"""Flags of a processor whose fused MLPs multiply in INT8."""
SMALL_BYTES = 64 << 20
"""Models with fewer bytes of weights are fast in any way; measured, they would start several times as slowly."""


class Loss(msgspec.Struct, frozen=True):
    """What a model loses over f32. kl: Kullback-Leibler divergence in nats a token. perplexity: its relative rise."""

    kl: float
    perplexity: float

    def within(self, limit: "Loss") -> bool:
        return self.kl <= limit.kl and self.perplexity <= limit.perplexity


LIMITS: Mapping[Precision, Loss] = {"balanced": Loss(0.01, 0.01), "fast": Loss(0.02, 0.02)}
"""What `balanced` and `fast` may lose. `exact` quantizes nothing but the weights, whatever that loses."""


class Variant(msgspec.Struct, frozen=True):
    """A way to multiply.

    format: of what is not quantized; auto: the processor's own. group_size: numbers of an activation that share a scale
    when they are quantized to INT8; 0: they are not. title: for people. fused: whether each MLP is one operation that
    quantizes whole rows and multiplies them in AMX' INT8, for which OpenVINO wants symmetric weights and two threads:
    with one it divides by zero (2026.4). max_tokens: a step with more tokens is computed as `longer` says, by a second
    graph over the same KV cache; None: there is no other. quantized_inputs: of attention's projections, which then
    multiply in AMX' INT8 too, each token at once.
    """

    name: str
    title: str
    format: Format
    group_size: int
    fused: bool = False
    max_tokens: int | None = None
    longer: "Variant | None" = None
    quantized_inputs: tuple[Role, ...] = ()

    def __str__(self) -> str:
        return self.title

    @property
    def parts(self) -> "tuple[Variant, ...]":
        """What each of its graphs is compiled as."""
        return (self,) if self.longer is None else (self, self.longer)

    @property
    def single(self) -> tuple[str, ...]:
        """The names of the variants with one graph that it consists of."""
        return tuple(self.name.split(_AND))


def _mixed(short: Variant, max_tokens: int, longer: Variant) -> Variant:
    title = f"{short} up to {max_tokens} tokens a step and {longer} beyond"
    return msgspec.structs.replace(
        short, name=f"{short.name}{_AND}{longer.name}", title=title, max_tokens=max_tokens, longer=longer
    )


WEIGHT_ONLY = Variant("weight-only", "INT8 weights only", "auto", 0)
GROUPS_32 = Variant("groups-32", "INT8 in groups of 32", "f32", 32)
GROUPS_64 = Variant("groups-64", "INT8 in groups of 64", "f32", 64)
GROUPS_128 = Variant("groups-128", "INT8 in groups of 128", "f32", 128)
FUSED = Variant("fused-mlp", "fused MLPs in INT8", "bf16", _WHOLE_ROW, fused=True, quantized_inputs=("o",))
LAYERS = msgspec.structs.replace(FUSED, name="int8-layers", title="whole layers in INT8", quantized_inputs=("qkv", "o"))
MIXED_64 = _mixed(GROUPS_64, 8, FUSED)
MIXED_128 = _mixed(GROUPS_128, 16, FUSED)
MIXED_128_LAYERS = _mixed(GROUPS_128, 12, LAYERS)
"""Groups decode a few streams faster, and fused MLPs compute many tokens faster (benchmarks/precision.py says from how
many on). The two graphs of a mixed variant each have their own copy of the weights."""
_ALL = (WEIGHT_ONLY, GROUPS_32, GROUPS_64, GROUPS_128, FUSED, LAYERS, MIXED_64, MIXED_128, MIXED_128_LAYERS)
VARIANTS = {each.name: each for each in _ALL}

_LOSSES: Mapping[tuple[str, StoredWeights], Loss] = {
    ("weight-only", StoredWeights.INT8_ASYMMETRIC): Loss(0.0052, 0.0043),
    ("weight-only", StoredWeights.INT8_SYMMETRIC_SMOOTHED): Loss(0.0054, 0.0016),
    ("groups-32", StoredWeights.INT8_ASYMMETRIC): Loss(0.007, 0.0078),
    ("groups-64", StoredWeights.INT8_SYMMETRIC_SMOOTHED): Loss(0.0092, 0.0014),
    ("groups-128", StoredWeights.INT8_ASYMMETRIC): Loss(0.015, 0.0138),
    ("groups-128", StoredWeights.INT8_SYMMETRIC_SMOOTHED): Loss(0.012, 0.0093),
    ("fused-mlp", StoredWeights.INT8_SYMMETRIC_SMOOTHED): Loss(0.009, 0.0077),
    ("int8-layers", StoredWeights.INT8_SYMMETRIC_SMOOTHED): Loss(0.0161, 0.0091),
}
"""Measured on SmolLM2-135M against f32, over 12,288 tokens of English text. Groups of 64 and whole layers: over the
held-out text of `dray models compare`, 3,584 tokens, where the others lose as much or more. Fused MLPs alone lost
0.0085; rounding o's input adds at most 0.0005 (held-out text; on another 12,288 tokens of English nothing), and no
perplexity over both together. Fused MLPs without smoothing lost 0.020 and 1.7 %."""


def loss(model: ServedModel, variant: Variant) -> Loss | None:
    """What a small model lost with a variant and such weights.

    None where the variant does not work with these weights. Of two graphs, the larger loss counts.
    """
    if variant.longer is not None:
        short, longer = (loss(model, VARIANTS[name]) for name in variant.single)
        if short is None or longer is None:
            return None
        return Loss(max(short.kl, longer.kl), max(short.perplexity, longer.perplexity))
    return _LOSSES.get((variant.name, model.weights))


def possible(model: ServedModel, cores: int, flags: frozenset[str] | None = None) -> tuple[Variant, ...]:
    """The variants that work with the model's weights on this many cores of this processor, the most exact first.

    flags: the processor's; None: this one's.
    """
    flags = processor_flags() if flags is None else flags
    if _record(model).get("weight") in _UNQUANTIZED:
        return (WEIGHT_ONLY,)
    smoothed = model.weights is StoredWeights.INT8_SYMMETRIC_SMOOTHED
    fused = cores > 1 and flags >= AMX and smoothed
    mixed = fused and _has_memory_for_two(model)
    return (
        WEIGHT_ONLY,
        GROUPS_64 if smoothed else GROUPS_32,
        GROUPS_128,
        *((FUSED, LAYERS) if fused else ()),
        *((MIXED_64, MIXED_128, MIXED_128_LAYERS) if mixed else ()),
    )


def _has_memory_for_two(model: ServedModel) -> bool:
    """Whether all replicas on this machine would take at most half of its memory with two copies of the weights."""
    return 2 * (memory_needed(model) + model.settings.replicas * repacked_weights(model)) <= memory_size()


def allowed(model: ServedModel, cores: int, flags: frozenset[str] | None = None) -> tuple[Variant, ...]:
    """The possible variants that lose no more than the model's `precision` allows; first what to take unmeasured.

    That is quantization in groups: it works everywhere, and is the fastest way to decode on processors without AMX.
    """
    limit = LIMITS.get(model.settings.precision)
    if limit is None:
        return (WEIGHT_ONLY,)
    within = [
        variant
        for variant in possible(model, cores, flags)
        if (lost := loss(model, variant)) is not None and lost.within(limit)
    ]
    groups = [variant for variant in (GROUPS_128, GROUPS_64, GROUPS_32) if variant in within][:1]
    # Rounding more inputs may cost a small model more time than it saves: `dray tune` measures both.
    fused = [variant for variant in (LAYERS, FUSED) if variant in within]
    mixed = [variant for variant in (MIXED_128_LAYERS, MIXED_128, MIXED_64) if variant in within][:1]
    return (*groups, *fused, WEIGHT_ONLY, *mixed)


def presumed(model: ServedModel, options: Sequence[Variant], flags: frozenset[str] | None = None) -> Variant:
    """What to take where nothing was measured.

    A small model's prompts take twice as long in groups as in AMX' BF16, and a few streams gain a fifth at most
    (benchmarks/precision.py). options: as `allowed` returns them. flags: the processor's; None: this one's.
    """
    flags = processor_flags() if flags is None else flags
    return WEIGHT_ONLY if flags >= AMX and model.weights_bytes < SMALL_BYTES else options[0]


def forgone(model: ServedModel, cores: int, flags: frozenset[str] | None = None) -> str:
    """What the processor could do and the model's folder does not allow, in a sentence; empty if there is nothing."""
    flags = processor_flags() if flags is None else flags
    settings = model.settings
    if cores < 2 or not flags >= AMX or settings.precision == "exact" or settings.source == BUNDLED:
        return ""
    if model.weights is StoredWeights.INT8_SYMMETRIC_SMOOTHED or len(possible(model, cores, flags)) == 1:
        return ""
    return f"asymmetric weights: MLPs cannot compute in INT8 on AMX here; run `dray models convert {settings.source}`"


def format_here(variant: Variant, flags: frozenset[str] | None = None) -> Format:
    """The number format to ask OpenVINO for.

    Its own choice is bf16 also where only AVX-512 computes in that, at a fifth of the speed of f32.
    """
    flags = processor_flags() if flags is None else flags
    return "f32" if variant.format == "auto" and flags and not flags >= AMX else variant.format


def _record(model: ServedModel) -> dict[str, object]:
    file = model.folder / MANIFEST
    try:
        return read_json(file) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
