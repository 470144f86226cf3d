"""The progress that a step reports: done of total, share, rate and time left."""

from __future__ import annotations

import pytest

from entropylong_assets.stages import progress as module
from entropylong_assets.stages.progress import Progress, ProgressState, duration


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(module.time, "monotonic", fake)
    return fake


def test_units_with_a_known_total(clock: Clock) -> None:
    lines: list[str] = []
    states: list[ProgressState] = []
    progress = Progress("rows", lines.append, states.append)
    progress.total = 2000
    progress(0)
    clock.now += 5
    progress(500)
    assert lines == []  # at most one line per 10 seconds
    clock.now += 5
    progress(500)
    assert lines == ["1,000 of 2,000 rows (50%), 100 rows/s, 10 s left"]
    assert states[1].share == 0.25
    assert states[1].seconds_left == pytest.approx(15)


def test_tokens_are_measured_by_the_roots_gone_through(clock: Clock) -> None:
    """The number of tokens is not known beforehand, that of roots is."""
    states: list[ProgressState] = []
    progress = Progress("tokens", lambda _: None, states.append)
    progress.reach("roots", 0, 40)
    assert states[-1].line() == "0 of 40 roots (0%), 0 tokens/s"
    clock.now += 60
    progress(30_000)
    progress.reach("roots", 10, 40)
    assert states[-1].line() == "10 of 40 roots (25%), 500 tokens/s, 3 min 0 s left"


def test_time_left_does_not_count_what_an_interrupted_run_had_done(clock: Clock) -> None:
    """30 of 40 roots come from checkpoints at once; the next 5 take a minute, so do the last 5."""
    progress = Progress("tokens", lambda _: None)
    progress.reach("roots", 0, 40)
    progress.restart()
    progress.reach("roots", 30, 40)
    clock.now += 60
    progress.reach("roots", 35, 40)
    assert progress.state(clock.now).seconds_left == pytest.approx(60)


def test_without_a_total_there_is_no_share() -> None:
    state = ProgressState("samples", 12, None, 3.0)
    assert state.share is None
    assert state.line() == "12 samples, 3 samples/s"
    assert ProgressState("rows", 0, None, 0.0, ("documents", 0, 0)).share == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (8040, "2 h 14 min")],
)
def test_time_spans(seconds: float, text: str) -> None:
    assert duration(seconds) == text
