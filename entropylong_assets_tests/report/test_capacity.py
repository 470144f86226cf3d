"""The capacity plan, against sums made by hand; its page and its sources against the files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.report import capacity
from entropylong_assets.report.capacity import (
    ENCODERS,
    INDEXES,
    EncoderRate,
    IndexRate,
    PlanError,
    PlanRate,
    Workload,
    plan_capacity,
    verification_tokens,
    workload_of,
)

PROJECT = Path(__file__).parents[2]


def test_verification_tokens_match_a_count_by_hand() -> None:
    """10 roots of 300 tokens, 40 pairs of which half are passes of their own, contexts of 100:
    20 passes of 100 + 200 tokens; 10 roots alone, and 2 controls of 400 tokens each."""
    of_candidates, rest = verification_tokens(10, 40, 0.5, 100, 300, 2)
    assert of_candidates == pytest.approx(20 * 300)
    assert rest == 10 * (300 + 2 * 400)


def test_plan_capacity_matches_sums_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "SCORING", PlanRate(1000, "tokens/s", ""))
    monkeypatch.setattr(capacity, "DISTINCT", PlanRate(0.5, "", ""))
    monkeypatch.setattr(capacity, "SCREEN", PlanRate(2.0, "", ""))
    monkeypatch.setattr(capacity, "EXACT_SEARCH", PlanRate(1e9, "FLOP/s", ""))
    monkeypatch.setattr(capacity, "CALIBRATED_SHARE", PlanRate(0.75, "", ""))
    monkeypatch.setattr(capacity, "PAIR_BYTES", PlanRate(10, "", ""))
    monkeypatch.setattr(capacity, "CONTEXT_BYTES", PlanRate(3, "", ""))
    monkeypatch.setattr(capacity, "LOOKUP_BYTES", PlanRate(20, "", ""))
    monkeypatch.setitem(ENCODERS, "minilm", EncoderRate(PlanRate(100, "", ""), 500, 250))
    monkeypatch.setitem(INDEXES, "ivf_sq", IndexRate(1_000_000, 36, 1.0, 10, 50, ""))
    plan = plan_capacity(
        Workload(
            chunks=4_000_000,
            roots=1000,
            sample_tokens=131_072_000,
            anchors=5,
            top_k=4,
            dependencies=8,
            root_tokens=300,
            chunk_tokens=500,
            controls=2,
            chunks_per_document=4,
            shard_rows=300_000,
            embedder="minilm",
            index="ivf_sq",
        )
    )
    assert (plan.documents, plan.shards, plan.samples) == (1_000_000, 4, 1000)
    assert plan.pairs == 20_000
    assert plan.passes == 10_000 + 3000
    # 10,000 passes of 500 + 200; 1,000 roots of 300 and twice 800.
    assert plan.forward_tokens == pytest.approx(7_000_000 + 300_000 + 1_600_000)
    # Chunks are twice as long as those that the rate was measured with: 50 per second.
    assert plan.gpu_hours["embedding"] == pytest.approx(80_000 / 3600)
    assert plan.gpu_hours["entropy"] == pytest.approx(300 / 3600)
    assert plan.gpu_hours["verification"] == pytest.approx(8600 / 3600)
    assert plan.total_gpu_hours == pytest.approx(88_900 / 3600)
    assert plan.screened_gpu_hours == pytest.approx(84_600 / 3600)
    assert plan.wall_days(8) == pytest.approx(88_900 / 3600 / 8 / 24)
    assert (plan.dependencies_plain, plan.dependencies_calibrated) == (8000, 6000)
    assert plan.hours_per_million(8000) == pytest.approx(88_900 / 3600 * 125)
    # 5,000 queries over 4,000,000 chunks, 1,000 operations each.
    assert plan.exact_search_hours == pytest.approx(2e13 / 1e9 / 3600)
    # 4 times the rows: 8 times the build, twice as long a query; 500 dimensions for 384, 2 cores.
    assert plan.index_build_core_hours == pytest.approx(36 * 8 * 500 / 384 * 2 / 3600)
    assert plan.index_search_core_hours == pytest.approx(5000 / 50 * 2 * 2 / 3600)
    assert list(plan.storage.values()) == pytest.approx(
        [
            4e6 * 2000 * capacity.PARQUET.value,
            4e6 * 2000,
            4e6 * 2000,
            4e6 * 510,
            4e6 * 20,
            20_000 * 10,
            10_000 * 500 * 3,
            2 * 131_072_000 * 4,
        ]
    )


def test_plan_capacity_scales_with_the_workload() -> None:
    base = plan_capacity(Workload())
    twice = plan_capacity(Workload(roots=200_000))
    assert twice.forward_tokens == pytest.approx(2 * base.forward_tokens)
    assert twice.gpu_hours["embedding"] == base.gpu_hours["embedding"]
    assert twice.hours_per_million(twice.dependencies_plain) < base.hours_per_million(
        base.dependencies_plain
    )
    assert replace(base, gpu_hours={"verification": 10.0}).wall_days(1) == pytest.approx(10 / 24)


def test_every_measured_rate_is_in_the_results() -> None:
    """A rate that the page calls measured must be quoted from the results."""
    results = (PROJECT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    rates = [rate for rate in vars(capacity).values() if isinstance(rate, PlanRate)]
    rates += [encoder.rate for encoder in ENCODERS.values()]
    measured = [rate for rate in rates if rate.source]
    assert len(measured) >= 10
    for rate in measured:
        assert rate.source in results, rate
        numbers = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", rate.source)]
        known = {rate.value, rate.value / 1e3, rate.value / 1e6, rate.value / 1e12}
        ratios = {a / b for a in numbers for b in numbers}
        close = any(abs(a - b) <= 0.01 * b for a in known for b in {*numbers, *ratios} if b)
        assert close or not numbers, rate
    for index in INDEXES.values():
        (row,) = [line for line in results.splitlines() if line.startswith(index.source)]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert float(cells[2]) == index.build_seconds
        # Queries at 1,024 per call; bytes per chunk of 384 dimensions.
        assert float(cells[-1].split(", ")[2].replace(",", "")) == index.queries_per_second
        bytes_per_chunk = index.bytes_more + 384 * index.bytes_per_dimension
        assert float(cells[3].replace(",", "")) == pytest.approx(bytes_per_chunk, rel=0.01)


def test_docs_contain_what_the_command_prints() -> None:
    """Run `make scaling` after a rate has changed."""
    printed = CliRunner().invoke(app, ["estimate", "--at", "paper", "--hour-price", "2.5"])
    assert printed.exit_code == 0
    assert printed.stdout == (PROJECT / "docs/scaling.md").read_text(encoding="utf-8")


def test_plan_takes_figures_and_needs_no_price() -> None:
    figures = ["chunks=5_000_000", "roots=2,000", "embedder=minilm", "index=ivf_sq"]
    ours = [part for figure in figures for part in ("--at", figure)]
    printed = CliRunner().invoke(app, ["estimate", *ours])
    assert printed.exit_code == 0
    assert "| chunks | 5,000,000 |" in printed.stdout
    assert "| roots | 2,000 |" in printed.stdout
    assert "H100 hours. To see their cost, give a price with `--hour-price`." in printed.stdout
    costs = re.findall(
        r"^\| (?:plain|calibrated|all three stages) \| [\d,.]+ \| (.*) \|$", printed.stdout, re.M
    )
    assert costs == ["–"] * 3


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("chunk=5", "'chunk=5' is no figure; write name=value with a name of: chunks, roots,"),
        ("chunks", "'chunks' is no figure"),
        ("roots=0", "roots=0: Input should be greater than or equal to 1"),
        ("roots=many", "roots=many: Input should be a valid integer"),
        ("embedder=bert", "embedder=bert: Input should be 'minilm' or 'jina-v3'"),
    ],
)
def test_workload_of_refuses_a_wrong_figure_in_one_line(figure: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        workload_of([figure])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    failed = CliRunner().invoke(app, ["estimate", "--at", "paper", "--at", figure])
    assert failed.exit_code == 2
    assert "Traceback" not in failed.output
