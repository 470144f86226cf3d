"""A partition is published as a whole or not at all, even if its writer is killed."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from entropylong_assets.stages.embeddings import tables as embeddings_tables
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage import duck, tables
from entropylong_assets.storage.folders import temporary_folder
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import MANIFEST, WHOLE, TableStore
from entropylong_assets_tests.forkserver import PROCESSES

SHARD = WHOLE
EMBEDDING_INDEX = replace(
    embeddings_tables.EMBEDDING_INDEX,
    schemas={n: embeddings_tables.EMBEDDING_INDEX.schemas[n] for n in ("shards", "duplicates")},
)
"""Two of its tables are enough here."""


def shard_rows(generation: int, n: int = 4) -> list[dict[str, Any]]:
    return [
        {"shard": f"s-{i}", "position": i, "data_version": f"v{generation}", "n_chunks": generation}
        for i in range(n)
    ]


def copy_rows(generation: int, n: int = 3) -> list[dict[str, Any]]:
    return [{"doc_id": f"d{i}", "shard": "s", "owner": "o", "n_chunks": generation}
            for i in range(n)]  # fmt: skip


def write(store: TableStore, generation: int, n: int = 4, shard: str = SHARD) -> None:
    with store.write(EMBEDDING_INDEX, shard, fingerprint=f"f{generation}") as writer:
        writer.append("shards", shard_rows(generation, n))
        writer.append("duplicates", copy_rows(generation, n))
        writer.summary["generation"] = generation


def generation_of(store: TableStore) -> int | None:
    """The generation of all files of a partition, whose bytes are as the manifest says."""
    manifest = store.manifest(EMBEDDING_INDEX, SHARD)
    if manifest is None:
        return None
    generation = manifest.summary["generation"]
    assert manifest.fingerprint == f"f{generation}"
    for name, table in manifest.tables.items():
        content = store.fs.cat_file(store.path(EMBEDDING_INDEX, SHARD, name))
        assert hashlib.sha256(content).hexdigest() == table.sha256
        assert len(content) == table.bytes
        frame = store.read(EMBEDDING_INDEX, SHARD, name)
        assert len(frame) == table.rows > 0
        assert set(frame["n_chunks"]) == {generation}
    return int(generation)


def files_of(store: TableStore, shard: str = SHARD) -> list[str]:
    return sorted(
        path.rpartition("/")[2] for path in store.fs.ls(store.folder(EMBEDDING_INDEX, shard), False)
    )


def test_written_tables_are_read_back(store: TableStore) -> None:
    assert store.manifest(EMBEDDING_INDEX) is None
    assert store.shards(EMBEDDING_INDEX) == []
    write(store, 7)
    assert generation_of(store) == 7
    assert store.shards(EMBEDDING_INDEX) == [SHARD]
    assert store.read(EMBEDDING_INDEX, SHARD, "shards").to_dicts() == shard_rows(7)
    assert store.read(EMBEDDING_INDEX, SHARD, "duplicates", ["doc_id"]).columns == ["doc_id"]
    batches = list(store.batches(EMBEDDING_INDEX, SHARD, "shards", rows=3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert pl.concat(batches).to_dicts() == shard_rows(7)


def test_duckdb_reads_the_same_rows(store: TableStore) -> None:
    write(store, 7)
    views: dict[str, duck.View] = {"shards": (EMBEDDING_INDEX, [SHARD], "shards")}
    with duck.connect(store, views) as session:
        assert session.sql("SELECT sum(n_chunks), count(*) FROM shards").fetchall() == [(28, 4)]


def test_rows_of_several_batches_and_kinds_are_one_table(store: TableStore) -> None:
    with store.write(EMBEDDING_INDEX, SHARD, fingerprint="f") as writer:
        writer.append("shards", shard_rows(1)[:1])
        writer.append("shards", pl.DataFrame(shard_rows(1)[1:]).with_columns(extra=pl.lit("x")))
        writer.append("shards", [])
        assert writer.rows == {"shards": 4, "duplicates": 0}
    assert store.read(EMBEDDING_INDEX, SHARD, "shards").to_dicts() == shard_rows(1)
    empty = store.read(EMBEDDING_INDEX, SHARD, "duplicates")
    assert (len(empty), empty.columns) == (0, EMBEDDING_INDEX.schemas["duplicates"].names)


def fail_inside(store: TableStore, error: type[BaseException]) -> None:
    with store.write(EMBEDDING_INDEX, SHARD, fingerprint="f2") as writer:
        writer.append("shards", shard_rows(2))
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_partition(
    store: TableStore, error: type[BaseException]
) -> None:
    write(store, 1)
    before = files_of(store)
    with pytest.raises(error):
        fail_inside(store, error)
    assert files_of(store) == before
    assert generation_of(store) == 1


def test_an_exception_in_the_first_write_leaves_nothing(store: TableStore) -> None:
    with pytest.raises(RuntimeError):
        fail_inside(store, RuntimeError)
    assert store.manifest(EMBEDDING_INDEX) is None
    assert store.shards(EMBEDDING_INDEX) == []
    with pytest.raises(TableError, match="not materialized yet"):
        store.require(EMBEDDING_INDEX)


def test_only_the_last_two_generations_are_kept(
    store: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader may still use the previous one; older ones would accumulate."""
    monkeypatch.setattr(tables, "UNLOCKED_FOR", timedelta(seconds=-1))
    seen = []
    for generation in range(5):
        write(store, generation)
        manifest = store.require(EMBEDDING_INDEX)
        seen.append({table.file for table in manifest.tables.values()})
        assert set(files_of(store)) == set().union({MANIFEST}, *seen[-2:])
    assert len(set().union(*seen)) == 10


def test_equal_content_has_the_equal_version_wherever_it_is(tmp_path: Path) -> None:
    versions = []
    for folder in ("a", "b"):
        store = TableStore(str(tmp_path / folder))
        for generation in (1, 2, 1):
            write(store, generation)
            versions.append(store.require(EMBEDDING_INDEX).data_version)
    assert versions[0] == versions[2] == versions[3] == versions[5]
    assert versions[1] == versions[4] != versions[0]


def test_every_table_counts_in_the_version(store: TableStore) -> None:
    versions = set()
    for shards, copies in [(1, 1), (2, 1), (1, 2)]:
        with store.write(EMBEDDING_INDEX, SHARD, fingerprint="f") as writer:
            writer.append("shards", shard_rows(shards))
            writer.append("duplicates", copy_rows(copies))
        versions.add(store.require(EMBEDDING_INDEX).data_version)
    assert len(versions) == 3


def without(column: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {k: v for k, v in row.items() if k != column}


def with_value(column: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: row | {column: value}


@pytest.mark.parametrize("as_frame", [False, True], ids=["rows", "frame"])
@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("position", with_value("position", None)),
        ("position", with_value("position", "first")),
        ("position", with_value("position", 2**31)),
        ("position", with_value("position", 1.5)),
        ("position", without("position")),
        ("data_version", with_value("data_version", None)),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_the_column(
    store: TableStore, column: str, change: Callable[..., dict[str, Any]], as_frame: bool
) -> None:
    write(store, 1)
    rows: Any = [change(row) for row in shard_rows(2)]
    rows = pl.DataFrame(rows) if as_frame else rows
    with (
        pytest.raises(TableError) as caught,
        store.write(EMBEDDING_INDEX, SHARD, fingerprint="f2") as writer,
    ):
        writer.append("shards", rows)
    message = str(caught.value)
    assert message.startswith(f"table shards: column {column} ")
    assert "\n" not in message
    assert generation_of(store) == 1


@pytest.mark.parametrize("token_ids", [[1, None], None, [-1], [2**32], ["a"], 3])
@pytest.mark.parametrize("as_frame", [False, True], ids=["rows", "frame"])
def test_token_ids_that_do_not_fit_are_refused(
    store: TableStore, token_ids: Any, as_frame: bool
) -> None:
    row = {"root_id": "r", "control": 0, "chunk_ids": ["c"], "token_ids": token_ids}
    rows: Any = pl.DataFrame([row]) if as_frame else [row]
    with (
        pytest.raises(TableError, match=r"^table control_contexts: column token_ids "),
        store.write(VERIFIED_DEPENDENCIES, "s-0", fingerprint="f") as writer,
    ):
        writer.append("control_contexts", rows)


def damage(store: TableStore, content: bytes) -> None:
    store.fs.pipe_file(f"{store.folder(EMBEDDING_INDEX)}/{MANIFEST}", content)


def test_a_table_of_another_format_is_refused(store: TableStore) -> None:
    write(store, 1)
    manifest = store.require(EMBEDDING_INDEX)
    version = EMBEDDING_INDEX.format_version + 1
    other = manifest.model_copy(update={"format_version": version})
    damage(store, other.model_dump_json().encode())
    with pytest.raises(TableError, match=f"format {version}.*materialize it again"):
        store.read(EMBEDDING_INDEX, SHARD, "shards")
    write(store, 2)
    assert generation_of(store) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"asset": 3}', b"\xff\xfe"])
def test_a_damaged_manifest_is_one_line_and_heals(store: TableStore, content: bytes) -> None:
    write(store, 1)
    damage(store, content)
    with pytest.raises(TableError, match=r"damaged.*materialize it again") as caught:
        store.require(EMBEDDING_INDEX)
    assert "\n" not in str(caught.value)
    write(store, 2)
    assert generation_of(store) == 2


@pytest.mark.parametrize("fault", ["missing", "cut short", "other bytes", "empty"])
def test_a_damaged_table_is_one_line_and_heals(store: TableStore, fault: str) -> None:
    write(store, 1)
    path = store.path(EMBEDDING_INDEX, SHARD, "shards")
    whole = store.fs.cat_file(path)
    contents = {"cut short": whole[: len(whole) // 2], "other bytes": b"x" * 500, "empty": b""}
    store.fs.rm(path)
    if fault in contents:
        store.fs.pipe_file(path, contents[fault])

    def batches() -> None:
        list(store.batches(EMBEDDING_INDEX, SHARD, "shards"))

    def in_sql() -> None:
        duck.connect(store, {"shards": (EMBEDDING_INDEX, [SHARD], "shards")})

    for read in (lambda: store.read(EMBEDDING_INDEX, SHARD, "shards"), batches, in_sql):
        with pytest.raises(TableError, match=r"(missing|damaged).*materialize") as caught:
            read()
        assert "\n" not in str(caught.value)
    write(store, 2)
    assert generation_of(store) == 2


def test_a_flipped_bit_in_a_page_is_never_read_as_data(tmp_path: Path) -> None:
    """Compression does not detect every one; the checksums of Parquet pages do."""
    draw = random.Random(1)
    rows = [
        {"shard": f"{draw.getrandbits(64):x}", "position": i, "data_version": "v", "n_chunks": i}
        for i in range(200)
    ]
    store = TableStore(str(tmp_path))
    with store.write(EMBEDDING_INDEX, SHARD, fingerprint="f") as writer:
        writer.append("shards", rows)
    path = Path(store.path(EMBEDDING_INDEX, SHARD, "shards"))
    whole, detected = path.read_bytes(), 0
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in range(4, footer, 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            read = store.read(EMBEDDING_INDEX, SHARD, "shards")
        except TableError as error:
            assert "materialize" in str(error)  # noqa: PT017
            detected += 1
            continue
        # The bit is in bytes that are not needed to read the rows, such as statistics of a page.
        assert read.to_dicts() == rows, at
    assert detected > 50


def test_an_error_of_the_system_is_no_damage(tmp_path: Path) -> None:
    """Some errors that Python raises have no errno. They are transient, and retried."""
    store = TableStore(str(tmp_path))
    write(store, 1)
    for error in (TimeoutError("late"), ConnectionError("lost"), OSError(errno.EIO, "disk")):
        with pytest.raises(type(error)), store.reporting_damage(EMBEDDING_INDEX, SHARD, "shards"):
            raise error


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard on a network disk with a fault would be left out silently."""
    store = TableStore(str(tmp_path))
    for shard in ("a-00000", "b-00000"):
        write(store, 1, shard=shard)
    scan = os.scandir

    def stale(path: str) -> Any:
        if str(path).endswith("b-00000"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return scan(path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(OSError, match="Stale"):
        store.shards(EMBEDDING_INDEX)


def test_a_page_damaged_after_the_view_was_made_is_one_line(store: TableStore) -> None:
    """DuckDB reads only the footer for a view, and its message names no remedy."""
    with store.write(EMBEDDING_INDEX, SHARD, fingerprint="f") as writer:
        writer.append("shards", shard_rows(1, 5000))
    path = store.path(EMBEDDING_INDEX, SHARD, "shards")
    whole = store.fs.cat_file(path)
    views: dict[str, duck.View] = {"shards": (EMBEDDING_INDEX, [SHARD], "shards")}

    def query() -> None:
        with duck.reporting_damage(store, views), duck.connect(store, views) as session:
            store.fs.pipe_file(path, whole[:100] + bytes(300) + whole[400:])
            session.sql("SELECT sum(hash(shard)), sum(position) FROM shards").fetchall()

    with pytest.raises(TableError, match=r"damaged.*materialize") as caught:
        query()
    assert "\n" not in str(caught.value)


def test_each_session_has_its_own_folder_which_is_removed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared folder, the first session to end would remove the files of the others. A folder
    with a predictable name could be created by another user."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp'dir"))
    (tmp_path / "tmp'dir").mkdir()
    left = temporary_folder() / "duckdb-killed"
    left.mkdir()
    store = TableStore(str(tmp_path))
    sessions = [duck.connect(store, {}) for _ in range(2)]
    folders = [
        Path(session.execute("SELECT current_setting('temp_directory')").fetchall()[0][0])
        for session in sessions
    ]
    assert not left.exists()
    assert len(set(folders)) == 2
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o700
    sessions.pop(0).close()
    assert [folder.exists() for folder in folders] == [False, True]
    (last,) = sessions
    last.execute("SET memory_limit = '50MB'; SET preserve_insertion_order = false")
    last.execute("CREATE TABLE much AS SELECT range, md5(range::VARCHAR) AS m FROM range(2000000)")
    assert any(folders[1].iterdir())
    last.close()
    del last, sessions
    assert not folders[1].exists()


def write_beside_another(store: TableStore, dead: Path) -> None:
    """Write slowly while another writer publishes; what a killed writer staged is removed."""
    dead.mkdir(parents=True)
    with store.write(EMBEDDING_INDEX, SHARD, fingerprint="f1") as slow:
        assert not dead.exists()
        slow.append("shards", shard_rows(1))
        write(store, 2)
        slow.append("duplicates", copy_rows(1))
        slow.summary["generation"] = 1
    assert generation_of(store) == 1


def test_what_a_killed_writer_staged_for_object_storage_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every killed step would leave up to a shard in the temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = TableStore(f"memory://{uuid.uuid4().hex}")
    dead = temporary_folder() / "staging-dead"
    write_beside_another(store, dead)
    assert not list(temporary_folder().iterdir())


def test_a_folder_with_glob_characters_in_its_name_is_a_folder(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path / "run[1]*" / "data?"))
    write(store, 3)
    assert store.shards(EMBEDDING_INDEX) == [SHARD]
    assert generation_of(store) == 3
    with duck.connect(store, {"shards": (EMBEDDING_INDEX, [SHARD], "shards")}) as session:
        assert session.sql("SELECT count(*) FROM shards").fetchall() == [(4,)]


def test_shards_are_those_with_a_manifest_sorted(store: TableStore) -> None:
    for shard in ("b-00001", "a-00002", "b-00000"):
        write(store, 1, shard=shard)
    store.fs.makedirs(store.folder(EMBEDDING_INDEX, "half-00000"), exist_ok=True)
    store.fs.pipe_file(f"{store.folder(EMBEDDING_INDEX, 'half-00000')}/shards-00.parquet", b"PAR1")
    assert store.shards(EMBEDDING_INDEX) == ["a-00002", "b-00000", "b-00001"]


def _write_for_ever(folder: str, first: int, started: Event) -> None:
    store = TableStore(folder)
    for generation in range(first, first + 10_000):
        write(store, generation, n=2000)
        started.set()


def test_a_killed_writer_leaves_the_old_or_the_new_whole(tmp_path: Path) -> None:
    """SIGKILL at seeded moments of writing and publishing."""
    draw = random.Random(20)
    store = TableStore(str(tmp_path))
    seen: list[int] = []
    cut_short = 0
    for _ in range(10):
        first, started = (seen[-1] + 1 if seen else 1), PROCESSES.Event()
        writer = PROCESSES.Process(target=_write_for_ever, args=(str(tmp_path), first, started))
        writer.start()
        assert started.wait(30)
        time.sleep(draw.uniform(0.01, 0.08))
        writer.kill()
        writer.join()
        assert writer.exitcode == -9
        generation = generation_of(store)
        assert generation is not None
        assert generation >= first
        seen.append(generation)
        cut_short += any(name.startswith(".") for name in files_of(store))
    assert seen[-1] > len(seen)
    assert cut_short >= 2, "the writers were killed between two writes"
    write(store, 10_000_000)
    write(store, 10_000_001)
    assert generation_of(store) == 10_000_001
    assert len(files_of(store)) == 5, "files of killed writers were not removed"


def _write_some(folder: str, generations: list[int]) -> None:
    for generation in generations:
        write(TableStore(folder), generation, n=50)


def test_two_writers_of_one_partition_never_break_it(tmp_path: Path) -> None:
    """One writer must not remove the files that the other is about to name."""
    writers = [
        PROCESSES.Process(
            target=_write_some, args=(str(tmp_path), list(range(start, start + 160, 2)))
        )
        for start in (1, 2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert generation_of(TableStore(str(tmp_path))) in (159, 160)
    assert not [name for name in files_of(TableStore(str(tmp_path))) if name.startswith(".")]


def test_staged_files_of_a_running_writer_are_kept(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path))
    dead = Path(store.folder(EMBEDDING_INDEX)) / ".staging-dead"
    write_beside_another(store, dead)


def test_the_file_of_a_killed_put_is_removed_by_the_next(tmp_path: Path) -> None:
    """Otherwise every killed scan would leave a file in the folder of the corpus."""
    store = TableStore(str(tmp_path))
    (tmp_path / ".put-dead").write_bytes(b"half")
    store.put(f"{store.root}/shards.json", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["shards.json"]


def test_a_put_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TableStore(str(tmp_path))
    store.put(f"{store.root}/a.json", b"old")
    (tmp_path / "b.json").mkdir()  # a file can't take a folder's place
    with pytest.raises(OSError, match="directory"):
        store.put(f"{store.root}/b.json", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]
    assert (tmp_path / "a.json").read_bytes() == b"old"
