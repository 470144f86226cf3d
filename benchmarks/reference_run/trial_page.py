"""Writes the page and the chart of the reference run's training trial from its kept results.

    python -m benchmarks.reference_run.trial_page

The results are those of `entropylong trial`, compressed: one JSON line per training, with the score
of every item and document, so that any other comparison can be made from them.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from entropylong_assets.audits.trial.folder import TrialFolder
from entropylong_assets.audits.trial.measures import Result, by_arm, paired_difference
from entropylong_assets.audits.trial.page import trial_page

KEPT = Path(__file__).with_name("trial")
PAGE = Path("docs/training-trial.md")
CHART = Path("docs/images/training-trial.svg")
DATE = "2026-11-30"
"""Day of the run."""
ARMS = ("genuine", "calibrated", "no_verify", "quest", "calibrated_grouped")
BASELINE = "random"


def kept_results() -> list[Result]:
    text = lzma.decompress((KEPT / "results.jsonl.xz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def _panel(
    results: list[Result], measures: dict[str, str], title: str, axis: str, sign: int
) -> Any:
    """Differences from the baseline with their intervals; a point per arm and measure.

    measures: label on the x axis by measure. sign: -1 if lower values of the measure are better.
    """
    trained = [result for result in results if result["run"]["tokens"]]
    arms = by_arm(trained)
    rows = []
    for arm in ARMS:
        for key, label in measures.items():
            mean = paired_difference(arms[arm], arms[BASELINE], key)
            if mean.value is not None and mean.low is not None and mean.high is not None:
                ends = sorted((sign * mean.low, sign * mean.high))
                rows.append([arm, label, sign * mean.value, *ends])
    frame = pl.DataFrame(rows, ["arm", "label", "value", "low", "high"], orient="row")
    base = alt.Chart(frame).encode(
        x=alt.X("label:N", sort=None, title=axis, axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("arm:N", sort=list(ARMS)),
        color=alt.Color("arm:N", sort=list(ARMS), title=None),
    )
    zero = alt.Chart().mark_rule(color="#888").encode(y=alt.datum(0))
    points = base.mark_point(filled=True, size=45).encode(
        y=alt.Y("value:Q", title="better than random by (nats)")
    )
    bars = base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
    return alt.layer(zero, bars, points).properties(title=title, width=330, height=230)


def chart(results: list[Result]) -> Any:
    answers = {f"answers-{n}": f"{n // 1024}K" for n in (2048, 4096, 8192, 16384)}
    losses = {f"natural/from_{n}": f"{n // 1024}K" for n in (2048, 4096, 8192)}
    return alt.hconcat(
        _panel(results, answers, "Answers of synthetic tasks", "length of the item", 1),
        _panel(
            results,
            losses,
            "Loss on long documents",
            "tokens needed from at least so far back",
            -1,
        ),
    ).configure(font="sans-serif", background="white")


def main() -> None:
    results = kept_results()
    PAGE.write_text(trial_page(TrialFolder(KEPT).facts, results, DATE), encoding="utf-8")
    chart(results).save(CHART)


if __name__ == "__main__":
    main()
