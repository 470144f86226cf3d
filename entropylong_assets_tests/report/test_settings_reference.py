"""docs/settings.md is what the code generates, and says what the settings really are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from entropylong_assets.pipeline import STAGES
from entropylong_assets.report.settings_reference import settings_page
from entropylong_assets.stages.settings_models import sections

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
TEXT = settings_page(STAGES)


def test_page_is_up_to_date() -> None:
    """If this fails: `make settings-reference`."""
    assert PAGE.read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize("scope", ["corpus", "dataset"])
def test_every_setting_has_a_described_row_in_its_section(scope: str) -> None:
    seen = 0
    for name, section in sections(STAGES, scope).items():
        part = TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0]
        rows = {row.split("`")[1]: row for row in part.splitlines() if row.startswith("| `")}
        assert list(rows) == list(section.model_fields)
        for setting, row in rows.items():
            assert row.replace(r"\|", "").count("|") == 5, row
            assert len(row.rstrip("| ").rpartition("| ")[2]) > 10, f"{name}.{setting}"
            seen += 1
    assert seen > 15


@pytest.mark.parametrize(
    "row",
    [
        "| `epsilon` | number < 1 | `0.4` |",
        "| `max_containment` | number > 0 and ≤ 1 | `0.2` |",
        "| `tokens` | integer ≥ 16 | `131072` |",
        "| `fill` | `verified_only`, `hard_negatives`, `corpus` | `hard_negatives` |",
        "| `pack_tokens` | integer ≥ 16 or `null` | `null` |",
        "| `formats` | list of: string | `mds`, `parquet` |",
        r'| `separator` | string | `"\n\n"` |',
        "| `trust_remote_code` | boolean | `false` |",
        "| `name` | string | required |",
        "| `overlap` | number > 0 and ≤ 1 | `0.5` |",  # of corpus.decontaminate
        "| `use` | string | required |",  # of corpus.filters
    ],
)
def test_row_says_what_the_setting_accepts(row: str) -> None:
    """Written by hand from the classes."""
    assert row in TEXT


def test_profiles_are_shown() -> None:
    assert re.search(r"### paper\n\n```yaml\n.*model: meta-llama/Meta-Llama-3-8B", TEXT, re.DOTALL)
