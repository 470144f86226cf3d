"""Metadata of materializations: figures, column schemas and previews as Dagster shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import dagster as dg
import polars as pl

from entropylong_assets.stages.execution import Materialization
from entropylong_assets.stages.stage import Markdown, Metadata
from entropylong_assets.storage.schemas import TableSet

PREVIEW_ROWS = 64
_CELL_CHARS = 100


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


def preview(frame: pl.DataFrame, rows: int = PREVIEW_ROWS) -> dg.MarkdownMetadataValue:
    """The first rows as a Markdown table; long texts are cut, markup in them is escaped."""

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        text = " ".join(text.split())
        text = text if len(text) <= _CELL_CHARS else text[: _CELL_CHARS - 1] + "…"
        # With backslashes: the UI shows character references as they are written.
        return re.sub(r"([\\`*_\[\]<>|&~#!])", r"\\\1", text)

    lines = [" | ".join(frame.columns), " | ".join("---" for _ in frame.columns)]
    lines += [" | ".join(cell(v) for v in row) for row in frame.head(rows).iter_rows()]
    return dg.MetadataValue.md("\n".join(f"| {line} |" for line in lines))


def _figures(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and words of a summary; those of a mapping after its name. None is left out."""
    flat: dict[str, Any] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            flat |= _figures(value, f"{prefix}{key}: ")
        elif isinstance(value, int | float | str):
            flat[prefix + key] = value
    return flat


def as_dagster(metadata: Metadata) -> dict[str, Any]:
    """A stage's metadata as Dagster's values."""

    def value(raw: Any) -> Any:
        if isinstance(raw, Markdown):
            return dg.MetadataValue.md(raw)
        if isinstance(raw, pl.DataFrame):
            return preview(raw)
        if isinstance(raw, Mapping | list | tuple):
            return dg.MetadataValue.json(dict(raw) if isinstance(raw, Mapping) else list(raw))
        return raw

    return {name: value(raw) for name, raw in metadata.items()}


def materialization_metadata(tables: TableSet[Any], made: Materialization) -> dict[str, Any]:
    """All metadata of one materialization: counts, schema, cost, and what the stage reports."""
    manifest = made.manifest
    metadata: dict[str, Any] = {
        "dagster/row_count": manifest.tables[tables.main].rows,
        "dagster/column_schema": table_schema(tables),
        "seconds": round(made.seconds, 2),
        "bytes": sum(table.bytes for table in manifest.tables.values()),
        **_figures(manifest.summary),
        "settings": dg.MetadataValue.json(manifest.determinants.get("settings", {})),
    }
    if made.rate:
        metadata[f"{made.unit} per second"] = round(made.rate, 1)
    if made.left_out:
        metadata["left out"] = dg.MetadataValue.json(dict(made.left_out))
    return metadata | as_dagster(made.metadata)
