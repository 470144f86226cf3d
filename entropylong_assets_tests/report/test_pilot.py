"""A pilot shows pairs as they are in the texts, suggests settings, and publishes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.report.corpus_sample import Sample, take_sample
from entropylong_assets.report.effort import Effort
from entropylong_assets.report.pilot import make_pilot
from entropylong_assets.report.suggestions import WITHHELD
from entropylong_assets.report.verified_sample import Budget
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.model import Tokenizer, load_tokenizer
from entropylong_assets_tests.report.whole_run import plan_of
from entropylong_assets_tests.tiny_world import WORDS, tiny_settings, tiny_values

FEW = Effort(roots=4, root_tokens=10**6, verified=Budget(20_000, None))


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> Settings:
    return tiny_settings(tiny_corpus, tmp_path_factory.mktemp("data"), tiny_models)


@pytest.fixture(scope="module")
def sample(settings: Settings) -> Sample:
    return take_sample(settings, plan_of(settings), FEW)


@pytest.fixture(scope="module")
def tokenizer(settings: Settings) -> Tokenizer:
    return load_tokenizer(settings.scoring)


def test_shown_pairs_are_what_the_rule_decided(sample: Sample, tokenizer: Tokenizer) -> None:
    pilot = make_pilot(sample, tokenizer, 3, None)
    assert pilot.accepted
    assert pilot.rejected
    assert {pair.verdict for pair in pilot.accepted} == {"accepted"}
    assert "accepted" not in {pair.verdict for pair in pilot.rejected}
    assert len({pair.chunk_id for pair in pilot.accepted}) == len(pilot.accepted)
    epsilon = sample.settings.verification.epsilon
    for pair in pilot.accepted:
        assert pair.gain == pytest.approx((pair.entropy - pair.entropy_context) / pair.entropy)
        assert pair.calibrated_gain is not None
        assert pair.calibrated_gain > epsilon
        text = pair.context_before + pair.evidence + pair.context_after
        assert set(re.findall(r"[a-z]{4,}", text.lower())) & set(WORDS)


def test_funnel_counts_each_step(sample: Sample, tokenizer: Tokenizer) -> None:
    pilot = make_pilot(sample, tokenizer, 0, None)
    counts = {name: count for name, count, _ in pilot.funnel}
    pairs = sample.verified.tables["pairs"]
    assert counts["rows looked at"] == 24
    assert counts["documents"] == 23  # one stands in both files
    assert counts["roots of the pilot"] == 4
    assert counts["pairs verified"] == len(pairs.filter(pairs["entropy_context"].is_not_null()))
    assert counts["accepted by calibrated"] == pairs["accepted"].sum() > 0
    assert not pilot.accepted
    assert pilot.empty is None


def test_wished_samples_lead_to_a_number_of_roots(sample: Sample, tokenizer: Tokenizer) -> None:
    few, many = (make_pilot(sample, tokenizer, 0, n).suggestions[-1] for n in (3, 10_000))
    assert few.setting == many.setting == "roots.number"
    assert few.value == "24", "the corpus has 24 rows"
    assert "The corpus has only 24 rows" in few.basis
    # From four roots, 10,000 samples may as well be 400.
    assert many.value == WITHHELD
    assert "only 4 roots were verified" in many.basis


def test_nothing_accepted_names_the_first_empty_stage(
    settings: Settings, tokenizer: Tokenizer
) -> None:
    entropy = settings.entropy.model_copy(update={"alpha": 50.0})
    calm = settings.model_copy(update={"entropy": entropy})
    pilot = make_pilot(take_sample(calm, plan_of(calm), FEW), tokenizer, 3, 5)
    assert pilot.empty is not None
    assert "entropy.alpha" in pilot.empty
    assert pilot.accepted == pilot.rejected == []


def test_command_prints_plain_lines_and_publishes_nothing(
    tmp_path: Path, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(tiny_values(tiny_corpus, tmp_path / "data", tiny_models)))
    printed = CliRunner().invoke(
        app,
        ["pilot", "-s", str(file), "--roots", "3", "--tokens", "9000", "--samples", "5"],
    )
    assert printed.exit_code == 0, printed.output
    for part in ("Accepted 1", "Rejected 1", "Funnel", "retrieval.top_k", "from 3 roots"):
        assert part in printed.stdout
    assert "\x1b" not in printed.stdout
    assert not re.search("[│╭━]", printed.stdout)
    assert not list((tmp_path / "data").rglob("*")), "a pilot published something"
