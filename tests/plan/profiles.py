"""An imaginary machine: its step times follow a formula, so tests know the right results."""

from cluster.plan.profile import MeasuredStep, Profile, ProfiledEngine

ROW_S, BASE_S = 0.002, 0.02
STREAM_S, CONTEXT_S, BEHIND_S = 0.001, 1e-6, 2e-8
ENGINE = ProfiledEngine("pretend", 1, 1_800_000_000, 512, 36_000, 32, 512, 2.0)


def seconds(decoding: int, context: int, prefill: int, behind: int) -> float:
    rows = BASE_S + ROW_S * (decoding + prefill)
    return rows + STREAM_S * decoding + CONTEXT_S * context + BEHIND_S * behind


def point(decoding: int, context: int, prefill: int = 0, behind: int = 0) -> MeasuredStep:
    return MeasuredStep(decoding, context, prefill, behind, seconds(decoding, context, prefill, behind))


def profile() -> Profile:
    points = [point(0, 0, size, size * (size - 1) // 2) for size in (8, 16, 32, 64, 128, 256, 512)]
    points += [point(0, 0, 512, 512 * before + 512 * 511 // 2) for before in (512, 1024)]
    for batch in (1, 2, 4, 8, 16, 32):
        points += [point(batch, batch * 64), point(batch, batch * 512)]
        points += [point(batch, batch * 64, size, size * (size - 1) // 2) for size in (32, 128, 256)]
    return Profile(ENGINE, points, "no machine", "never")
