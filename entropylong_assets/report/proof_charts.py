"""Charts of the audits: points with 95% intervals, one line per recipe or kind of context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from entropylong_assets.audits.audit_tables import recipe_order
from entropylong_assets.report.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    Charts,
    chart,
    data,
)
from entropylong_assets.stages.verification.false_acceptance import ROUGH

if TYPE_CHECKING:
    import altair as alt

    from entropylong_assets.report.charts import Drawn

_KINDS = {
    "retrieved": "retrieved",
    "random": "random context",
    "topical": "same topic, not retrieved",
    "shuffled": "accepted, sentences shuffled",
}
_RATE = ("passed", "total", "rate", "low", "high")
_RULE_COLOURS = (ORANGE, BLUE, GREEN, VERMILION)
_MEASURES = (
    (
        "surprisal_drop_over_random",
        "Recipes: drop of the anchors' surprisal",
        "Surprisal of each root's anchors given the contexts that the recipe chose, against random "
        "contexts of the same length in their place. Right of zero the contexts help more than "
        "random ones.",
        "surprisal drop over random contexts (nats)",
    ),
    (
        "key_token_density",
        "Recipes: key tokens",
        "Share of root tokens that become likely only in the long window (LongPPL).",
        "key tokens of root tokens",
    ),
    (
        "dependency_score",
        "Recipes: dependency score",
        "Relative drop of a root segment's mean loss given a segment of a context, over sampled "
        "pairs of segments.",
        "relative drop of a segment's loss",
    ),
)


def _domain(rows: Sequence[dict[str, Any]], value: str) -> list[float]:
    ends = [r[n] for r in rows for n in (value, "low", "high") if r[n] is not None]
    return [min([0.0, *ends]), max([0.0, *ends])]


def _points(
    rows: Sequence[dict[str, Any]],
    order: Sequence[str],
    x: alt.X,
    title: str,
    shape: alt.Shape | alt.ShapeValue,
    **more: Any,
) -> Drawn:
    """A point and its interval on a line of its own per row; row['name'] is its label.

    The interval of a row that is_rough is dashed.
    """
    import altair as alt

    names = alt.Scale(domain=list(order))  # of all datasets, so that lines are level
    base = alt.Chart(data(list(rows))).encode(
        y=alt.Y("name:N", title=None, scale=names, axis=alt.Axis(labelLimit=240)), **more
    )
    dashed = alt.condition("datum.is_rough", alt.value([4, 3]), alt.value([1, 0]))
    whisker = base.mark_rule(strokeWidth=1.5).encode(
        x=alt.X("low:Q", title=title), x2="high:Q", strokeDash=dashed
    )
    zero = alt.Chart(data([{}])).mark_rule(color=GREY, strokeDash=[3, 3]).encode(x=alt.datum(0))
    point = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, shape=shape)
    return alt.layer(zero, whisker, point)


def _recipes(run: Charts, runs: Sequence[Charts], measure: str, title: str) -> Drawn | None:
    import altair as alt

    def rows_of(charts: Charts) -> list[dict[str, Any]]:
        return [r | {"name": r["recipe"]} for r in charts["recipes"] if r["measure"] == measure]

    if not rows_of(run):
        return None
    shared = [row for charts in runs for row in rows_of(charts)]
    axis = alt.Axis() if measure.endswith("random") else alt.Axis(format="%")
    scale = alt.Scale(domain=_domain(shared, "value"))
    x = alt.X("value:Q", title=title, axis=axis, scale=scale)
    tooltip = ["name:N", "value:Q", "low:Q", "high:Q", "roots:Q"]
    order = recipe_order({row["name"] for row in shared})
    circle = alt.ShapeValue("circle")
    return _points(rows_of(run), order, x, title, circle, color=alt.value(BLUE), tooltip=tooltip)


def _by_chance(run: Charts, runs: Sequence[Charts]) -> Drawn | None:
    import altair as alt

    if not run["by_chance"]:
        return None
    shared = [row for charts in runs for row in charts["by_chance"]]
    rows = [r | {"name": _KINDS[r["kind"]]} for r in run["by_chance"]]
    rules = list(dict.fromkeys(row["rule"] for row in shared))
    colours = [_RULE_COLOURS[i % len(_RULE_COLOURS)] for i in range(len(rules))]
    title = "share that passes the rule"
    x = alt.X(
        "rate:Q",
        title=title,
        axis=alt.Axis(format="%"),
        scale=alt.Scale(type="sqrt", domain=_domain(shared, "rate")),
    )
    return _points(
        rows,
        [name for kind, name in _KINDS.items() if any(r["kind"] == kind for r in shared)],
        x,
        title,
        alt.Shape("rule:N", title=None, scale=alt.Scale(domain=rules)),
        yOffset=alt.YOffset("rule:N", sort=rules),
        color=alt.Color("rule:N", title=None, scale=alt.Scale(domain=rules, range=colours)),
        tooltip=["name:N", "rule:N", *(f"{name}:Q" for name in _RATE), "is_rough:N"],
    )


def proof_charts(runs: Sequence[Charts]) -> list[dict[str, Any]]:
    """Return the charts of the audits, as `all_charts` does; none if no dataset was audited."""
    charts = []
    if any(run["by_chance"] for run in runs):
        charts.append(
            chart(
                "Acceptance by chance",
                "Contexts that should not help, held out from the rule's own controls, beside "
                f"those that were retrieved. Dashed: {ROUGH}.",
                [_by_chance(run, runs) for run in runs],
            )
        )
    for measure, title, caption, axis in _MEASURES:
        drawn = [_recipes(run, runs, measure, axis) for run in runs]
        if any(drawn):
            charts.append(chart(title, caption, drawn))
    return charts
