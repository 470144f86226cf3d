"""The ablation as Parquet, chart and table in the terminal."""

from __future__ import annotations

import io
from typing import Any

import polars as pl
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from entropylong_assets.storage.tables import TableStore

FOLDER = "ablation"
"""Folder of the files, inside the dataset's folder."""

_CONTEXTS = {"retrieved": ("acceptance", "#0072B2"), "random": ("false_acceptance", "#E69F00")}
"""Columns and colours of the chart (Okabe and Ito) by kind of context."""


def chart(table: pl.DataFrame) -> dict[str, Any]:
    """Vega-Lite chart: acceptance of retrieved and of random contexts by ε, one panel per rule."""
    import altair as alt

    rows = []
    for kind, (column, _) in _CONTEXTS.items():
        for row in table.filter(knob="epsilon").drop_nulls(column).iter_rows(named=True):
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
    colours = [colour for _, colour in _CONTEXTS.values()]
    colour = alt.Color(
        "contexts:N", title=None, scale=alt.Scale(domain=list(_CONTEXTS), range=colours)
    )
    line = base.mark_line(point=True).encode(
        y=alt.Y("share:Q", title="share of pairs that pass", axis=alt.Axis(format="%")),
        color=colour,
        strokeDash=alt.StrokeDash("contexts:N", title=None),
    )
    band = base.mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q", color=colour)
    panel = alt.layer(band, line).properties(width=320, height=200)
    spec: dict[str, Any] = panel.facet("rule:N", columns=2).to_dict()
    return spec


def save(store: TableStore, table: pl.DataFrame) -> list[str]:
    """Write ablation.parquet and ablation.svg to the dataset's folder; returns their URIs."""
    import vl_convert

    buffer = io.BytesIO()
    table.write_parquet(buffer)
    picture = vl_convert.vegalite_to_svg(chart(table))
    written = []
    for suffix, content in (("parquet", buffer.getvalue()), ("svg", picture.encode())):
        path = f"{FOLDER}/ablation.{suffix}"
        store.put(f"{store.root}/{store.dataset}/{path}", content)
        written.append(f"{store.dataset_uri}/{path}")
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
_LEGEND = """anchors, deps: per root; paper: the same by α and by ε, of Llama-3-8B on its corpus
accepted, random: shares of retrieved and of random contexts that pass the rule
ΔI, I drop: mean gain and mean surprisal drop of accepted pairs (drop in nats)
The files also contain the 95% intervals. Those of random contexts are marked as rough if there are
too few roots to estimate the correlation of their trials: then one is assumed."""


def print_ablation(console: Console, table: pl.DataFrame) -> None:
    """Print the table in 80 columns, one line per knob, value and rule; then the notes."""
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
        console.print(
            f"{knob} {value}: median distance from context to anchor {distance:,.0f} tokens"
        )
    notes = table.drop_nulls("note").select("knob", "value", "note").unique(maintain_order=True)
    for knob, value, note in notes.iter_rows():
        console.print(f"{knob} {value}: {note}")
    console.print(_LEGEND)
