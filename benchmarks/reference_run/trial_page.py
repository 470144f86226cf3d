"""Writes the pages and charts of the reference run's training trials from their kept results.

    python -m benchmarks.reference_run.trial_page

The results are those of `entropylong trial`, compressed: one JSON line per training, with the score
of every item and document, so that any other comparison can be made from them.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from entropylong_assets.audits.trial.folder import TrialFolder
from entropylong_assets.audits.trial.measures import Result, by_arm, measures_of, paired_difference
from entropylong_assets.audits.trial.page import trial_page
from entropylong_assets.audits.trial.record import setups_of

HERE = Path(__file__).parent
TRIALS = {
    HERE / "trial": "training-trial",
    HERE / "trial_30m": "training-trial-30m",
    HERE / "trial_15m_more_roots": "training-trial-15m-more-roots",
}
"""Folder of the kept results, and the name of the page and the chart."""
DATE = "2026-11-30"
"""Day of the runs."""
ARMS = ("genuine", "calibrated", "entropylong", "no_verify", "quest", "calibrated_grouped")
BASELINE = "random"


def kept_results(folder: Path) -> list[Result]:
    text = lzma.decompress((folder / "results.jsonl.xz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def _panel(results: Sequence[Result], keys: str, title: str, axis: str) -> Any:
    """Differences from the baseline with their intervals; a point per arm and measure.

    keys: beginning of the keys of the measures, which end with a number of tokens.
    """
    (trained,) = setups_of(results).values()
    arms = by_arm(trained)
    measures = {
        int(measure.key.removeprefix(keys)): measure
        for measure in measures_of(trained)
        if measure.key.startswith(keys)
    }
    rows = []
    for arm in (arm for arm in ARMS if arm in arms):
        for tokens, measure in sorted(measures.items()):
            mean = paired_difference(arms[arm], arms[BASELINE], measure.key)
            if mean.value is not None and mean.low is not None and mean.high is not None:
                sign = 1 if measure.higher_is_better else -1
                ends = sorted((sign * mean.low, sign * mean.high))
                rows.append([arm, f"{tokens // 1024}K", sign * mean.value, *ends])
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


def chart(results: Sequence[Result]) -> Any:
    far_back = "tokens needed from at least so far back"
    return alt.hconcat(
        _panel(results, "answers-", "Answers of synthetic tasks", "length of the item"),
        _panel(results, "natural/from_", "Loss on long documents", far_back),
    ).configure(font="sans-serif", background="white")


def main() -> None:
    for folder, name in TRIALS.items():
        results = kept_results(folder)
        page = trial_page(TrialFolder(folder).facts, results, DATE)
        Path(f"docs/{name}.md").write_text(page, encoding="utf-8")
        chart(results).save(f"docs/images/{name}.svg")


if __name__ == "__main__":
    main()
