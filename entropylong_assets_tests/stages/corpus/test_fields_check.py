"""A text field that no row has is a wrong setting; a single row without it is a bad row."""

from __future__ import annotations

from pathlib import Path

import pytest

from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.fields_check import ROWS, require_fields
from entropylong_assets.stages.corpus.shards import plan_shards
from entropylong_assets_tests.stages.corpus.files_for_tests import settings_for, write_rows


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_field_that_no_row_has_is_refused_under_skip_too(tmp_path: Path, suffix: str) -> None:
    """The failure: `skip` dropped all rows, and the corpus was empty without an error."""
    write_rows(tmp_path / f"a.{suffix}", [{"text": f"text {i}"} for i in range(20)])
    corpus = settings_for(tmp_path, on_bad_row="skip", text_field="content")
    with pytest.raises(CorpusError) as caught:
        require_fields(corpus, plan_shards(corpus))
    for part in ("source 's'", "no field 'content' (the fields: ", "text_field"):
        assert part in str(caught.value)
    right = settings_for(tmp_path)
    require_fields(right, plan_shards(right))


def test_single_rows_without_the_field_are_no_error(tmp_path: Path) -> None:
    rows = [{"other": "x"} for _ in range(ROWS - 1)] + [{"text": "y"}]
    write_rows(tmp_path / "a.jsonl", rows)
    corpus = settings_for(tmp_path)
    require_fields(corpus, plan_shards(corpus))


def test_new_files_are_looked_at_first_and_missing_ones_passed_over(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "x"}] * 3)
    corpus = settings_for(f"{tmp_path}/*.jsonl")
    known = plan_shards(corpus).shards
    write_rows(tmp_path / "b.jsonl", [{"content": "x"}] * 3)
    with pytest.raises(CorpusError, match=r"b\.jsonl"):
        require_fields(corpus, plan_shards(corpus, known))
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "a.jsonl").rename(tmp_path / "a.txt")
    require_fields(corpus, plan_shards(corpus, known))
