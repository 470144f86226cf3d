"""The capacity plan, against sums made by hand; its page and its sources against the files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.report import capacity, verification_costs
from entropylong_assets.report.capacity import (
    ENCODERS,
    INDEXES,
    EncoderRate,
    IndexRate,
    PlanError,
    PlanRate,
    Workload,
    plan_capacity,
    workload_of,
)
from entropylong_assets.report.capacity_text import markdown
from entropylong_assets.report.verification_costs import (
    PUBLISHED,
    Rates,
    RatesError,
    candidate_hours,
    continuation,
    load_rates,
    of_candidates,
    of_controls,
    of_roots_alone,
    sequence,
)
from entropylong_assets.stages.entropy.usage import ModelCost

PROJECT = Path(__file__).parents[2]


def test_operations_match_those_of_the_model_that_was_timed() -> None:
    """The H100 scored 45,300 tokens per second at 665 TFLOP/s: 512 + 2,048 tokens, 100 anchors.

    The failure: a plan that counts otherwise than the engine that measured the rate.
    """
    work = sequence(512 + 2048, 100)
    assert work.flop / work.tokens * 45_300 == pytest.approx(665e12, rel=0.01)


def test_a_continuation_is_what_is_left_of_a_sequence() -> None:
    """All tokens, or those after the kept ones: the same operations, without those of the kept."""
    whole, kept = sequence(500, 7), sequence(200, 3)
    rest = continuation(300, 200, 4)
    assert (kept + rest).flop == pytest.approx(whole.flop)
    assert (kept + rest).tokens == whole.tokens


def test_tokens_of_the_screens_match_a_count_by_hand() -> None:
    """10 roots of 300 tokens with 4 anchors of 2 candidates, half of them distinct: 40 contexts of
    100 tokens, each for 2 pairs. Exactly: 40 × (100 + 200). Spliced: 40 × (100 + 2 × (64 + 128)
    + 13.5% of 200), and 10 roots alone."""
    work = Workload(roots=10, root_tokens=300, anchors=4, top_k=2, chunk_tokens=100, controls=2)
    assert of_candidates(work, 0.5, "none").tokens == pytest.approx(12_000)
    spliced = of_candidates(work, 0.5, "splice").tokens
    assert spliced == pytest.approx(40 * (100 + 384 + 27) + 3000)
    assert of_controls(work).tokens == 10 * 2 * 400
    assert of_roots_alone(work).tokens == 3000


def benchmark_file(folder: Path, **content: Any) -> Path:
    path = folder / "bench.json"
    path.write_text(json.dumps({"machine": {"gpu": "NVIDIA H200"}, "claims": [], **content}))
    return path


def test_rates_come_from_the_files_of_the_benchmarks(tmp_path: Path) -> None:
    file = benchmark_file(
        tmp_path,
        shape=[{"mode": "packed"}, {"tflop_per_second": 700.0}],
        claims=[
            {"name": "screen_over_exact", "ratio": 1.5},
            {"name": "splice_root_4096", "ratio": 2.0},
            {"name": "splice_fp8_root_4096", "ratio": 3.0},
        ],
    )
    rates = load_rates([file])
    assert rates.scoring.value == 700e12
    assert "NVIDIA H200" in rates.scoring.meaning
    assert rates.fp8.value == 1.5
    assert {key: rate.value for key, rate in rates.splice.items()} == {
        ("splice", 4096): 2.0,
        ("splice_fp8", 4096): 3.0,
    }
    work = Workload(root_tokens=4096)
    exact = candidate_hours(work, 0.5, "none", rates)
    assert exact == pytest.approx(of_candidates(work, 0.5, "none").flop / 700e12 / 3600)
    assert candidate_hours(work, 0.5, "splice", rates) == pytest.approx(exact / 2)
    assert candidate_hours(work, 0.5, "splice_fp8", rates) == pytest.approx(exact / 3)
    assert candidate_hours(Workload(root_tokens=13_000), 0.5, "splice", rates) is None
    printed = CliRunner().invoke(app, ["estimate", "--at", "paper", "--rates", str(file)])
    assert "measured: bench.json" in printed.stdout
    assert "never timed" not in printed.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "not the JSON of a benchmark"), ("[1]", "not the JSON"), ("no JSON", "not the JSON")],
)
def test_a_file_of_something_else_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(RatesError, match=message):
        load_rates([file])


def test_rates_of_a_cpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RatesError, match="not measured on a GPU"):
        load_rates([benchmark_file(tmp_path, machine={"cpu": "x"})])


def test_the_page_has_no_hours_that_were_not_measured() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown(plan_capacity(Workload())).splitlines()
        if "| splice |" in line
    ]
    assert len(rows) == 4  # 2 lengths of roots, 2 numbers of candidates
    for row in rows:
        assert row[-3:] == ["not measured"] * 3
        assert float(row[4]) > 0


def test_plan_capacity_matches_sums_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ModelCost(flop_per_token=1.0, flop_per_pair=0.0, flop_per_position=0.0)
    monkeypatch.setattr(verification_costs, "LLAMA_8B", plain)
    rates = Rates(PlanRate(1000, "FLOP/s", ""), PlanRate(2.0, "", ""))
    monkeypatch.setattr(capacity, "DISTINCT", PlanRate(0.5, "", ""))
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
        ),
        rates,
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
    # Half of the 7,000 seconds of the candidates; controls are not screened.
    assert plan.screened_gpu_hours("fp8") == pytest.approx((88_900 - 3500) / 3600)
    assert plan.screened_gpu_hours("splice") is None
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
    rates += [PUBLISHED.scoring, PUBLISHED.fp8]
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
    rates = str(PROJECT / "benchmarks/splice_h200.json")
    command = ["estimate", "--at", "paper", "--hour-price", "2.5", "--rates", rates]
    printed = CliRunner().invoke(app, command)
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
