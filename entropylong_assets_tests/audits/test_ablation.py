"""Ablations against plain loops over the same tables, and the figures that they must leave out."""

from __future__ import annotations

import io
import statistics
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from entropylong_assets.audits.ablation import PAPER, ablate, read_scores
from entropylong_assets.audits.ablation_output import chart, print_ablation, save
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World


@pytest.fixture(scope="module")
def table(world: World) -> pl.DataFrame:
    return ablate(read_scores(world.store, world.shards), world.settings)


def read_rows(world: World, tables: TableSet[Any], table: str) -> list[dict[str, Any]]:
    rows = world.store.read_all(tables, world.shards, table).to_dicts()
    # A document that occurs in two shards is one root.
    return list({r["root_id"]: r for r in rows}.values()) if table == "roots" else rows


def test_anchors_are_counted_at_any_alpha(world: World, table: pl.DataFrame) -> None:
    roots = read_rows(world, ENTROPY_SCORES, "roots")
    first = world.settings.entropy.min_anchor_position
    for alpha in (1.5, 2.0, 2.5):
        count = 0
        for root in roots:
            defined = [h for h in root["entropies"] if h is not None]
            tau = statistics.fmean(defined) + alpha * statistics.pstdev(defined)
            count += sum(h is not None and h > tau for h in root["entropies"][first:])
        shown = table.filter(knob="alpha", value=f"{alpha:g}")["anchors_per_root"].unique()
        assert shown.to_list() == [pytest.approx(count / len(roots))]
    counts = table.filter(knob="alpha", rule="plain")["anchors_per_root"].to_list()
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] >= 0


def test_dependencies_at_any_epsilon_follow_from_stored_gains(
    world: World, table: pl.DataFrame
) -> None:
    pairs = read_rows(world, VERIFIED_DEPENDENCIES, "pairs")
    n_roots = len(read_rows(world, ENTROPY_SCORES, "roots"))
    checked = 0
    for epsilon in (0.2, 0.4, 0.6, 0.8):
        expected = {"plain": 0, "calibrated": 0}
        for p in pairs:
            if p["gain"] is None:
                continue
            lower = min(p["surprisal"], p["surprisal_control"])
            expected["plain"] += p["gain"] > epsilon
            expected["calibrated"] += (
                p["calibrated_gain"] > epsilon and p["surprisal_context"] < lower
            )
        for rule, count in expected.items():
            row = table.filter(knob="epsilon", value=f"{epsilon:g}", rule=rule).to_dicts()[0]
            assert row["dependencies_per_root"] == pytest.approx(count / n_roots)
            assert row["acceptance_low"] <= row["acceptance"] <= row["acceptance_high"]
            checked += count
    assert checked > 10


def test_the_settings_in_force_give_the_stored_verdicts(world: World, table: pl.DataFrame) -> None:
    pairs = read_rows(world, VERIFIED_DEPENDENCIES, "pairs")
    n_roots = len(read_rows(world, ENTROPY_SCORES, "roots"))
    row = table.filter(knob="verification", value="on", rule="calibrated").to_dicts()[0]
    accepted = [p for p in pairs if p["accepted"]]
    assert row["dependencies_per_root"] == pytest.approx(len(accepted) / n_roots)
    assert row["mean_gain"] == pytest.approx(statistics.fmean(p["gain"] for p in accepted))
    off = table.filter(knob="verification", value="off", rule="plain").to_dicts()[0]
    assert off["acceptance"] == 1.0


def test_what_was_not_scored_has_a_note_and_no_figures(world: World, table: pl.DataFrame) -> None:
    scored = world.settings.retrieval.top_k
    for knob, value in (("K", str(2 * scored)), ("w", "others")):
        for row in table.filter(knob=knob, value=value).to_dicts():
            assert row["note"]
            assert row["acceptance"] is row["dependencies_per_root"] is None
    # Scored at 1.5: anchors of a higher α are among those scored, of a lower one they are not.
    assert world.settings.entropy.alpha == 1.5
    assert table.filter(knob="alpha", value="2", rule="plain")["acceptance"].null_count() == 0
    higher = world.settings.model_copy(
        update={"entropy": world.settings.entropy.model_copy(update={"alpha": 2.0})}
    )
    lower = ablate(read_scores(world.store, world.shards), higher).filter(knob="alpha", value="1.5")
    assert lower["acceptance"].null_count() == len(lower) == 3
    assert all("scored for" in note for note in lower["note"])


def test_order_moves_contexts_and_nothing_else(table: pl.DataFrame) -> None:
    order = table.filter(knob="order")
    assert order["median_distance"].null_count() == 0
    assert order["median_distance"].n_unique() == 2


def test_the_papers_figures_stand_beside_ours(table: pl.DataFrame) -> None:
    shown = table.drop_nulls("paper")
    assert set(shown.select("knob", "value").iter_rows()) == set(PAPER)
    assert set(shown["rule"]) == {"plain"}


def test_ablation_is_written_as_parquet_and_picture(table: pl.DataFrame, tmp_path: Any) -> None:
    files = save(TableStore(str(tmp_path), "web", "ours"), table)
    assert pl.read_parquet(files[0]).equals(table)
    assert "<svg" in (tmp_path / "ours" / "ablation" / "ablation.svg").read_text()[:400]
    values = chart(table)["data"]["values"]
    assert {v["contexts"] for v in values} == {"retrieved", "random"}


def test_the_table_is_whole_in_a_terminal_of_80_columns(table: pl.DataFrame) -> None:
    """Figures of a table that is too wide are cut to `9.…`."""
    file = io.StringIO()
    print_ablation(Console(file=file, width=80), table)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
    row = table.filter(knob="epsilon", value="0.4", rule="plain").to_dicts()[0]
    (shown,) = [line.split() for line in lines if line.split()[:3] == ["epsilon", "0.4", "plain"]]
    assert f"{row['dependencies_per_root']:,.2f}" in shown
    assert f"{row['acceptance']:.2%}" in shown
    assert any("median distance from context to anchor" in line for line in lines)
