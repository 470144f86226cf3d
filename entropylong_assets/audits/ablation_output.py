"""The ablation as Parquet, table and picture."""

from __future__ import annotations

import io
from typing import Any

import polars as pl
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


def _rate(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    return f"{row[name]:.2%} ({row[f'{name}_low']:.1%}-{row[f'{name}_high']:.1%})"


def print_ablation(console: Console, table: pl.DataFrame) -> None:
    """The table, one line a knob, value and rule; a line without figures says why."""
    shown = Table(title="Ablations over stored scores", title_justify="left")
    for name in ("knob", "value", "rule"):
        shown.add_column(name)
    for name in (
        "anchors/root",
        "deps/root",
        "paper",
        "accepted (95%)",
        "random accepted (95%)",
        "mean ΔI",
        "surprisal drop",
        "distance",
    ):
        shown.add_column(name, justify="right")
    last = None
    for row in table.iter_rows(named=True):
        if last not in (None, row["knob"]):
            shown.add_section()
        last = row["knob"]
        number = {
            name: "" if row[name] is None else f"{row[name]:,.2f}"
            for name in (
                "anchors_per_root",
                "dependencies_per_root",
                "mean_gain",
                "mean_surprisal_drop",
            )
        }
        shown.add_row(
            row["knob"],
            row["value"],
            row["rule"],
            number["anchors_per_root"],
            number["dependencies_per_root"],
            "" if row["paper"] is None else f"{row['paper']:g}",
            _rate(row, "acceptance"),
            _rate(row, "false_acceptance"),
            number["mean_gain"],
            number["mean_surprisal_drop"],
            "" if row["median_distance"] is None else f"{row['median_distance']:,.0f}",
        )
    console.print(shown)
    notes = table.drop_nulls("note").select("knob", "value", "note").unique(maintain_order=True)
    for knob, value, note in notes.iter_rows():
        console.print(f"{knob} = {value}: {note}")
    console.print(
        "paper: anchors a root by α, dependencies a root by ε, on Llama-3-8B and its corpus"
    )
