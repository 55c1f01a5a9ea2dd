"""The cost of a million tokens, and the load above which a new server is cheaper."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.bench.cost import (
    DEFAULT,
    AssumptionError,
    Machine,
    as_dict,
    break_even,
    parse_assumption,
    read_assumptions,
    side,
)
from cluster.bench.report import verdict


def test_an_a10_at_15000_and_500_a_month_against_pcs_at_50() -> None:
    """The server costs 15,000 / 36 + 500 = 916.67 a month: more than 18 PCs, less than 19."""
    assumptions = DEFAULT.changed({"pc.tokens_per_s": 40, "gpu.tokens_per_s": 1000})
    assert assumptions.gpu.month == pytest.approx(916.67, abs=0.01) and assumptions.pc.month == 50
    # 40 tokens/s * 3600 s * 720 h * 0.3
    assert assumptions.pc.tokens == pytest.approx(31_104_000)
    at = break_even(assumptions.pc, assumptions.gpu)
    assert at is not None and (at.pcs, at.gpus) == (19, 1)
    assert at.tokens == pytest.approx(18 * 31_104_000) and at.tokens_per_s == pytest.approx(720)
    assert side(assumptions.pc, 31_104_000).per_million == pytest.approx(50 / 31.104)
    assert "559.9 million tokens a month" in verdict(assumptions)
    assert as_dict(assumptions)["assumptions"]["gpu.tokens_per_s"] == {"value": 1000, "source": "given"}
    assert "assumed" in as_dict(DEFAULT)["assumptions"]["gpu.tokens_per_s"]["source"]


def test_a_server_with_less_speed_for_its_price_is_never_cheaper() -> None:
    assumptions = DEFAULT.changed({"pc.tokens_per_s": 40, "gpu.tokens_per_s": 600})
    assert break_even(assumptions.pc, assumptions.gpu) is None
    assert "PCs are cheaper at every load" in verdict(assumptions)


def test_power_is_paid_only_while_the_machine_is_on() -> None:
    machine = Machine(price=3600, life_months=36, monthly=10, watts=300, kwh=0.8, hours=200)
    assert machine.month == pytest.approx(100 + 10 + 0.3 * 200 * 0.8)


@settings(deadline=None)  # a busy machine stretches any time
@given(st.floats(1, 100), st.floats(1, 200), st.floats(1, 5000), st.floats(100, 3000))
def test_the_break_even_is_the_lowest_load_at_which_the_server_is_cheaper(
    pc_s: float, pc_month: float, gpu_s: float, gpu_month: float
) -> None:
    pc, gpu = Machine(monthly=pc_month, tokens_per_s=pc_s), Machine(monthly=gpu_month, tokens_per_s=gpu_s)
    at = break_even(pc, gpu)
    until = at.pcs if at is not None else 300
    for pcs in range(1, min(until, 300)):
        # This number of PCs at full use, one token before another PC is needed.
        assert side(gpu, pcs * pc.tokens).month >= pcs * pc.month - 1e-6
    if at is not None:
        beyond = at.tokens + min(pc.tokens, gpu.tokens) * 1e-3
        assert side(gpu, beyond).month < side(pc, beyond).month


def test_assumptions_are_read_from_a_file_and_wrong_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("gpu:\n  price: 9000\npc:\n  hours: 176\n")
    changed = DEFAULT.changed(read_assumptions(file)).changed(dict([parse_assumption("pc.used=0.5")]))
    assert (changed.gpu.price, changed.pc.hours, changed.pc.used) == (9000, 176, 0.5)
    for wrong in ("gpu.colour=1", "price=1", "pc.used=2", "pc.hours=0", "gpu.price=-1"):
        with pytest.raises(AssumptionError, match=wrong.partition("=")[0]):
            DEFAULT.changed(dict([parse_assumption(wrong)]))
    with pytest.raises(AssumptionError, match="write it like"):
        parse_assumption("gpu.price=much")
    file.write_text("- no\n")
    with pytest.raises(AssumptionError, match=r"a\.yaml"):
        read_assumptions(file)
