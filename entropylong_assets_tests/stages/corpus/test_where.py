"""`where` and `metadata_fields`: which rows are read and skipped, and which fields are stored."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from entropylong_assets.settings.profiles import PROFILES
from entropylong_assets.settings.section import SettingsError
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.readers import read_rows
from entropylong_assets.stages.corpus.rows import BadRow, NotSelected, Row
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shards import plan_shards
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.corpus.where import WhereError, parse_where
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.corpus.files_for_tests import (
    ingest,
    ingest_one,
    settings_for,
)

VALUES = {"score": 3, "lang": "en", "url": None, "meta.score": 0.5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score >= 3", True),
        ("score > 3", False),
        ("score != 3 or lang == 'en'", True),
        ("not (score < 4 and lang in ['de', 'en'])", False),
        ("url is None", True),
        ("url is not None", False),
        ("url == 'x'", False),
        ("url != 'x'", False),
        ("meta.score > 0.4", True),
        ("lang not in ('de', 'fr')", True),
    ],
)
def test_conditions(text: str, expected: bool) -> None:
    assert parse_where(text).matches(VALUES) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score >", "not a condition"),
        ("score", "only comparisons"),
        ("score = 3", "not a condition"),
        ("score > lang", "right side"),
        ("3 < score", "left side"),
        ("1 < score < 4", "left side|chain"),
        ("__import__('os').system('x') == 1", "left side"),
        ("score == None", "is None"),
        ("score in 3", "needs a list"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_where(text)
    with pytest.raises(SettingsError, match="where"):
        settings_for("x.jsonl", where=text)


def test_text_is_not_compared_with_numbers() -> None:
    with pytest.raises(WhereError, match=r"field 'lang' is text, .* compares with a number"):
        parse_where("lang > 3").matches(VALUES)


@pytest.mark.parametrize("condition", ["n == 5", "n > 17", "n in [3, 11]", "not n < 8", "n <= 2"])
def test_bounds_exclude_only_what_cannot_match(condition: str) -> None:
    where = parse_where(condition)
    for low in range(20):
        for high in range(low, 20):
            some = any(where.matches({"n": n}) for n in range(low, high + 1))
            if some:
                assert where.may_match({"n": (low, high)})
    assert not all(where.may_match({"n": (n, n)}) for n in range(20)) or "not" in condition


class HubFiles:
    """Schemas and file names of the two data sets of the paper, as others have seen them.

    FineWeb-Edu (HuggingFaceFW/fineweb-edu, `data/<dump>/` and `sample/<size>/`). Names and types of
    the columns are in the card of airtrain-ai/fineweb-edu-fortified, which passes them on and adds
    two of its own. Two layouts exist:

    - Files of 2024, `data/CC-MAIN-2013-20/train-00000-of-00014.parquet`, without `date`: notes of
      `load_dataset(...)` in public training scripts (`features: ['text', 'id', 'dump', 'url',
      'file_path', ...]`, 9,672,101 rows of the sample 10BT).
    - Present files, `data/CC-MAIN-2024-51/000_00000.parquet` and `sample/10BT/000_00000.parquet`,
      with `date` after `url`: the output of `load_dataset` on that file in a public translation
      script. Its type is not in any of these; text is assumed, as FineWeb's card shows values such
      as 2013-05-18T05:48:54Z.

    Cosmopedia (HuggingFaceTB/cosmopedia, `data/<config>/train-<n>-of-<m>.parquet`). `dataset_info`
    of its card: six columns, in an order of each configuration. Numbers of files: addresses of
    files in public download scripts (stanford 13, auto_math_text 18, web_samples_v2 118). The
    number of files of `stories` is not in any of these.
    """

    FINEWEB_EDU = pa.schema(
        [
            ("text", pa.string()), ("id", pa.string()), ("dump", pa.string()),
            ("url", pa.string()), ("date", pa.string()), ("file_path", pa.string()),
            ("language", pa.string()), ("language_score", pa.float64()),
            ("token_count", pa.int64()), ("score", pa.float64()), ("int_score", pa.int64()),
        ]
    )  # fmt: skip
    FINEWEB_EDU_2024 = FINEWEB_EDU.remove(FINEWEB_EDU.get_field_index("date"))
    FINEWEB_EDU_FILES = (
        ("data/CC-MAIN-2013-20/train-00000-of-00014.parquet", FINEWEB_EDU_2024),
        ("data/CC-MAIN-2024-51/000_00000.parquet", FINEWEB_EDU),
    )
    COSMOPEDIA = pa.schema(
        [
            ("prompt", pa.string()), ("text_token_length", pa.int64()), ("text", pa.string()),
            ("seed_data", pa.string()), ("format", pa.string()), ("audience", pa.string()),
        ]
    )  # fmt: skip
    COSMOPEDIA_FILES: ClassVar[dict[str, tuple[str, ...]]] = {
        "auto_math_text/train-00000-of-00018": ("prompt", "text_token_length", "text"),
        "stanford/train-00000-of-00013": ("text_token_length", "prompt", "text"),
        "stories/train-00000-of-00043": ("text", "prompt", "text_token_length"),
    }
    """First columns of some configurations; `seed_data`, `format` and `audience` follow."""


def fineweb_row(i: int) -> dict[str, Any]:
    return {
        "text": f"Page {i}: " + f"word{i} " * 50,
        "id": f"<urn:uuid:{i:032x}>",
        "dump": "CC-MAIN-2013-20" if i < 20 else "CC-MAIN-2024-10",
        "url": f"http://example.org/{i}",
        "date": "2013-05-18T05:48:54Z",
        "file_path": "s3://commoncrawl/crawl-data/x.warc.gz",
        "language": "en",
        "language_score": 0.9,
        "token_count": 60,
        "score": 2.5 + i / 20,
        "int_score": round(2.5 + i / 20),
    }


@pytest.fixture(params=HubFiles.FINEWEB_EDU_FILES, ids=["2024", "present"])
def fineweb(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A file in one of the two layouts; 8 rows per row group."""
    name, schema = request.param
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    table = pa.Table.from_pylist([fineweb_row(i) for i in range(40)], schema)
    pq.write_table(table, path, row_group_size=8)
    return path


def test_fineweb_edu_is_read_as_it_is(fineweb: Path, tmp_path: Path) -> None:
    settings = settings_for(
        f"{tmp_path}/data/**/*.parquet", tmp_path / "out", id_field="id",
        metadata_fields=["url", "dump", "score"], where="score >= 3 and dump == 'CC-MAIN-2024-10'",
    )  # fmt: skip
    store, key = ingest_one(settings)
    documents = store.read(CORPUS_DOCUMENTS, key, "documents")
    assert documents["row"].to_list() == list(range(20, 40))
    assert documents["external_id"][0] == f"<urn:uuid:{20:032x}>"
    metadata = store.read(CORPUS_DOCUMENTS, key, "metadata")
    assert metadata["doc_id"].to_list() == documents["doc_id"].to_list()
    assert json.loads(metadata["metadata"][0]) == {
        "url": "http://example.org/20", "dump": "CC-MAIN-2024-10", "score": 3.5,
    }  # fmt: skip
    summary = store.summary(CORPUS_DOCUMENTS, key)
    assert (summary.rows_read, summary.documents, summary.not_selected) == (20, 20, 20)


def test_row_groups_that_cannot_match_are_not_decoded(
    fineweb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = pq.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        read.extend(kwargs["row_groups"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    source = SourceSettings(name="s", uri=str(fineweb), where="dump == 'CC-MAIN-2024-10'")
    items = list(read_rows(str(fineweb), "parquet", source))
    assert read == [2, 3, 4], "20 rows are two groups of 8 and half of the third"
    skipped = [item for item in items if isinstance(item, NotSelected)]
    assert sum(item.n_rows for item in skipped) == 20
    assert [(item.row, item.n_rows) for item in skipped[:2]] == [(0, 8), (8, 8)]
    assert [item.row for item in items if isinstance(item, Row)] == list(range(20, 40))


def test_a_shard_within_a_skipped_group_counts_its_own_rows(fineweb: Path) -> None:
    source = SourceSettings(name="s", uri=str(fineweb), where="score > 100")
    items = list(read_rows(str(fineweb), "parquet", source, 5, 12))
    assert all(isinstance(item, NotSelected) for item in items)
    assert sum(item.n_rows for item in items) == 7  # type: ignore[union-attr]


def test_both_layouts_of_fineweb_edu_are_one_source(tmp_path: Path) -> None:
    for number, (name, schema) in enumerate(HubFiles.FINEWEB_EDU_FILES):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        rows = [fineweb_row(i) for i in range(20 * number, 20 * number + 20)]
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    paper = PROFILES["paper"]["corpus"]["sources"][0]
    settings = settings_for(
        f"{tmp_path}/data/**/*.parquet", tmp_path / "out",
        **{name: paper[name] for name in ("id_field", "metadata_fields")}, where="score >= 3",
    )  # fmt: skip
    store = TableStore(settings.data_uri, settings.name)
    documents, dropped, summaries = ingest(settings, store)
    assert (len(summaries), dropped) == (2, [])
    expected = [fineweb_row(i)["id"] for i in range(10, 40)]
    assert sorted(d["external_id"] for d in documents) == sorted(expected)
    for shard in plan_shards(settings).shards:
        metadata = store.read(CORPUS_DOCUMENTS, shard.key, "metadata")["metadata"]
        assert {frozenset(json.loads(m)) for m in metadata} == {frozenset(paper["metadata_fields"])}


@pytest.mark.parametrize("name", HubFiles.COSMOPEDIA_FILES)
def test_cosmopedia_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data" / f"{name}.parquet"
    path.parent.mkdir(parents=True)
    rows = [
        {
            "prompt": "Write a story.", "text_token_length": 300 + i, "text": f"Story {i}. " * 20,
            "seed_data": "ultrachat", "format": "story_life_lessons", "audience": "children",
        }
        for i in range(5)
    ]  # fmt: skip
    columns = [*HubFiles.COSMOPEDIA_FILES[name], "seed_data", "format", "audience"]
    table = pa.Table.from_pylist(rows, HubFiles.COSMOPEDIA).select(columns)
    pq.write_table(table, path)
    paper = PROFILES["paper"]["corpus"]["sources"][1]
    settings = settings_for(
        f"{tmp_path}/data/**/*.parquet", tmp_path / "out",
        metadata_fields=paper["metadata_fields"],
        where="text_token_length > 301 and audience == 'children'",
    )  # fmt: skip
    store, key = ingest_one(settings)
    assert store.read(CORPUS_DOCUMENTS, key, "documents")["row"].to_list() == [2, 3, 4]
    assert store.summary(CORPUS_DOCUMENTS, key).not_selected == 2
    metadata = store.read(CORPUS_DOCUMENTS, key, "metadata")["metadata"]
    assert set(json.loads(metadata[0])) == set(paper["metadata_fields"])


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_other_formats_select_alike(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    rows = [{"text": f"text {i} " * 9, "lang": "en" if i % 3 else "de"} for i in range(9)]
    if suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "lang"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    settings = settings_for(path, tmp_path / "out", where="lang == 'en'", metadata_fields=["lang"])
    store, key = ingest_one(settings)
    assert store.read(CORPUS_DOCUMENTS, key, "documents")["row"].to_list() == [1, 2, 4, 5, 7, 8]
    assert store.summary(CORPUS_DOCUMENTS, key).not_selected == 3


def test_an_unknown_field_is_a_fault_and_drops_nothing_silently(
    fineweb: Path, tmp_path: Path
) -> None:
    source = SourceSettings(name="s", uri=str(fineweb), where="skore >= 3")
    (item,) = read_rows(str(fineweb), "parquet", source)
    assert isinstance(item, BadRow)
    assert (item.reason, "no field 'skore'" in item.detail) == ("missing_field", True)
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "x", "score": "high"}\n{"text": "x"}\n')
    source = SourceSettings(name="s", uri=str(lines), where="score >= 3")
    reasons = [item.reason for item in read_rows(str(lines), "jsonl", source)]  # type: ignore[union-attr]
    assert reasons == ["not_comparable", "missing_field"]


def test_a_format_without_fields_refuses_a_condition(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    source = SourceSettings(name="s", uri=str(path), where="score >= 3")
    with pytest.raises(CorpusError, match="need a format with fields, which 'text' is not"):
        list(read_rows(str(path), "text", source))
