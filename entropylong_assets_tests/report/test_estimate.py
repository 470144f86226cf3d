"""The estimate before a run, against whole runs: it was 2.5 to 6.8 times low in forward tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.cli.planning import in_suitable_unit
from entropylong_assets.cli.sample_progress import SampleProgress
from entropylong_assets.project import open_store
from entropylong_assets.report.corpus_sample import Sample, take_sample
from entropylong_assets.report.effort import Effort, Speed, fit_effort
from entropylong_assets.report.estimate import Figure, Size, SizeError, make_estimate, parse_size
from entropylong_assets.report.trial import TrialError
from entropylong_assets.report.verified_sample import Budget
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.progress import ProgressState
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets_tests.report.whole_run import (
    Actual,
    plan_of,
    run_whole,
    write_sorted_corpus,
)
from entropylong_assets_tests.tiny_world import tiny_settings, tiny_values

ROOTS = {"fraction": 0.2, "min_tokens": 40, "max_tokens": 600}
LITTLE = Effort(
    rows=80, pool_chars=20_000, roots=8, root_tokens=4000, verified=Budget(tokens=10_000)
)

Make = Callable[..., Settings]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate") / "corpus"
    write_sorted_corpus(folder, files=4, documents=50)
    return folder


@pytest.fixture(scope="module")
def make(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str]
) -> Make:
    def settings(**over: Any) -> Settings:
        data = tmp_path_factory.mktemp("data")
        return tiny_settings(corpus, data, tiny_models, **{"roots": ROOTS, **over})

    return settings


def covers(sample: Sample, actual: Actual) -> dict[str, bool]:
    """Whether each figure's interval contains what the run took."""
    estimate = make_estimate(sample)
    estimated = {
        "roots": actual.roots,
        "anchors": actual.anchors,
        "distinct contexts scored": actual.passes,
        "forward tokens": actual.forward_tokens,
        "verified dependencies": actual.dependencies,
    }
    return {
        name: estimate.figure(name).low <= value <= estimate.figure(name).high
        for name, value in estimated.items()
    }


def test_intervals_contain_what_a_run_takes(make: Make) -> None:
    """The oracle is a whole run. The corpus is sorted by length, so that its first rows, from which
    everything was once estimated, are far too short."""
    settings = make(seed=3)
    plan = plan_of(settings)
    # Before the run, since a corpus that is embedded is searched as a whole.
    samples = [take_sample(settings, plan, replace(LITTLE, seed=seed)) for seed in range(3)]
    actual = run_whole(settings, plan)
    assert actual.roots > 10
    outcomes = [covers(sample, actual) for sample in samples]
    assert sum(sum(outcome.values()) for outcome in outcomes) >= 13, outcomes  # 85% of 15
    ratios = [make_estimate(s).figure("forward tokens").value for s in samples]
    assert 0.5 < np.mean(ratios) / actual.forward_tokens < 2
    assert all(sample.pool_share < 0.3 for sample in samples), "the sample is the corpus"


@pytest.mark.long
def test_intervals_contain_what_runs_take_in_most_trials(make: Make) -> None:
    outcomes = []
    for seed in range(8):
        settings = make(seed=seed)
        plan = plan_of(settings)
        efforts = [replace(LITTLE, seed=sampling) for sampling in range(3)]
        samples = [take_sample(settings, plan, effort) for effort in efforts]
        actual = run_whole(settings, plan)
        outcomes += [covers(sample, actual)["forward tokens"] for sample in samples]
    assert np.mean(outcomes) >= 0.85


def test_a_corpus_that_is_read_as_a_whole_has_exact_roots(make: Make) -> None:
    """The draw is by hash: what a run will draw is known before it, not only how many."""
    settings = make(roots={**ROOTS, "fraction": 0.06})
    plan = plan_of(settings)
    effort = Effort(roots=40, root_tokens=100_000, verified=Budget(tokens=2000))
    sample = take_sample(settings, plan, effort)
    actual = run_whole(settings, plan)
    estimate = make_estimate(sample)
    assert sample.pool_share == 1.0
    for name, value in (
        ("roots", actual.roots),
        ("anchors", actual.anchors),
        ("distinct contexts scored", actual.passes),
    ):
        figure = estimate.figure(name)
        assert figure.low == figure.value == figure.high == pytest.approx(value), name
    assert actual.roots > 2


def test_a_trial_writes_nothing_to_the_data(make: Make) -> None:
    settings = make()
    plan = plan_of(settings)
    before = sorted(Path(settings.data_uri).rglob("*"))
    take_sample(settings, plan, LITTLE)
    assert sorted(Path(settings.data_uri).rglob("*")) == before


@pytest.mark.parametrize("is_embedded", [False, True])
def test_all_parts_together_fit_the_time(is_embedded: bool) -> None:
    """Both commands took longer than the run that they were to foresee."""
    speed = Speed(chunks=8, chars=5000, tokens=200)
    fitted = fit_effort(Effort(), 100, speed, is_embedded)
    scored = fitted.root_tokens + fitted.verified.tokens * 4 / 3  # a third for evidence spans
    seconds = fitted.pool_chars / speed.chars + scored / speed.tokens
    assert 80 < seconds < 100
    assert (fitted.pool_chars == 0) == is_embedded
    fast = Speed(chunks=1e6, chars=1e9, tokens=1e9)
    assert fit_effort(Effort(), 100, fast, False) == Effort()


def test_a_limit_of_time_says_what_it_left_out(make: Make) -> None:
    settings = make(roots={**ROOTS, "fraction": 0.9})
    plan = plan_of(settings)
    free = take_sample(settings, plan, replace(LITTLE, minutes=None))
    limited = take_sample(settings, plan, replace(LITTLE, minutes=0.001))
    assert free.cut is None
    assert free.verified.verified_roots > limited.verified.verified_roots == 2
    assert limited.cut is not None
    assert "Stopped by --minutes 0.001: 6 of 8 roots, " in limited.cut
    wide, narrow = (make_estimate(s).figure("verified dependencies") for s in (limited, free))
    assert wide.high - wide.low > narrow.high - narrow.low


def test_an_embedded_corpus_is_searched_as_it_is(make: Make) -> None:
    """The oracle is the run: the candidates of its roots are those of the sample."""
    settings = make()
    plan = plan_of(settings)
    run_whole(settings, plan)
    before = sorted(Path(settings.data_uri).rglob("*"))
    stages: list[str] = []
    effort = replace(LITTLE, rows=200, pool_chars=0)
    sample = take_sample(settings, plan, effort, stages.append)
    assert "chunk_embeddings" not in stages
    assert "candidate_contexts" in stages
    assert sample.pool_share == 1.0
    assert sorted(Path(settings.data_uri).rglob("*")) == before
    columns = ["root_id", "anchor", "rank", "chunk_id"]
    of_run = open_store(settings).read_all(
        CANDIDATE_CONTEXTS, [s.key for s in plan.shards], "candidates", columns
    )
    expected: dict[str, set[Any]] = {row[0]: set() for row in of_run.iter_rows()}
    for root_id, *rest in of_run.iter_rows():
        expected[root_id].add(tuple(rest))
    compared = [root for root in sample.trial.candidates if root.root_id in expected]
    assert len(compared) > 4
    for root in compared:
        own = root.candidates.select(columns[1:]).iter_rows()
        assert set(own) == expected[root.root_id]
    # Under another embedder's settings the vectors are of no use.
    embedding = settings.corpus.embedding.model_copy(update={"chunk_tokens": 32})
    corpus = settings.corpus.model_copy(update={"embedding": embedding})
    other = settings.model_copy(update={"corpus": corpus})
    stages.clear()
    take_sample(other, plan, LITTLE, stages.append)
    assert "chunk_embeddings" in stages


def test_figures_per_dependency_suit_the_number_of_dependencies() -> None:
    """A corpus with 40 dependencies had 21,500 h per million of them."""
    figure = Figure("time per million dependencies", 21_500.0, 6_000.0, 50_000.0, "hours")
    shown = in_suitable_unit(figure, 40)
    assert shown == Figure("time per dependency", 0.0215, 0.006, 0.05, "hours")
    assert in_suitable_unit(figure, 4e4).name == "time per thousand dependencies"
    assert in_suitable_unit(figure, 4e4).value == pytest.approx(21.5)
    assert in_suitable_unit(figure, 4e6) == figure
    other = Figure("samples", 3, 1, 5)
    assert in_suitable_unit(other, 40) == other


def test_progress_names_the_part_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with SampleProgress(2, every=1000) as progress:
        progress.begin("chunk_embeddings")
        start = progress._start
        assert progress.line(start + 30) == (
            "chunk_embeddings … | at most about 1 min 30 s left in all"
        )
        progress.observe(ProgressState("chunks", 80, 200, 8.0, seconds_left=15))
        assert progress.line(start + 200) == (
            "chunk_embeddings: 80 of 200 chunks (40%), 8 chunks/s, 15 s left | at most about 0 s "
            "left in all"
        )
    assert "chunk_embeddings …\n" in capsys.readouterr().err


def test_no_root_is_warned_of_with_its_cause(make: Make) -> None:
    def warnings(**roots: Any) -> str:
        settings = make(roots={**ROOTS, **roots})
        return "\n".join(make_estimate(take_sample(settings, plan_of(settings), LITTLE)).warnings)

    assert "No root: 80 of 80 documents" in warnings(min_tokens=700, max_tokens=900)
    assert "Raise roots.number" in warnings(fraction=0.0001)
    assert "shards will have no root" in warnings(fraction=0.02)
    assert "root" not in warnings(fraction=0.5)


def test_other_sizes_scale_what_they_concern(make: Make) -> None:
    settings = make()
    sample = take_sample(settings, plan_of(settings), LITTLE)
    base = make_estimate(sample)
    tenfold = make_estimate(sample, Size(10 * base.figure("documents").value, "documents"))
    for name in ("chunks", "roots", "forward tokens"):
        assert tenfold.figure(name).value == pytest.approx(10 * base.figure(name).value)
    many = make_estimate(sample, Size(1000, "samples"), hour_price=2)
    assert many.figure("samples").value == pytest.approx(1000, rel=1e-3)
    assert many.figure("documents").value == base.figure("documents").value
    hours, money = many.figure("time per sample"), many.figure("cost per sample")
    assert money.value == pytest.approx(2 * hours.value)
    wished = make(roots={"number": 30, "fraction": None, "min_tokens": 40, "max_tokens": 600})
    of_number = take_sample(wished, plan_of(wished), LITTLE)
    more = make_estimate(of_number, Size(10_000, "documents"))
    assert more.figure("roots").value == make_estimate(of_number).figure("roots").value


@pytest.mark.parametrize("text", ["1e9", "documents", "0 roots", "5 shards", "1,2.3.4 roots", ""])
def test_parse_size_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(SizeError, match="not a size; write 'paper'"):
        parse_size(text)


def test_parse_size_reads_numbers_as_people_write_them() -> None:
    assert parse_size("1e9 documents") == Size(1e9, "documents")
    assert parse_size("20_000 roots") == parse_size("20,000roots") == Size(20_000, "roots")


def test_a_wrong_text_field_is_an_error(
    corpus: Path, tmp_path: Path, tiny_models: tuple[str, str]
) -> None:
    values = tiny_values(corpus, tmp_path / "data", tiny_models)
    values["corpus"] |= {"on_bad_row": "skip"}
    values["corpus"]["sources"][0] |= {"text_field": "content", "id_field": None}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(values))
    for command in ("estimate", "scan"):
        failed = CliRunner().invoke(
            app, [command, "-s", str(file)], env={"DAGSTER_HOME": str(tmp_path / "home")}
        )
        assert failed.exit_code == 2, command
        for part in ("source 'tiny'", "no field 'content' (the fields: text)", "text_field"):
            assert part in failed.output, command
    assert not list((tmp_path / "data").rglob("shards.json"))


def test_no_document_is_an_error_of_one_line(make: Make) -> None:
    settings = make()
    strict = settings.corpus.model_copy(update={"min_chars": 10**6})
    with pytest.raises(TrialError, match="none of 80 rows looked at becomes a document"):
        take_sample(settings.model_copy(update={"corpus": strict}), plan_of(settings), LITTLE)


def test_command_prints_intervals_and_what_they_are_from(
    corpus: Path, tmp_path: Path, tiny_models: tuple[str, str]
) -> None:
    file = tmp_path / "settings.yaml"
    values = tiny_values(corpus, tmp_path / "data", tiny_models, roots=ROOTS)
    file.write_text(yaml.safe_dump(values))
    printed = CliRunner().invoke(
        app,
        [
            "estimate",
            "-s",
            str(file),
            "--rows",
            "60",
            "--roots",
            "4",
            "--hour-price",
            "3",
            "--minutes",
            "0",
        ],
    )
    assert printed.exit_code == 0, printed.output
    for part in ("forward tokens", "95% from", "cost per ", "of 4 shards"):
        assert part in printed.output
    assert " 0.00 h" not in printed.output
