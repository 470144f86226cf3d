"""The report's charts in Vega-Lite, made with Altair: one per dataset, on shared scales.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish; a shape, a dash or a
label repeats what a colour means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entropylong_assets.report.distributions import Rows
from entropylong_assets.stages.verification.registry import GainLimit

if TYPE_CHECKING:
    import altair as alt

    Drawn = alt.LayerChart | alt.FacetChart

BLUE, ORANGE, VERMILION, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#767676"
HEIGHT = 240
"""Height of a chart (pixels). It fills the width of the page."""
_SERIES = ["retrieved, ΔI", "retrieved, ΔI*", "random, ΔI"]

Charts = Mapping[str, Rows]
Domain = list[float]


def data(rows: Rows) -> alt.Data:
    import altair as alt

    return alt.Data(values=rows)


def _span(runs: Sequence[Charts], name: str, *columns: str) -> Domain:
    """Smallest and largest value of these columns over all datasets."""
    values = [row[column] for run in runs for row in run[name] for column in columns]
    return [float(min(values)), float(max(values))] if values else [0.0, 1.0]


def _rule(value: float, label: str, axis: str = "x") -> Drawn:
    """A dashed line with its label at the top."""
    import altair as alt

    base = alt.Chart(data([{"value": value, "label": label}]))
    line = base.mark_rule(color=VERMILION, strokeDash=[5, 3], strokeWidth=1.5)
    text = base.mark_text(align="left", dx=4, dy=7, color="#9a3f00", fontSize=11)
    place = {axis: alt.datum(value)}
    return line.encode(**place) + text.encode(text="label:N", y=alt.value(0), **place)


def _entropies(run: Charts, runs: Sequence[Charts]) -> Drawn:
    import altair as alt

    x = _span(runs, "entropies", "low", "high")
    top = max(_span([r], "entropies", "above", "below")[1] for r in runs)
    rows = [
        {"low": r["low"], "high": r["high"], "tokens": r[part], "part": label}
        for r in run["entropies"]
        for part, label in (("below", "not above τ"), ("above", "above τ"))
        if r[part]
    ]
    bars = (
        alt.Chart(data(rows))
        .mark_bar(stroke="white", strokeWidth=0.3)
        .encode(
            x=alt.X("low:Q", bin="binned", title="entropy (nats)", scale=alt.Scale(domain=x)),
            x2="high:Q",
            y=alt.Y(
                "tokens:Q",
                stack=None,
                title="tokens of roots",
                scale=alt.Scale(type="symlog", domain=[0, top]),
            ),
            color=alt.Color(
                "part:N",
                title=None,
                scale=alt.Scale(domain=["not above τ", "above τ"], range=[BLUE, ORANGE]),
            ),
            opacity=alt.value(0.85),
            tooltip=["low:Q", "high:Q", "tokens:Q", "part:N"],
        )
    )
    taus = run["thresholds"][0] if run["thresholds"] else {}
    if taus.get("mean") is None:
        return alt.layer(bars)
    band = (
        alt.Chart(data([taus]))
        .mark_rect(color=VERMILION, opacity=0.12)
        .encode(x="low:Q", x2="high:Q")
    )
    return alt.layer(band, bars, _rule(taus["mean"], f"mean τ {taus['mean']:.2f}"))


def _gains(run: Charts, runs: Sequence[Charts], limit: GainLimit | None) -> Drawn:
    import altair as alt

    top = max(_span(runs, "gains", "share")[1], 1e-6)
    by_bin = {(r["series"], round(r["low"], 2)): r for r in run["gains"]}
    lows = [round(-1 + 0.05 * i, 2) for i in range(40)]
    rows = []
    for series in _SERIES:
        if any(r["series"] == series for r in run["gains"]):
            for low in lows:
                row = by_bin.get((series, low), {"share": 0.0, "pairs": 0})
                rows.append({"series": series, "low": low, "middle": low + 0.025} | row)
    lines = (
        alt.Chart(data(rows))
        .mark_line(interpolate="step", strokeWidth=2)
        .encode(
            x=alt.X(
                "middle:Q",
                title="gain (below -1 shown at -1)",
                scale=alt.Scale(domain=[-1, 1]),
            ),
            y=alt.Y(
                "share:Q",
                title="share of pairs",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(type="sqrt", domain=[0, top]),
            ),
            color=alt.Color(
                "series:N",
                title=None,
                scale=alt.Scale(domain=_SERIES, range=[BLUE, GREEN, ORANGE]),
            ),
            strokeDash=alt.StrokeDash(
                "series:N",
                title=None,
                scale=alt.Scale(domain=_SERIES, range=[[1, 0], [6, 3], [2, 2]]),
            ),
            tooltip=["series:N", "low:Q", "pairs:Q", alt.Tooltip("share:Q", format=".2%")],
        )
    )
    return lines if limit is None else lines + _rule(limit.value, str(limit))


def _distances(run: Charts, runs: Sequence[Charts]) -> Drawn:
    import altair as alt

    top = max(_span(runs, "distances", "dependencies")[1], 1.0)
    domain = [1.0, max(_span(runs, "distances", "low", "high")[1], 131_072.0)]
    bars = (
        alt.Chart(data(run["distances"]))
        .mark_bar(color=BLUE, stroke="white")
        .encode(
            x=alt.X(
                "low:Q",
                title="tokens from context to anchor (doubling)",
                scale=alt.Scale(type="log", base=2, domain=domain),
                axis=alt.Axis(
                    values=[2**i for i in range(0, 21, 2)],
                    labelExpr="datum.value < 1024 ? datum.value : datum.value / 1024 + 'K'",
                ),
            ),
            x2="high:Q",
            y=alt.Y("dependencies:Q", title="dependencies", scale=alt.Scale(domain=[0, top])),
            y2=alt.datum(0),
            tooltip=["low:Q", "high:Q", "dependencies:Q"],
        )
    )
    return bars + _rule(32_768, "32K")


def _acceptance(run: Charts, runs: Sequence[Charts], name: str, title: str, middle: float) -> Drawn:
    import altair as alt

    x = _span(runs, name, "low", "high")
    if name == "rank":
        x = [0.5, x[1] - 0.5]
    # Wide intervals of a few pairs would compress all others.
    top = max([r["share_high"] for some in runs for r in some[name] if r["scored"] >= 20] + [0.05])
    rows = [r | {"middle": r["low"] + middle} for r in run[name]]
    # Bins are even; ranks are whole numbers.
    axis = alt.Axis(tickMinStep=1, format="d") if name == "rank" else alt.Axis(tickCount=6)
    base = alt.Chart(data(rows)).encode(
        x=alt.X("middle:Q", title=title, scale=alt.Scale(domain=x, nice=False), axis=axis),
        tooltip=[
            "low:Q",
            "scored:Q",
            "accepted:Q",
            alt.Tooltip("share:Q", format=".2%"),
            alt.Tooltip("share_low:Q", format=".2%"),
            alt.Tooltip("share_high:Q", format=".2%"),
        ],
    )
    y = alt.Y(
        "share:Q",
        title="accepted, 95% interval",
        axis=alt.Axis(format="%"),
        scale=alt.Scale(domain=[0, top], clamp=True),
    )
    whisker = base.mark_rule(color=GREY).encode(y=alt.Y("share_low:Q", title=None), y2="share_high")
    return whisker + base.mark_point(filled=True, size=60, color=BLUE, opacity=1).encode(y=y)


def _changes(run: Charts, runs: Sequence[Charts]) -> Drawn:
    import altair as alt

    x = _span(runs, "changes", "entropy_low", "entropy_high")
    y = _span(runs, "changes", "surprisal_low", "surprisal_high")
    top = max(_span(runs, "changes", "pairs")[1], 2.0)
    cells = (
        alt.Chart(data(run["changes"]))
        .transform_aggregate(
            pairs="sum(pairs)",
            groupby=["entropy_low", "entropy_high", "surprisal_low", "surprisal_high"],
        )
        .mark_rect()
        .encode(
            x=alt.X(
                "entropy_low:Q",
                title="change of entropy (nats)",
                scale=alt.Scale(domain=x, nice=False),
            ),
            x2="entropy_high:Q",
            y=alt.Y(
                "surprisal_low:Q",
                title="change of surprisal (nats)",
                scale=alt.Scale(domain=y, nice=False),
            ),
            y2="surprisal_high:Q",
            color=alt.Color(
                "pairs:Q",
                scale=alt.Scale(type="log", scheme="greys", domain=[0.5, top * 2]),
                legend=None,
            ),
            tooltip=["entropy_low:Q", "surprisal_low:Q", "pairs:Q"],
        )
    )
    accepted = [
        r
        | {
            "x": (r["entropy_low"] + r["entropy_high"]) / 2,
            "y": (r["surprisal_low"] + r["surprisal_high"]) / 2,
            "what": "accepted (area: pairs)",
        }
        for r in run["changes"]
        if r["accepted"]
    ]
    circles = (
        alt.Chart(data(accepted))
        .mark_point(filled=True, color=VERMILION, opacity=0.9)
        .encode(
            x="x:Q",
            y="y:Q",
            shape=alt.Shape("what:N", title=None, legend=alt.Legend(symbolFillColor=VERMILION)),
            size=alt.Size("pairs:Q", scale=alt.Scale(range=[15, 200]), legend=None),
            tooltip=[alt.Tooltip("pairs:Q", title="accepted pairs"), "x:Q", "y:Q"],
        )
    )
    zero = alt.Chart(data([{}])).mark_rule(color=GREY, strokeDash=[3, 3])
    return cells + zero.encode(x=alt.datum(0)) + zero.encode(y=alt.datum(0)) + circles


def chart(title: str, caption: str, drawn: Sequence[Drawn | None]) -> dict[str, Any]:
    """Return title, caption and one Vega-Lite spec per dataset; None if it has nothing to draw."""
    import altair as alt

    specs: list[dict[str, Any] | None] = []
    for picture in drawn:
        if picture is None:
            specs.append(None)
            continue
        sized = picture.properties(
            width="container",
            height=HEIGHT,
            description=title,
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        )
        sized = sized.configure_view(stroke=None).configure_legend(orient="top", labelLimit=300)
        with alt.data_transformers.disable_max_rows():
            specs.append(sized.configure_axis(gridColor="#e6e6e6", labelLimit=200).to_dict())
    return {"title": title, "caption": caption, "specs": specs}


def all_charts(runs: Sequence[Charts], limits: Sequence[GainLimit | None]) -> list[dict[str, Any]]:
    """Return all charts of the stages' own tables, each as `chart` returns it.

    limits: of each run, as `gain_limit` returns it.
    """

    def each(draw: Callable[[int], Drawn]) -> list[Drawn]:
        return [draw(number) for number in range(len(runs))]

    return [
        chart(
            "Entropy of root tokens, and τ",
            "Every token of every scored root. The line is the mean τ; the band contains the τ of "
            "80% of the roots. Tokens above τ are anchors, except at the cold start.",
            each(lambda i: _entropies(runs[i], runs)),
        ),
        chart(
            "Gain, and its limit",
            "Gains of retrieved contexts, and of random contexts at the same anchors. The line is "
            "the limit of the rule in force: random contexts right of it pass this condition too.",
            each(lambda i: _gains(runs[i], runs, limits[i])),
        ),
        chart(
            "Distance of dependencies",
            "Tokens from the end of a context to the anchor that it resolves, in the sample.",
            each(lambda i: _distances(runs[i], runs)),
        ),
        chart(
            "Acceptance by rank",
            "Share of scored candidates that were accepted. The intervals count roots, not pairs: "
            "anchors of one root are not independent.",
            each(lambda i: _acceptance(runs[i], runs, "rank", "rank by similarity", 0.0)),
        ),
        chart(
            "Acceptance by similarity",
            "The same by cosine of query and chunk. If it does not rise, similarity nominates "
            "candidates but does not verify them.",
            each(lambda i: _acceptance(runs[i], runs, "similarity", "similarity (cosine)", 0.025)),
        ),
        chart(
            "Change of surprisal against change of entropy",
            "All scored pairs in grey, accepted ones as discs. Above the horizontal line the true "
            "token became less likely: the model became certain of another token.",
            each(lambda i: _changes(runs[i], runs)),
        ),
    ]
