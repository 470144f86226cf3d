"""Filters by callables: verdicts become rows in `dropped`, and faults one plain line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.filter_registry import DocumentFilter, Dropped, Verdict
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets_tests.stages.corpus.files_for_tests import ingest_one, settings_for

HERE = __name__
TEXTS = [f"document {i} with {'digits 123456789 ' * i}and words" for i in range(6)]


def digits(most: int) -> DocumentFilter:
    def judge(documents: pl.DataFrame) -> list[Verdict]:
        counts = documents["text"].str.count_matches("[0-9]")
        return [Dropped("digits", f"{n} digits") if n > most else None for n in counts]

    return judge


def wrong_number() -> DocumentFilter:
    return lambda documents: [None]


def keeps_low(example: dict[str, Any]) -> bool:
    return example["score"] < 3


def keeps_low_batched(examples: dict[str, Sequence[Any]], bound: int) -> list[bool]:
    return [score < bound for score in examples["score"]]


def adds_quality(example: dict[str, Any]) -> dict[str, Any]:
    return {"quality": 0 if "digits" in example["text"] else 1}


def use_digits(name: str) -> dict[str, Any]:
    arguments = {"function": f"{HERE}:digits", "most": 18}
    return {"name": name, "use": "callable", "arguments": arguments}


def run(folder: Path, *filters: dict[str, Any]) -> tuple[list[str], pl.DataFrame]:
    source = folder / "documents.jsonl"
    rows = [{"text": text, "score": i} for i, text in enumerate(TEXTS)]
    source.write_text("\n".join(map(json.dumps, rows)))
    settings = settings_for(
        source, folder / "data", min_chars=5, filters=filters, metadata_fields=["score"]
    )
    store, key = ingest_one(settings)
    summary = store.summary(CORPUS_DOCUMENTS, key)
    assert summary.rows_read == len(TEXTS) == summary.documents + sum(summary.dropped.values())
    documents = store.read(CORPUS_DOCUMENTS, key, "documents")["text"].to_list()
    return documents, store.read(CORPUS_DOCUMENTS, key, "dropped")


def test_a_function_of_the_protocol_drops_with_its_reason(tmp_path: Path) -> None:
    own = {
        "name": "few",
        "use": "callable",
        "arguments": {"function": f"{HERE}:digits", "most": 18},
    }
    documents, dropped = run(tmp_path, own)
    assert documents == TEXTS[:2]
    assert dropped["reason"].unique().to_list() == ["few.digits"]
    assert dropped.select("row", "detail").row(0) == (2, "19 digits")


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"function": f"{HERE}:keeps_low"}, 3),
        (
            {
                "function": f"{HERE}:keeps_low_batched",
                "batched": True,
                "arguments": {"bound": 2},
            },
            2,
        ),
        ({"function": f"{HERE}:adds_quality", "column": "quality"}, 1),
    ],
)
def test_a_function_of_datasets_runs_unchanged(
    tmp_path: Path, arguments: dict[str, Any], kept: int
) -> None:
    documents, dropped = run(tmp_path, {"name": "low", "use": "datasets", "arguments": arguments})
    assert documents == TEXTS[:kept]
    assert dropped["reason"].to_list() == ["low.filtered"] * (len(TEXTS) - kept)


def test_a_filter_of_datatrove_runs_unchanged(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    documents, dropped = run(
        tmp_path,
        {
            "name": "score",
            "use": "datatrove",
            "arguments": {"filter": f"{HERE}:lambda_filter"},
        },
    )
    assert documents == TEXTS[:4]
    assert dropped["reason"].to_list() == ["score.filtered"] * 2


def __getattr__(name: str) -> Any:
    if name != "lambda_filter":
        raise AttributeError(name)
    from datatrove.pipeline.filters import LambdaFilter

    return LambdaFilter(lambda document: document.metadata["score"] < 4)


def test_later_filters_see_what_is_left(tmp_path: Path) -> None:
    first = {"name": "a", "use": "datasets", "arguments": {"function": f"{HERE}:keeps_low"}}
    second = {
        "name": "b",
        "use": "callable",
        "arguments": {"function": f"{HERE}:digits", "most": 18},
    }
    documents, dropped = run(tmp_path, first, second)
    assert documents == TEXTS[:2]
    assert dropped["reason"].to_list() == ["b.digits"] + ["a.filtered"] * 3


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"function": "no_such_module_:f"}, "filter 'f': it can't be made .*no_such_module_"),
        (
            {"function": f"{HERE}:wrong_number"},
            "filter 'f': it failed .*1 verdicts for 6 documents",
        ),
        ({"function": f"{HERE}:digits"}, "filter 'f': it can't be made .*most"),
    ],
)
def test_a_fault_of_a_filter_is_one_line(tmp_path: Path, own: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        run(tmp_path, {"name": "f", "use": "callable", "arguments": own})


def test_an_unknown_filter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no document filter 'langid'; there are callable"):
        settings_for(tmp_path / "x.jsonl", filters=[{"name": "f", "use": "langid"}])
