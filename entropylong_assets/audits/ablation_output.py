"""The ablation as Parquet, table and picture."""

from __future__ import annotations

import io
from typing import Any

import polars as pl
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from entropylong_assets.report.charts import BLUE, ORANGE
from entropylong_assets.storage.tables import TableStore

FOLDER = "ablation"


def chart(table: pl.DataFrame) -> dict[str, Any]:
    """Vega-Lite: acceptance of retrieved and of random contexts as ε moves, a panel a rule."""
    import altair as alt

    wanted = table.filter(knob="epsilon")
    rows = []
    for kind, column in (("retrieved", "acceptance"), ("random", "false_acceptance")):
        for row in wanted.drop_nulls(column).iter_rows(named=True):
            rows.append(
                {
                    "epsilon": float(row["value"]),
                    "rule": row["rule"],
                    "contexts": kind,
                    "share": row[column],
                    "low": row[f"{column}_low"],
                    "high": row[f"{column}_high"],
                }
            )
    base = alt.Chart(alt.Data(values=rows)).encode(x=alt.X("epsilon:Q", title="ε"))
    colour = alt.Color(
        "contexts:N",
        title=None,
        scale=alt.Scale(domain=["retrieved", "random"], range=[BLUE, ORANGE]),
    )
    line = base.mark_line(point=True).encode(
        y=alt.Y("share:Q", title="share of pairs that pass", axis=alt.Axis(format="%")),
        color=colour,
        strokeDash=alt.StrokeDash("contexts:N", title=None),
    )
    band = base.mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q", color=colour)
    panel = alt.layer(band, line).properties(width=320, height=200)
    drawn: dict[str, Any] = panel.facet("rule:N", columns=2).to_dict()
    return drawn


def save(store: TableStore, table: pl.DataFrame) -> list[str]:
    """Writes ablation.parquet and ablation.svg under the data; returns where they are."""
    import vl_convert

    buffer = io.BytesIO()
    table.write_parquet(buffer)
    picture = vl_convert.vegalite_to_svg(chart(table))
    written = []
    for name, content in (("parquet", buffer.getvalue()), ("svg", picture.encode())):
        path = f"{FOLDER}/ablation.{name}"
        store.put(f"{store.root}/{path}", content)
        written.append(f"{store.uri}/{path}")
    return written


_FIGURES = (
    ("anchors", "anchors_per_root", "{:,.2f}"),
    ("deps", "dependencies_per_root", "{:,.2f}"),
    ("paper", "paper", "{:g}"),
    ("accepted", "acceptance", "{:.2%}"),
    ("random", "false_acceptance", "{:.2%}"),
    ("ΔI", "mean_gain", "{:.2f}"),
    ("I drop", "mean_surprisal_drop", "{:.2f}"),
)
_LEGEND = """anchors, deps: a root; paper: the same by α and by ε, of Llama-3-8B on its corpus
accepted, random: shares of retrieved and of random contexts that pass the rule
ΔI, I drop: accepted pairs' mean gain, and mean fall of surprisal in nats
The files hold the 95% intervals too."""


def print_ablation(console: Console, table: pl.DataFrame) -> None:
    """The table in 80 columns, a line a knob, value and rule; what lacks figures says why below."""
    shown = Table(title="Ablations over stored scores", title_justify="left", box=SIMPLE, padding=0)
    shown.add_column("setting")
    shown.add_column("rule")
    for head, _, _ in _FIGURES:
        shown.add_column(head, justify="right")
    last = None
    for row in table.filter(pl.col("median_distance").is_null()).iter_rows(named=True):
        if last not in (None, row["knob"]):
            shown.add_section()
        last = row["knob"]
        figures = ["" if row[n] is None else form.format(row[n]) for _, n, form in _FIGURES]
        if any(figures):
            shown.add_row(f"{row['knob']} {row['value']}", row["rule"], *figures)
    console.print(shown)
    for knob, value, distance in (
        table.drop_nulls("median_distance").select("knob", "value", "median_distance").iter_rows()
    ):
        console.print(f"{knob} {value}: contexts lie {distance:,.0f} tokens before, in the median")
    notes = table.drop_nulls("note").select("knob", "value", "note").unique(maintain_order=True)
    for knob, value, note in notes.iter_rows():
        console.print(f"{knob} {value}: {note}")
    console.print(_LEGEND)
