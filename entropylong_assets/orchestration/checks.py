"""Asset checks written as SQL: a query whose rows are the faults.

Each check is a file `<stage>/checks/<name>.sql`, run by DuckDB over views of the shard's tables
and its neighbours'. It passes when the query gives no rows; otherwise the check's page says how
many there are and shows the first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa

from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.metadata import preview
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.settings.model import Settings
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import WHOLE

EXAMPLES = 10


@dataclass(frozen=True)
class SqlCheck:
    """`name` is the SQL file's; a blocking check holds back what follows, others warn or fail."""

    name: str
    description: str
    blocking: bool = True
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR


Views = Callable[[Pipeline, str], Mapping[str, duck.View]]
"""(pipeline, shard) to the views that a stage's checks read."""

Parameters = Callable[[Settings], Mapping[str, Any]]
"""Values for `$name` in the SQL."""


def run_check(
    folder: Path,
    check: SqlCheck,
    views: Mapping[str, duck.View],
    pipeline: Pipeline,
    parameters: Mapping[str, Any],
) -> tuple[int, pl.DataFrame]:
    """Number of faulty rows, and the first of them.

    Raises TableError where a table has gone or is damaged, ConnectionError where the store gives
    no answer.
    """
    sql = (folder / f"{check.name}.sql").read_text(encoding="utf-8")
    with duck.querying(pipeline.store, views, only=sql) as session:
        used = {name: value for name, value in parameters.items() if f"${name}" in sql}
        faults: pa.Table = session.sql(sql, params=used).to_arrow_table()
    examples = pl.from_arrow(faults.slice(0, EXAMPLES))
    assert isinstance(examples, pl.DataFrame)
    return len(faults), examples


def sql_checks(
    asset: str,
    folder: Path,
    checks: Sequence[SqlCheck],
    views: Views,
    parameters: Parameters,
    *,
    partitioned: bool = True,
) -> dg.AssetChecksDefinition:
    """All SQL checks of one asset, as one step that can run any of them alone."""
    specs = [
        dg.AssetCheckSpec(
            check.name,
            asset=asset,
            description=check.description,
            blocking=check.blocking,
            partitions_def=corpus_shard if partitioned else None,
        )
        for check in checks
    ]

    @dg.multi_asset_check(
        name=f"{asset}_checks",
        specs=specs,
        can_subset=True,
        compute_kind="duckdb",
        retry_policy=RETRIES,  # without one, a cluster's node that dies in a check fails the run
    )
    def run(
        context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.AssetCheckResult]:
        shard = context.partition_key if partitioned else WHOLE
        chosen = {key.name for key in context.selected_asset_check_keys}
        with plain_errors():
            seen = views(pipeline, shard)
        for check in checks:
            if check.name not in chosen:
                continue
            with plain_errors():
                count, examples = run_check(
                    folder, check, seen, pipeline, parameters(pipeline.settings)
                )
            metadata: dict[str, Any] = {"faulty rows": count}
            description = None
            if count:
                metadata["examples"] = preview(examples, EXAMPLES)
                description = f"{count:,} faulty rows. The rule: {check.description}"
            yield dg.AssetCheckResult(
                asset_key=asset,
                check_name=check.name,
                passed=count == 0,
                severity=check.severity,
                description=description,
                metadata=metadata,
            )

    return run
