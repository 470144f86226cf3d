"""Figures of a materialization as the UI shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from entropylong_assets.orchestration.metadata import preview
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.stages.stage import Stage
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.stage_names import path_of

if TYPE_CHECKING:
    from entropylong_assets_tests.conftest import World


def test_materialization_shows_every_number_of_its_summary(world: World) -> None:
    """The failure: a figure by rule, two mappings deep, was not shown."""
    key, shard = dg.AssetKey(path_of("verified_dependencies")), world.shards[0]
    [record] = world.instance.fetch_materializations(
        dg.AssetRecordsFilter(key, asset_partitions=[shard]), limit=1
    ).records
    assert record.asset_materialization is not None
    shown = {k: v.value for k, v in record.asset_materialization.metadata.items()}
    rate = shown["false_acceptance.calibrated.rate"]
    low, high = (shown[f"false_acceptance.calibrated.{end}"] for end in ("low", "high"))
    assert 0 <= low <= rate <= high < shown["false_acceptance.plain.high"] <= 1
    assert shown["false_acceptance.calibrated.is_rough"] is True, "few roots, and not marked"
    assert 1 <= shown["diversity.roots.effective"] <= shown["diversity.roots.number"]
    assert shown["diversity.contexts.number"] <= shown["accepted"]
    assert shown["verdicts.accepted"] == shown["accepted"] > 0


def shown_by(world: World) -> Iterator[tuple[Stage, str, dict[str, Any]]]:
    """Stage, shard and metadata of every materialization of the world."""
    for settings in (world.project.corpus, world.project.dataset):
        for stage in world.project.stages_of(settings):
            if stage.automation == "by_hand":
                continue
            records = world.instance.fetch_materializations(
                asset_key(settings, stage), limit=100
            ).records
            for record in records:
                materialization = record.asset_materialization
                assert materialization is not None
                yield stage, materialization.partition or WHOLE, dict(materialization.metadata)


def numbers(value: Any) -> Iterator[float]:
    """All floats in a JSON value."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)


def test_metadata_has_one_form_of_name_and_no_figure_twice(world: World) -> None:
    """The failures: `dependencies by kind` beside `dependencies_by_kind: other`."""
    seen = 0
    for stage, _, metadata in shown_by(world):
        for name in metadata:
            assert re.fullmatch(r"(dagster/)?[a-zA-Z0-9_.:@/-]+", name), (stage.name, name)
            assert ": " not in name
            longer = [other for other in metadata if other.startswith(f"{name}.")]
            assert longer == [], (stage.name, name)
            seen += 1
    assert seen > 100


def test_numbers_in_metadata_are_short(world: World) -> None:
    """The failures: 0.47872600018294287, and plots whose axis ends at 1e-77."""
    seen = 0
    for stage, _, metadata in shown_by(world):
        for name, value in metadata.items():
            for number in numbers(value.value):
                assert number == 0 or abs(number) >= 1e-6, (stage.name, name)
                digits = re.sub(r"[-.]|e.*", "", repr(number)).strip("0")
                assert len(digits) <= 6, (stage.name, name, number)
                seen += 1
    assert seen > 20


def test_metadata_says_where_the_data_is(world: World) -> None:
    seen = 0
    for stage, shard, metadata in shown_by(world):
        folder = Path(metadata["dagster/uri"].value)
        assert folder.is_absolute()
        assert (folder / "manifest.json").exists()
        assert folder.parts[-2:] == (stage.name, shard)
        seen += 1
    assert seen > 10


def test_preview_of_many_columns_fits_the_dialog() -> None:
    """Dagster's dialog shows about 110 characters and does not scroll sideways."""
    digits = "0123456789abcdef" * 2
    wide = pl.DataFrame({f"column_{i}": [f"{digits}-00007", None] * 8 for i in range(24)})
    lines = preview(wide).md_str.splitlines()
    assert len(lines) == 2 + 24, "a row per column"
    assert max(len(line) for line in lines) <= 110
    assert lines[2].count("01234567…-00007") == 2
    assert digits not in preview(wide).md_str
    narrow = pl.DataFrame({"id": [digits], "text": ["word " * 80]})
    head, _, row = preview(narrow).md_str.splitlines()
    assert head == "| id | text |"
    assert len(row) <= 140
    assert row.endswith("… |")
