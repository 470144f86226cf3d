"""Running the SQL checks of a partition and storing their outcomes beside the data."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from entropylong_assets.stages.stage import Check, Partition, Stage
from entropylong_assets.storage import duck
from entropylong_assets.storage.manifest import CheckOutcome

EXAMPLES = 10
"""Faulty rows shown per check."""


@dataclass(frozen=True)
class CheckResult:
    """One check that ran: the number of faulty rows, and the first of them."""

    check: Check
    faulty_rows: int
    examples: pl.DataFrame

    @property
    def passed(self) -> bool:
        return self.faulty_rows == 0


def run_checks(
    stage: Stage, partition: Partition, names: Collection[str] | None = None
) -> Iterator[CheckResult]:
    """Run the stage's checks, or those of these names, one after the other; record each outcome.

    Raises TableError if a table is missing or damaged, ConnectionError if the store does not
    answer.
    """
    views = stage.views(partition)
    for check in stage.checks:
        if names is not None and check.name not in names:
            continue
        result = _run(stage, check, partition, views)
        outcome = CheckOutcome(
            passed=result.passed, blocking=check.blocking, faulty_rows=result.faulty_rows
        )
        partition.store.record_checks(stage.tables, partition.shard, {check.name: outcome})
        yield result


def _run(stage: Stage, check: Check, partition: Partition, views: duck.Views) -> CheckResult:
    assert stage.check_folder is not None
    sql = (stage.check_folder / f"{check.name}.sql").read_text(encoding="utf-8")
    values = stage.check_parameters(partition)
    with duck.querying(partition.store, views, only=sql) as session:
        used = {name: value for name, value in values.items() if f"${name}" in sql}
        faults: pa.Table = session.sql(sql, params=used).to_arrow_table()
    examples = pl.from_arrow(faults.slice(0, EXAMPLES))
    assert isinstance(examples, pl.DataFrame)
    return CheckResult(check, len(faults), examples)
