"""What every asset does around its work: progress, metadata, data versions."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import polars as pl

from entropylong_assets.storage.schemas import TABLES
from entropylong_assets.storage.tables import Manifest

Observer = Callable[[str, int, int | None, float], None]
"""(unit, done so far, total or none, units a second)."""

observers: list[Observer] = []
"""Told of progress in this process, beside the run's log: how the command line draws its bars."""


class Progress:
    """Counts units of work, and logs rate and time left every `every` seconds."""

    def __init__(
        self, context: dg.AssetExecutionContext, unit: str, total: int | None, every: float = 10
    ) -> None:
        self._log, self._unit, self._total, self._every = context.log, unit, total, every
        self._start = self._last = time.monotonic()
        self.done = 0

    def __call__(self, done: int) -> None:
        """`done` more units are finished."""
        self.done += done
        for observer in observers:
            observer(self._unit, self.done, self._total, self.rate)
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        left = ""
        if self._total:
            seconds = (self._total - self.done) / self.rate if self.done else 0
            left = f" of {self._total:,}, {seconds:.0f} s left"
        self._log.info(f"{self.done:,} {self._unit}{left} ({self.rate:,.0f} {self._unit}/s)")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        return self.done / max(self.seconds, 1e-9)


def table_schema(asset: str, table: str) -> dg.TableSchema:
    """Columns of a table for the UI: type, unit, meaning."""
    columns = []
    for column in TABLES[asset][table]:
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


def preview(frame: pl.DataFrame, rows: int = 5) -> dg.MarkdownMetadataValue:
    """The first rows as a Markdown table; long texts cut, markup in them disarmed."""

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        text = " ".join(text.split())
        text = text if len(text) <= 100 else text[:99] + "…"
        # By backslashes: the UI shows character references as they are written.
        return re.sub(r"([\\`*_\[\]<>|&~#!])", r"\\\1", text)

    lines = [" | ".join(frame.columns), " | ".join("---" for _ in frame.columns)]
    lines += [" | ".join(cell(v) for v in row) for row in frame.head(rows).iter_rows()]
    return dg.MetadataValue.md("\n".join(f"| {line} |" for line in lines))


def _figures(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and words of a summary, one level deep, as metadata; nothing is made up for None."""
    flat: dict[str, Any] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= _figures(value, f"{key}: ")
        elif isinstance(value, int | float | str):
            flat[prefix + key] = value
    return flat


def materialised(
    manifest: Manifest, main_table: str, seconds: float, **metadata: Any
) -> dg.MaterializeResult:
    """The result of an asset: counts, schema, and the version of its content."""
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": manifest.tables[main_table].rows,
            "dagster/column_schema": table_schema(manifest.asset, main_table),
            "seconds": round(seconds, 2),
            "bytes": sum(table.bytes for table in manifest.tables.values()),
            **_figures(manifest.summary),
            **metadata,
        },
        data_version=dg.DataVersion(manifest.data_version),
    )
