"""One rule for the files of a source: in a folder, under a pattern, in an object store."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.listing import (
    Listing,
    describe_passed_over,
    file_version,
    list_files,
    list_source,
)
from entropylong_assets.stages.corpus.readers import read_rows
from entropylong_assets.stages.corpus.rows import Row
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shards import plan_shards
from entropylong_assets_tests.stages.corpus.files_for_tests import settings_for

if TYPE_CHECKING:
    from entropylong_assets_tests.storage.faulty_s3 import Bucket

ROW = b'{"text": "words"}\n'


def source(uri: object, kind: str = "auto") -> SourceSettings:
    return SourceSettings(name="s", uri=str(uri), kind=kind)


def write(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ROW)
    return folder


def below(root: str, uris: Iterable[str]) -> list[str]:
    assert all(uri.startswith(f"{root}/") for uri in uris), (root, uris)
    return [uri[len(root) + 1 :] for uri in uris]


def seen(listing: Listing, root: str) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """Files with their kinds, and what was passed over, below a root."""
    files = [(below(root, [file.uri])[0], file.kind) for file in listing.files]
    return files, {why: below(root, uris) for why, uris in listing.passed_over.items()}


# Names as they occur: data of every kind, hidden ones, cards, odd characters.
FOLDERS = ["a", "b c", "_temporary", ".git", "_year=2024", "é", "100%", "a#b", "x[1]", "%20"]
FILES = [
    "a.jsonl", "b.jsonl.gz", "C.JSONL.ZST", "d.parquet", "e.csv.gz", "f.tsv", "g.txt", "h.md.gz",
    "README.md", "LICENSE", "license.txt", "dataset_infos.json", "_SUCCESS", "_metadata",
    ".a.jsonl.crc", "_tmp.jsonl", ".DS_Store", "i.png", "part-00000", "a.jsonl.md5", "Makefile",
    "q?.jsonl", "s*.jsonl", "n[0].csv", "é ü.jsonl", "50%.jsonl", "x#1.jsonl", "a+b&c=d.jsonl",
]  # fmt: skip
LAYOUTS = st.sets(
    st.tuples(st.lists(st.sampled_from(FOLDERS), max_size=2), st.sampled_from(FILES)).map(
        lambda parts: "/".join([*parts[0], parts[1]])
    ),
    min_size=1,
    max_size=12,
)
PATTERNS = [
    "", "/", "*", "**", "**/*", "*.jsonl", "**/*.jsonl", "{a,é}/**", "*/*.{jsonl,csv}*", "[a-n]*",
    "**/[!a]*", "*/", "_*/**", "**/_*", "a/*", "**/a*/**/*.*", "**/README.md", "part-*",
]  # fmt: skip


def is_expected(path: str) -> str | None:
    """The format of a file below a folder by a second, simpler reading of the rule."""
    *folders, name = path.split("/")
    for part in (*folders, name):
        if part.startswith(".") or (part.startswith("_") and "=" not in part):
            return None
    low = name.lower()
    if low in ("readme.md", "license", "license.txt", "dataset_infos.json"):
        return None
    for end in (".gz", ".zst"):
        low = low.removesuffix(end)
    kinds = {".jsonl": "jsonl", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
    kinds |= {".txt": "text", ".md": "text"}
    return next((kind for end, kind in kinds.items() if low.endswith(end)), None)


@settings(max_examples=120, deadline=None)
@given(layout=LAYOUTS, pattern=st.sampled_from(PATTERNS), kind=st.sampled_from(["auto", "jsonl"]))
@example(layout=set(FILES), pattern="", kind="auto")
@example(layout={f"{f}/{n}" for f in FOLDERS for n in FILES}, pattern="**", kind="auto")
def test_a_folder_and_an_object_store_list_the_same(
    layout: set[str], pattern: str, kind: str
) -> None:
    memory = fsspec.filesystem("memory")
    name = f"lake-{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), layout)
        for path in layout:
            memory.pipe(f"/{name}/{path}", ROW)
        try:
            tail = f"/{pattern}" if pattern not in ("", "/") else pattern
            local = seen(list_source(source(f"{folder}{tail}", kind)), folder)
            uri = f"memory:///{name}"
            far = seen(list_source(source(f"{uri}{tail}", kind)), uri)
        finally:
            memory.rm(f"/{name}", recursive=True)
    assert local == far
    if pattern in ("", "/", "**", "**/*") and kind == "auto":
        files, passed_over = local
        expected = [(path, format_) for path in sorted(layout) if (format_ := is_expected(path))]
        assert files == expected
        # Every file is listed or passed over. A hidden folder stands for its files.
        uncounted = layout - {path for path, _ in files}
        for uris in passed_over.values():
            tops = tuple(uri for uri in uris if uri.endswith("/"))
            uncounted = {p for p in uncounted if p not in uris and not p.startswith(tops)}
        assert uncounted == set()


def test_s3_lists_as_a_folder_does(bucket: Bucket, tmp_path: Path) -> None:
    layout = {*FILES, *(f"{f}/{n}" for f in FOLDERS for n in FILES[::3]), "a/a/a/deep.jsonl"}
    write(tmp_path, layout)
    for path in layout:
        bucket.put(f"in/{path}", ROW)
    # Markers of folders, as consoles and Hadoop leave them, and a neighbour with the same prefix.
    for marker in ("in/", "in/a/", "in/empty/", "in2/x.jsonl"):
        bucket.put(marker, b"" if marker.endswith("/") else ROW)
    root = f"{bucket.uri}/in"
    n_files = 0
    for pattern in PATTERNS:
        tail = f"/{pattern}" if pattern not in ("", "/") else pattern
        local = seen(list_source(source(f"{tmp_path}{tail}")), str(tmp_path))
        far = seen(list_source(source(f"{root}{tail}")), root)
        assert local == far, pattern
        n_files += len(far[0])
    assert n_files > 100
    # Whatever its name, a listed file is opened by it.
    spec = source(root)
    texts = [
        item.text
        for file in list_files(spec)
        if file.kind == "jsonl" and not file.uri.lower().endswith((".gz", ".zst"))
        for item in read_rows(file.uri, file.kind, spec)
        if isinstance(item, Row)
    ]
    assert len(texts) > 10
    assert set(texts) == {"words"}


def test_s3_object_and_folder_of_one_name(bucket: Bucket) -> None:
    bucket.put("in", ROW)
    bucket.put("in/a.jsonl", ROW)
    names = [
        [f.uri for f in list_files(source(f"{bucket.uri}/in{end}", "jsonl"))] for end in ("", "/")
    ]
    assert names == [[f"{bucket.uri}/in"], [f"{bucket.uri}/in/a.jsonl"]]


def test_all_buckets_cannot_be_listed(bucket: Bucket) -> None:
    with pytest.raises(
        CorpusError, match=r"^source 's': can't list s3://\*\*: .*; correct the uri$"
    ):
        list_source(source("s3://**"))


def test_file_names_that_chain_file_systems_are_refused(bucket: Bucket) -> None:
    bucket.put("in/c::d.jsonl", ROW)
    with pytest.raises(CorpusError, match=r"contains '::', which joins file systems .* rename it"):
        list_source(source(f"{bucket.uri}/in"))


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "json.gz", "json", "ndjson.zst"])
def test_compound_endings_are_known_below_folders_and_patterns(tmp_path: Path, ending: str) -> None:
    write(tmp_path, [f"in/a.{ending}", "in/b.txt"])
    for uri in (
        "in",
        "in/",
        "in/*",
        "in/**",
        f"in/*.{ending}",
        f"in/a.{ending}",
        f"in/?.{{x,{ending}}}",
    ):
        files = list_files(source(tmp_path / uri if uri != "in/" else f"{tmp_path}/in/", "jsonl"))
        assert [file.uri for file in files] == [str(tmp_path / f"in/a.{ending}")], uri


@pytest.mark.parametrize("name", ["_a.jsonl", ".a.jsonl", "README.md", "LICENSE.txt", "x[1].jsonl"])
def test_a_named_file_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, [name])
    assert len(list_files(source(tmp_path / name))) == 1
    # Also below a hidden folder, and with an unknown suffix if the settings name the kind.
    write(tmp_path, [f".cache/{name}", "x.dat", "data"])
    assert len(list_files(source(tmp_path / ".cache" / name))) == 1
    for other in ("x.dat", "data", "x.{dat,bin}", "*.dat", "d*"):
        assert len(list_files(source(tmp_path / other, "jsonl"))) == 1, other


def test_the_root_may_be_hidden(tmp_path: Path) -> None:
    write(tmp_path, ["_data/.v1/a.jsonl", "_data/.v1/_b.jsonl"])
    for uri in ("_data/.v1", "_data/.v1/*", "_data/.v1/**"):
        files, passed_over = seen(list_source(source(tmp_path / uri)), str(tmp_path / "_data/.v1"))
        assert files == [("a.jsonl", "jsonl")]
        assert passed_over == {"hidden": ["_b.jsonl"]}


def test_the_card_of_a_hub_is_no_document_unless_asked_for(tmp_path: Path) -> None:
    names = ["README.md", "LICENSE", "dataset_infos.json", "config.json", "data/train-0.parquet"]
    write(tmp_path, [*names, "data/README_zh.md", ".gitattributes", "docs/guide.md"])
    for uri in (tmp_path, tmp_path / "**"):
        files, passed_over = seen(list_source(source(uri)), str(tmp_path))
        assert [name for name, _ in files] == ["data/train-0.parquet", "docs/guide.md"]
        assert passed_over == {
            "hidden": [".gitattributes"],
            "repository": [
                "LICENSE", "README.md", "config.json", "data/README_zh.md", "dataset_infos.json",
            ],
        }  # fmt: skip
    asked = [f.uri for f in list_files(source(tmp_path / "**/*.md"))]
    assert below(str(tmp_path), asked) == ["README.md", "data/README_zh.md", "docs/guide.md"]
    # The name of an article may begin like that of a card.
    write(tmp_path / "wiki", ["readmes-history.txt", "licensed.txt", "notices.txt"])
    assert len(list_files(source(tmp_path / "wiki"))) == 3


def test_unknown_formats_are_passed_over_and_counted(tmp_path: Path) -> None:
    write(tmp_path, ["a.jsonl", "a.jsonl.md5", "b.png", "c.csv"])
    for uri in (tmp_path, tmp_path / "*", tmp_path / "**"):
        files, passed_over = seen(list_source(source(uri)), str(tmp_path))
        assert files == [("a.jsonl", "jsonl"), ("c.csv", "csv")]
        assert passed_over == {"unknown_format": ["a.jsonl.md5", "b.png"]}
        files, passed_over = seen(list_source(source(uri, "jsonl")), str(tmp_path))
        assert files == [("a.jsonl", "jsonl")]
        assert passed_over == {
            "unknown_format": ["a.jsonl.md5", "b.png"],
            "other_format": ["c.csv"],
        }
    shown = describe_passed_over(list_source(source(tmp_path)).passed_over)
    assert shown.startswith("no known format by the name: 2 (/")
    assert shown.isprintable()


def test_a_source_of_which_all_is_passed_over_says_so(tmp_path: Path) -> None:
    write(tmp_path, ["README.md", "_x.jsonl"])
    with pytest.raises(CorpusError) as caught:
        plan_shards(settings_for(tmp_path))
    assert str(caught.value) == (
        f"source 's': no file at {tmp_path}; put files there or correct the source's uri (passed "
        f"over: names that begin with . or _: 1 ({tmp_path}/_x.jsonl); README, LICENSE and the "
        f"like: 1 ({tmp_path}/README.md))"
    )


# ------------------------------------------------------------------------------------------- links


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path, ["elsewhere/b.jsonl", "elsewhere/deep/c.jsonl", "one.jsonl", "in/a.jsonl"])
    (tmp_path / "in/folder").symlink_to("../elsewhere")
    (tmp_path / "in/file.jsonl").symlink_to(tmp_path / "one.jsonl")
    (tmp_path / "in/again").symlink_to("folder")  # a link to a link
    for uri in ("in", "in/**", "in/**/*.jsonl", "in/{*,*/*,*/*/*}"):
        files, passed_over = seen(list_source(source(tmp_path / uri)), str(tmp_path / "in"))
        names = [name for name, _ in files]
        assert names == ["a.jsonl", "again/b.jsonl", "again/deep/c.jsonl", "file.jsonl"], uri
        assert set(passed_over) == {"repeated"}
    (tmp_path / "linked").symlink_to("in")
    assert len(list_files(source(tmp_path / "linked"))) == 4
    assert len(list_files(source(tmp_path / "linked/again/*"))) == 1


def test_cycles_of_links_end(tmp_path: Path) -> None:
    write(tmp_path, ["in/a/x.jsonl", "in/b/y.jsonl"])
    for place, target in (("in/a/up", ".."), ("in/b/a", "../a"), ("in/a/b", "../b"), ("in/c", ".")):
        (tmp_path / place).symlink_to(target)
    for uri in ("in", "in/**/*.jsonl"):
        files, passed_over = seen(list_source(source(tmp_path / uri)), str(tmp_path / "in"))
        assert [name for name, _ in files] == ["a/x.jsonl", "b/y.jsonl"]
        assert set(passed_over) == {"repeated"}


def test_a_file_keeps_its_own_name_when_links_to_it_appear(tmp_path: Path) -> None:
    write(tmp_path, ["z/file.jsonl"])
    before = list_files(source(tmp_path))
    (tmp_path / "a.jsonl").symlink_to("z/file.jsonl")
    (tmp_path / "b").symlink_to("z")
    listing = list_source(source(tmp_path))
    assert listing.files == before
    assert seen(listing, str(tmp_path))[1] == {"repeated": ["a.jsonl", "b/"]}
    # Hard links are files of their own.
    os.link(tmp_path / "z/file.jsonl", tmp_path / "hard.jsonl")
    assert len(list_files(source(tmp_path))) == 2


def test_links_that_lead_nowhere_refuse_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, ["a.jsonl"])
    (tmp_path / "b.jsonl").symlink_to("removed.jsonl")
    (tmp_path / "folder").symlink_to("/nowhere/at/all")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "_hidden").symlink_to("removed")
    for uri in ("", "*", "**"):
        files, passed_over = seen(list_source(source(tmp_path / uri)), str(tmp_path))
        assert files == [("a.jsonl", "jsonl")]
        assert passed_over == {
            "hidden": ["_hidden"],
            "dangling": ["b.jsonl", "folder", "loop.jsonl"],
        }
    with pytest.raises(CorpusError, match=r"no file at .*b\.jsonl; put files there"):
        plan_shards(settings_for(tmp_path / "b.jsonl"))


def test_an_edit_behind_a_link_is_a_change(tmp_path: Path) -> None:
    """Of the same size, reached through a link to the file, or through one to its folder."""
    target = write(tmp_path, ["out/a.jsonl"]) / "out/a.jsonl"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.jsonl").symlink_to(target)
    (tmp_path / "folder").symlink_to("out")
    os.utime(target, (1_700_000_000, 1_700_000_000))
    uris = [str(tmp_path / "in/link.jsonl"), str(tmp_path / "folder/a.jsonl")]
    before = [file_version(uri, "jsonl") for uri in uris]
    listed = [list_files(source(tmp_path / name))[0].version for name in ("in", "folder")]
    assert listed == before  # the same, however it is asked for
    target.write_bytes(ROW.replace(b"words", b"other"))
    os.utime(target, (1_700_000_001, 1_700_000_001))
    after = [file_version(uri, "jsonl") for uri in uris]
    assert all(new != old for new, old in zip(after, before, strict=True))
    assert [list_files(source(tmp_path / n))[0].version for n in ("in", "folder")] == after


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    for name in ("v1.jsonl", "v2.jsonl"):
        write(tmp_path, [name])
        os.utime(tmp_path / name, (1, 1))  # as archives and build systems set times
    link = tmp_path / "in/current.jsonl"
    link.parent.mkdir()
    link.symlink_to("../v1.jsonl")
    before = file_version(str(link), "jsonl")
    link.unlink()
    link.symlink_to("../v2.jsonl")
    assert file_version(str(link), "jsonl") != before


def test_a_moved_folder_keeps_its_versions(tmp_path: Path) -> None:
    write(tmp_path, ["in/a.jsonl"])
    (tmp_path / "in/a.jsonl").chmod(0o600)
    before = [file.version for file in list_files(source(tmp_path / "in"))]
    shutil.copytree(tmp_path / "in", tmp_path / "copied")
    (tmp_path / "copied/a.jsonl").chmod(0o644)
    assert [file.version for file in list_files(source(tmp_path / "copied"))] == before


# --------------------------------------------------------------------------------- other entries


def test_what_is_no_file_is_passed_over_unopened(tmp_path: Path) -> None:
    """A pipe without a writer would block a scan forever."""
    write(tmp_path, ["a.jsonl"])
    os.mkfifo(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        try:
            server.bind("s.jsonl")
        finally:
            os.chdir(here)
        listing = list_source(source(tmp_path))
    assert seen(listing, str(tmp_path)) == (
        [("a.jsonl", "jsonl")],
        {"special": ["pipe.jsonl", "s.jsonl"]},
    )
    with pytest.raises(CorpusError, match=r"pipe\.jsonl is not a regular file"):
        list_source(source(tmp_path / "pipe.jsonl"))


def test_a_file_that_cannot_be_opened_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [f"{name}.jsonl" for name in "abc"])
    # Simulated, because permissions do not apply to root.
    opened = fsspec.implementations.local.LocalFileSystem._open

    def refuse(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        if path.endswith("a.jsonl"):
            raise PermissionError(13, "Permission denied", path)
        return opened(self, path, *args, **kwargs)

    corpus = settings_for(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fsspec.implementations.local.LocalFileSystem, "_open", refuse)
        plan = plan_shards(corpus, max_new_files=1)
        assert [Path(shard.files[0]).name for shard in plan.shards] == ["b.jsonl"]
        assert plan.passed_over == {"forbidden": (str(tmp_path / "a.jsonl"),)}
    plan = plan_shards(corpus, plan.shards)
    assert [Path(shard.files[0]).name for shard in plan.shards] == ["b.jsonl", "a.jsonl", "c.jsonl"]
    assert plan.passed_over == {}


def test_the_platforms_own_tables_are_no_source(tmp_path: Path) -> None:
    """With the data_uri below a source, each run would read what the last one has written."""
    write(tmp_path, ["a.jsonl", "data/corpus/t.parquet", "data2/b.jsonl"])
    plan = plan_shards(settings_for(tmp_path, tmp_path / "data"))
    assert [Path(shard.files[0]).name for shard in plan.shards] == ["a.jsonl", "b.jsonl"]
    assert plan.passed_over == {"own": (f"{tmp_path}/data/",)}
    # Documents may be below the data_uri.
    plan = plan_shards(settings_for(tmp_path / "data/corpus", tmp_path / "data"))
    assert [Path(shard.files[0]).name for shard in plan.shards] == ["t.parquet"]


def test_sources_that_overlap_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ["in/a.jsonl", "in/b.jsonl", "in/x.dat"])
    monkeypatch.chdir(tmp_path)
    corpus = settings_for("in").model_copy(
        update={
            "sources": (
                SourceSettings(name="one", uri="in"),
                SourceSettings(name="two", uri=str(tmp_path / "in/a*")),
            )
        }
    )
    plan = plan_shards(corpus)
    assert len(plan.shards) == 3
    assert plan.shared == (str(tmp_path / "in/a.jsonl"),)
    # A source that goes by another name reads all its files a second time.
    renamed = corpus.model_copy(update={"sources": (SourceSettings(name="new", uri="in"),)})
    assert len(plan_shards(renamed, plan.shards).shared) == 2
