"""Source formats are found by name and by suffix, ours and those of other packages."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from entropylong_assets.settings.registry import ExtensionError
from entropylong_assets.settings.section import SettingsError
from entropylong_assets.stages.corpus.listing import list_files
from entropylong_assets.stages.corpus.registry import (
    SOURCE_FORMATS,
    SourceFormat,
    VirtualFormat,
    kind_of,
)
from entropylong_assets.stages.corpus.rows import BadRow, Item, Row, make_item
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shards import plan_shards
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.extensions import installed
from entropylong_assets_tests.stages.corpus.files_for_tests import ingest, settings_for


class Markers(SourceFormat):
    """Texts with %% between them; the example of the registry's docstring, with a bad row."""

    suffixes = (".markers", ".markers.txt")
    compressions = ()

    def count_rows(self, file: str, /) -> int:
        return len(Path(file).read_bytes().split(b"%%"))

    def read_rows(self, file: str, _source: SourceSettings, start: int, /) -> Iterator[Item]:
        for row, text in enumerate(Path(file).read_bytes().split(b"%%")):
            if row >= start and text == b"?":
                yield BadRow(file, row, None, "marker", "a question mark alone")
            elif row >= start:
                yield make_item(file, row, text, None)


class Numbers(VirtualFormat):
    """Rows without a file: with `kind: numbers`, `uri: "2 3"` has 2 + 3 rows."""

    def list_files(self, source: SourceSettings) -> list[str]:
        return [f"numbers:{n}" for n in source.uri.split()]

    def version(self, file: str) -> str:
        return f"1 of {file}"

    def count_rows(self, file: str, /) -> int:
        return int(file.partition(":")[2])

    def read_rows(self, file: str, _source: SourceSettings, start: int, /) -> Iterator[Item]:
        yield from (Row(file, row, None, f"row {row}") for row in range(start, 10**9))


@pytest.fixture(params=[{"markers": "Markers", "numbers": "Numbers"}])
def another_package(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A package with formats and these entry points, as if it were installed."""
    module = types.ModuleType("another_package")
    module.Markers, module.Numbers = Markers, Numbers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    group = "entropylong_assets.source_formats"
    points = [
        EntryPoint(name, f"another_package:{target}", group)
        for name, target in request.param.items()
    ]
    with installed(*points):
        yield


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.parquet.gz", None),
        ("x/a.jsonl.gz", "jsonl"),
        ("a.ndjson.zst", "jsonl"),
        ("a.tsv", "csv"),
        ("a.md.gz", "text"),
        ("jsonl", None),
        ("a.json", "json"),
        ("a.gz", None),
    ],
)
def test_kind_of_goes_by_the_suffix(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_built_in_formats_are_registered_once() -> None:
    assert sorted(SOURCE_FORMATS.names()) == [
        "csv", "json", "jsonl", "parquet", "python_docs", "text",
    ]  # fmt: skip


def test_settings_refuse_an_unknown_kind_and_name_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"kind: no source format .* auto, csv, jsonl.*xls"):
        settings_for("a.xls", kind="xls")
    assert settings_for("a.xls", kind="csv").sources[0].kind == "csv"


def test_a_format_of_another_package_is_read_like_ours(
    another_package: None, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.markers").write_text("one%%two%%?%%four")
    (tmp_path / "in/b.markers.txt").write_text("five%%six")
    (tmp_path / "in/c.txt").write_text("seven%%eight")
    settings = settings_for(tmp_path / "in", shard_rows=3, on_bad_row="skip")
    assert [file.kind for file in list_files(settings.sources[0])] == ["markers", "markers", "text"]
    plan = plan_shards(settings)
    assert [(s.kind, s.first_row, s.n_rows) for s in plan.shards] == [
        ("markers", 0, 3),
        ("markers", 3, 1),
        ("markers", 0, 2),
        ("text", 0, 1),
    ]
    documents, dropped, _ = ingest(settings, TableStore(str(tmp_path / "data")))
    texts = ["one", "two", "four", "five", "six", "seven%%eight"]
    assert [d["text"] for d in documents] == texts
    assert [(d["reason"], d["row"]) for d in dropped] == [("marker", 2)]
    with pytest.raises(ValueError, match="row 2: a question mark alone; correct the row, or set"):
        ingest(settings_for(tmp_path / "in"), TableStore(str(tmp_path / "data2")))
    # Named explicitly, it reads only its own files of a folder.
    only = settings_for(tmp_path / "in", kind="markers")
    assert len(list_files(only.sources[0])) == 2


def test_a_virtual_format_lists_its_own_rows(another_package: None, tmp_path: Path) -> None:
    settings = settings_for("2 3", kind="numbers", shard_rows=2)
    plan = plan_shards(settings)
    ranges = [(s.files[0], s.first_row, s.n_rows) for s in plan.shards]
    assert ranges == [("numbers:2", 0, 2), ("numbers:3", 0, 2), ("numbers:3", 2, 1)]
    documents, _, _ = ingest(settings, TableStore(str(tmp_path / "data")))
    assert [d["text"] for d in documents] == ["row 0", "row 1", "row 0", "row 1", "row 2"]
    assert plan_shards(settings, plan.shards).changed == ()


@pytest.mark.parametrize("another_package", [{"lost": "Nothing"}], indirect=True)
@pytest.mark.parametrize("kind", ["lost", "auto"])
def test_a_format_that_cannot_be_imported_is_named_in_one_line(
    another_package: None, tmp_path: Path, kind: str
) -> None:
    """Also with `auto`: it could be the format of any file."""
    (tmp_path / "a.txt").write_text("text")
    source = settings_for(tmp_path, kind=kind).sources[0]
    with pytest.raises(ExtensionError, match="source format 'lost' of another_package:Nothing"):
        list_files(source)
