"""Metadata of materializations: figures, column schemas and previews as Dagster shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import dagster as dg
import polars as pl

from entropylong_assets.stages.execution import Materialization
from entropylong_assets.stages.stage import Link, Markdown, Metadata
from entropylong_assets.storage.schemas import TableSet

PREVIEW_ROWS = 64
_CELL_CHARS = 100
_WIDE_COLUMNS, _WIDE_ROWS, _WIDE_CELL_CHARS = 7, 3, 24
"""A frame of more columns is transposed, since Dagster's dialog does not scroll sideways: one line
per column, with at most this many rows side by side and characters per cell."""
_LONG_ID = re.compile(r"[0-9a-f]{32,}")


def table_schema(tables: TableSet[Any]) -> dg.TableSchema:
    """Columns of a stage's main table: type, unit, meaning."""
    columns = []
    for column in tables.schemas[tables.main]:
        about = {k.decode(): v.decode() for k, v in (column.metadata or {}).items()}
        unit = f" [{about['unit']}]" if "unit" in about else ""
        columns.append(
            dg.TableColumn(
                column.name,
                type=str(column.type),
                description=f"{about.get('description', '')}{unit}",
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
        )
    return dg.TableSchema(columns)


def short(value: float) -> float:
    """Round a number for display: at most 6 significant digits and 6 decimals."""
    return float(f"{round(value, 6):.6g}") if math.isfinite(value) else value


def _cell(value: Any, chars: int) -> str:
    if value is None:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = _LONG_ID.sub(lambda match: f"{match.group()[:8]}…", " ".join(text.split()))
    text = text if len(text) <= chars else text[: chars - 1] + "…"
    # Escaped by backslashes, because the UI does not decode character references.
    return re.sub(r"([\\`*_\[\]<>|&~#!])", r"\\\1", text)


def preview(frame: pl.DataFrame, rows: int = PREVIEW_ROWS) -> dg.MarkdownMetadataValue:
    """The first rows as a Markdown table, transposed if it has many columns.

    Long texts and ids are cut, and markup in them is escaped.
    """
    shown = frame.head(rows)
    if frame.width > _WIDE_COLUMNS:
        shown = shown.head(_WIDE_ROWS)
        names = ["column", *(f"row {i + 1}" for i in range(len(shown)))]
        chars = _WIDE_CELL_CHARS
        cells = [(_cell(c.name, 60), *c.to_list()) for c in shown.iter_columns()]
    else:
        names, chars, cells = frame.columns, _CELL_CHARS, shown.rows()
    body = [[_cell(value, chars) for value in row] for row in cells]
    lines = [names, ["---"] * len(names), *body]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _figures(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and words of a summary, by dotted path. None is left out."""
    flat: dict[str, Any] = {}
    for key, value in summary.items():
        name = prefix + str(key).replace(" ", "_")
        if isinstance(value, Mapping):
            flat |= _figures(value, f"{name}.")
        elif isinstance(value, float):
            flat[name] = short(value)
        elif isinstance(value, int | str):
            flat[name] = value
    return flat


def _rounded(value: Any) -> Any:
    """A JSON value with short numbers."""
    if isinstance(value, float):
        return short(value)
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def as_dagster(metadata: Metadata) -> dict[str, Any]:
    """A stage's metadata as Dagster's values, with underscores in the names."""

    def value(raw: Any) -> Any:
        if isinstance(raw, Markdown):
            return dg.MetadataValue.md(raw)
        if isinstance(raw, Link):
            return dg.MetadataValue.url(raw)
        if isinstance(raw, pl.DataFrame):
            return preview(raw)
        if isinstance(raw, Mapping | list | tuple):
            return dg.MetadataValue.json(_rounded(raw))
        return _rounded(raw)

    return {name.replace(" ", "_"): value(raw) for name, raw in metadata.items()}


def materialization_metadata(
    tables: TableSet[Any], materialization: Materialization
) -> dict[str, Any]:
    """All metadata of one materialization: place, counts, schema, cost, what the stage reports.

    Names are those of settings and columns: lower case with underscores, dots between levels.
    """
    manifest = materialization.manifest
    metadata: dict[str, Any] = {
        "dagster/row_count": manifest.tables[tables.main].rows,
        "dagster/column_schema": table_schema(tables),
        "dagster/uri": materialization.uri,
        "seconds": short(round(materialization.seconds, 2)),
        "bytes": sum(table.bytes for table in manifest.tables.values()),
        **_figures(manifest.summary),
        "settings": dg.MetadataValue.json(manifest.determinants.get("settings", {})),
    }
    if materialization.rate:
        metadata[f"{materialization.unit}_per_second".replace(" ", "_")] = short(
            round(materialization.rate, 1)
        )
    if materialization.left_out:
        metadata["left_out"] = dg.MetadataValue.json(dict(materialization.left_out))
    reported = as_dagster(materialization.metadata)
    # Left out: mappings whose figures the summary already gives one by one.
    twice = {name.partition(".")[0] for name in metadata if "." in name}
    return metadata | {name: value for name, value in reported.items() if name not in twice}
