"""bench/harts: what two instances gain over one, pass by pass, and when that is enough."""

from __future__ import annotations

import pytest

from bench import harts, programs
from bench.harness import BenchError
from bench.harts import PROGRAMS
from bench.programs import Boot, Pass


def _boot(*gains: float, names: tuple[str, ...] = PROGRAMS) -> Boot:
    """Passes of one instance that take 1 s, 2 s, ..., each with a pass of two that gains so much."""
    passes: dict[str, list[Pass]] = {}
    for name in names:
        passes[f"{name}:1"] = [Pass(1.0 + number, "1") for number in range(len(gains))]
        passes[f"{name}:2"] = [Pass(2 * (1.0 + number) / gain, "1") for number, gain in enumerate(gains)]
    return Boot(passes, 1.0, 1.0)


def test_the_programs_are_known() -> None:
    assert set(PROGRAMS) <= set(programs.PROGRAMS)


@pytest.mark.parametrize(("gain", "verdict"), [(1.9, "yes"), (1.7, "NO")])
def test_a_gain_is_of_two_over_the_one_before_it(gain: float, verdict: str) -> None:
    rows = {row.what: row for row in harts.report([_boot(gain, 0.1), _boot(gain, gain, 9.0)], [_boot(2.0)]).rows}
    fib, total = rows["fib: two/one"], rows["two/one, median of the programs"]
    assert fib.ours.values == pytest.approx((gain, 0.1, gain, gain, 9.0))
    assert total.ours.median == pytest.approx(gain)
    assert total.ratio == pytest.approx(gain / 2)
    assert total.bar.endswith(verdict)
    assert rows["fib: one instance"].ours.values[:2] == pytest.approx((1.0, 0.5))
    assert rows["fib: two instances"].ours.values[0] == pytest.approx(gain)


def test_the_bar_is_on_the_median_of_the_programs() -> None:
    slow, fast = _boot(1.0, names=PROGRAMS[:1]), _boot(2.0, names=PROGRAMS[1:])
    boot = Boot({**slow.passes, **fast.passes}, 1.0, 1.0)
    assert harts.report([boot], [boot]).rows[-1].ours.median == pytest.approx(2.0)


def test_a_host_with_one_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    with pytest.raises(BenchError, match="2 cores, got 1"):
        harts.measure(1)
