"""The whole pipeline on object storage, through its faults, held against a run on a folder."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pyarrow as pa
import pytest
import s3fs

from entropylong_assets.cli.output import count_checks
from entropylong_assets.orchestration.errors import is_transient
from entropylong_assets.orchestration.local_run import register_shards, run_export, run_pipeline
from entropylong_assets.report.page import save_report
from entropylong_assets.settings.model import Settings, SourceSettings, make_settings
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.files import list_files
from entropylong_assets.stages.embeddings.table import ChunkTable, chunk_schema, open_table
from entropylong_assets.stages.training_data.publication import Publication
from entropylong_assets.storage import duck, object_storage, tables
from entropylong_assets.storage.checkpoints import Batch, KeptBatches
from entropylong_assets.storage.known_files import KnownFiles
from entropylong_assets.storage.object_storage import StorageError
from entropylong_assets.storage.s3 import S3
from entropylong_assets.storage.tables import MANIFEST, WHOLE, TableError, TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.storage.faulty_s3 import KEY_ID, SECRET, Bucket, Proxy, environment

SHARE = {"tables": 0.03, "lancedb": 0.08}
"""Of requests that meet a fault. botocore's pauses are long, LanceDB's short."""

ANSWER_SECONDS, STUCK_SECONDS = 3, 5

ASSETS = (
    "corpus_documents",
    "chunk_embeddings",
    "embedding_index",
    "entropy_scores",
    "candidate_contexts",
    "verified_dependencies",
    "long_context_samples",
)


@dataclass(frozen=True)
class Run:
    """A pipeline that ran on S3 through faults."""

    settings: Settings
    shards: tuple[str, ...]
    bucket: Bucket
    proxy: Proxy
    instance: dg.DagsterInstance
    exported: dict[str, Any]
    report: str
    home: Path
    """Folder of the Dagster instance: its events and logs."""


def on_s3(settings: Settings, bucket: Bucket) -> Settings:
    """The same pipeline with its data and its corpus in a bucket."""
    values = settings.model_dump()
    source = {**values["corpus"]["sources"][0], "uri": f"{bucket.uri}/corpus/*.jsonl"}
    values["corpus"] |= {"sources": [source]}
    values["data_uri"] = f"{bucket.uri}/some/run"
    return make_settings(values.pop("profile"), values)


@pytest.fixture(scope="module")
def through_faults(
    world: World, s3_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    bucket, home = Bucket(s3_server, "faulty-lake"), tmp_path_factory.mktemp("dagster")
    for file in sorted(world.corpus.glob("*.jsonl")):
        bucket.put(f"corpus/{file.name}", file.read_bytes())
    settings = on_s3(world.settings, bucket)
    with (
        pytest.MonkeyPatch.context() as patch,
        Proxy(s3_server, 20251002, SHARE, STUCK_SECONDS) as proxy,
        dg.DagsterInstance.local_temp(str(home)) as instance,
    ):
        for name, value in environment(proxy.url).items():
            patch.setenv(name, value)
        patch.setattr(object_storage, "ANSWER_SECONDS", ANSWER_SECONDS)
        S3.clear_instance_cache()
        # Writes are few: of these faults one is certain. The second version adds the first vectors.
        second = f"{2**64 - 1 - 2}.manifest"
        proxy.planned = [("PUT", MANIFEST, "unconfirmed"), ("PUT", second, "unconfirmed")]
        plan = register_shards(settings, instance)
        assert run_pipeline(settings, plan, instance) == 9
        exported = run_export(settings, instance)
        report = save_report(settings)
        shards = tuple(shard.key for shard in plan.shards)
        yield Run(settings, shards, bucket, proxy, instance, exported, report, home)
    S3.clear_instance_cache()


def rows_in(bucket: Bucket, asset: str, shard: str, table: str) -> pl.DataFrame:
    """A table read from the bucket by its manifest, byte by byte as that says."""
    folder = f"some/run/{asset}/{shard}"
    file = json.loads(bucket.get(f"{folder}/{MANIFEST}"))["tables"][table]
    content = bucket.get(f"{folder}/{file['file']}")
    assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    rows = pl.read_parquet(io.BytesIO(content))
    assert len(rows) == file["rows"]
    return rows


def test_all_tables_are_those_of_an_undisturbed_run(through_faults: Run, world: World) -> None:
    seen = 0
    for asset in ASSETS:
        for shard in [WHOLE] if asset == "embedding_index" else world.shards:
            for table in world.store.require(asset, shard).tables:
                there = rows_in(through_faults.bucket, asset, shard, table)
                local = world.store.read(asset, shard, table)
                if "file" in there.columns:  # where a row came from is another place
                    last = pl.col("file").str.split("/").list.last()
                    there, local = there.with_columns(last), local.with_columns(last)
                assert there.equals(local), (asset, shard, table)
                seen += len(there)
    assert set(through_faults.shards) == set(world.shards)
    assert seen > 1000


def test_the_vectors_are_those_of_an_undisturbed_run(through_faults: Run, world: World) -> None:
    """A commit that was confirmed too late must not stand there twice."""
    columns = [field.name for field in chunk_schema(1, "")]
    found = []
    for settings in (through_faults.settings, world.settings):
        tag = TableStore(settings.data_uri).require("embedding_index").summary["tag"]
        rows = pl.concat(open_table(settings.data_uri, tag).scan(columns))
        found.append(rows.sort("shard", "chunk_id"))
    assert found[0].equals(found[1])
    assert found[0].select("shard", "chunk_id").is_unique().all()
    assert len(found[0]) > 50


def test_the_counts_reconcile(through_faults: Run) -> None:
    """By the platform's own checks, and counted here from the bucket."""
    passed, evaluated = count_checks(through_faults.instance, [*through_faults.shards, WHOLE])
    assert passed == evaluated >= 2 * 31 + 3
    bucket = through_faults.bucket
    lines = sum(bucket.get(key).count(b"\n") for key in bucket.list("corpus/"))
    counts = dict.fromkeys(("documents", "dropped", "roots", "lost", "pairs", "tried"), 0)
    accepted: set[tuple[Any, ...]] = set()
    packed: set[tuple[Any, ...]] = set()
    dependency = ["root_id", "anchor", "chunk_id"]
    for shard in through_faults.shards:
        documents = rows_in(bucket, "corpus_documents", shard, "documents")
        counts["documents"] += len(documents)
        counts["dropped"] += len(rows_in(bucket, "corpus_documents", shard, "dropped"))
        counts["roots"] += documents["is_root"].sum()
        for table in ("roots", "dropped"):
            counts["lost"] += len(rows_in(bucket, "entropy_scores", shard, table))
        counts["tried"] += len(rows_in(bucket, "candidate_contexts", shard, "candidates"))
        pairs = rows_in(bucket, "verified_dependencies", shard, "pairs")
        counts["pairs"] += len(pairs)
        accepted |= set(pairs.filter("accepted").select(dependency).iter_rows())
        in_samples = rows_in(bucket, "long_context_samples", shard, "dependencies")
        packed |= set(in_samples.select(dependency).iter_rows())
    assert counts["documents"] + counts["dropped"] == lines == 24
    assert counts["roots"] == counts["lost"] > 4
    assert counts["pairs"] == counts["tried"] > 100
    assert packed == accepted
    assert len(accepted) > 5


def test_the_export_is_whole(through_faults: Run) -> None:
    """Read from the bucket: every file as the manifest says, and no other."""
    bucket = through_faults.bucket
    key = str(through_faults.exported["uri"]).removeprefix(f"{bucket.uri}/")
    manifest = json.loads(bucket.get(f"{key}/{MANIFEST}"))
    for file in manifest["files"]:
        content = bucket.get(f"{key}/{file['path']}")
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    names = {f"{key}/{file['path']}" for file in manifest["files"]} | {f"{key}/{MANIFEST}"}
    assert set(bucket.list(f"{key}/")) == names
    samples = sum(
        len(rows_in(bucket, "long_context_samples", shard, "samples"))
        for shard in through_faults.shards
    )
    assert samples == sum(manifest["splits"].values()) > 1
    for report in (str(through_faults.exported["report"]), through_faults.report):
        assert b"</html>" in bucket.get(report.removeprefix(f"{bucket.uri}/"))


def test_every_kind_of_fault_was_met(through_faults: Run) -> None:
    """Else the tests above would say nothing."""
    proxy = through_faults.proxy
    kinds = {"500", "503", "reset", "slow", "stuck", "cut", "unconfirmed"}
    wanted = {(client, kind) for client in SHARE for kind in kinds} | {("tables", "short")}
    assert set(proxy.injected) == wanted, proxy.injected
    assert proxy.requests["lancedb"] > 200
    # Whatever failed was asked for again and answered.
    assert not proxy.unmet


def test_no_secret_was_written_anywhere(through_faults: Run) -> None:
    """Not in a table, a manifest, an export or the report, nor in an event or log of Dagster."""
    places = {key: through_faults.bucket.get(key) for key in through_faults.bucket.list()}
    files = [path for path in through_faults.home.rglob("*") if path.is_file()]
    places |= {str(path): path.read_bytes() for path in files}
    assert any(path.suffix == ".db" for path in files)
    assert any(b"ASSET_MATERIALIZATION" in content for content in places.values())
    for place, content in places.items():
        for secret in (KEY_ID, SECRET):
            assert secret.encode() not in content, place


def test_the_command_line_on_s3_tells_no_secret(
    through_faults: Run, tmp_path: Path, bucket: Bucket
) -> None:
    uri = str(through_faults.exported["uri"])
    found = subprocess.run(
        [sys.executable, "-m", "entropylong_assets.cli", "verify-export", uri],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "0 faults" in found.stdout, found
    for secret in (KEY_ID, SECRET):
        assert secret not in found.stdout + found.stderr


# ----------------------------------------------------------------------------- two writers at once


def shard_rows(mark: str) -> list[dict[str, Any]]:
    return [{"shard": "s-0", "position": 0, "data_version": mark, "n_chunks": 1}]


def test_two_writers_of_one_partition_leave_one_of_them_whole(bucket: Bucket) -> None:
    """Without a lock, the second must not take the files that the first is about to name."""
    store = TableStore(f"{bucket.uri}/data")
    for mark in ("before", "long before"):
        with store.write("embedding_index", WHOLE, fingerprint=mark) as writer:
            writer.append("shards", shard_rows(mark))

    slow = TableStore(store.uri)
    slow.fs = S3(skip_instance_cache=True)
    put, between = slow.fs.pipe_file, []

    def put_after_the_other(path: str, content: bytes) -> None:
        # The files of this writer are there; its manifest comes after the other's.
        between.append(len(bucket.list("data/embedding_index/all/shards-")))
        with store.write("embedding_index", WHOLE, fingerprint="fast") as other:
            other.append("shards", shard_rows("fast"))
        put(path, content)

    slow.fs.pipe_file = put_after_the_other
    with slow.write("embedding_index", WHOLE, fingerprint="slow") as writer:
        writer.append("shards", shard_rows("slow"))
    assert between == [3]
    assert store.require("embedding_index").fingerprint == "slow"
    assert store.read("embedding_index", WHOLE, "shards").to_dicts() == shard_rows("slow")


def test_files_of_old_generations_go_after_an_hour(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TableStore(f"{bucket.uri}/data")
    for number in range(4):
        if number == 3:
            monkeypatch.setattr(tables, "UNLOCKED_FOR", timedelta(seconds=-1))
        with store.write("embedding_index", WHOLE, fingerprint=str(number)) as writer:
            writer.append("shards", shard_rows(str(number)))
        kept = len(bucket.list("data/embedding_index/all/shards-"))
        assert kept == (2 if number == 3 else number + 1)


E_DIM, EMBEDDER = 4, "test-embedder@1"


def chunk_rows(shard: str, n: int) -> pa.RecordBatch:
    rows = {
        "chunk_id": [f"{shard}-{i:05d}" for i in range(n)],
        "doc_id": [shard] * n,
        "shard": [shard] * n,
        "source": ["s"] * n,
        "start": list(range(n)),
        "end": list(range(1, n + 1)),
        "text": ["t"] * n,
        "vector": pa.FixedSizeListArray.from_arrays(
            pa.array([1.0] * n * E_DIM, pa.float32()), E_DIM
        ),
    }
    return pa.table(rows, schema=chunk_schema(E_DIM, EMBEDDER)).combine_chunks().to_batches()[0]


def chunk_counts(bucket: Bucket) -> dict[str, int]:
    rows = pl.concat(open_table(f"{bucket.uri}/data").scan(["chunk_id", "shard"]))
    assert rows.is_unique().all()
    return dict(rows["shard"].value_counts().iter_rows())


@pytest.mark.parametrize("there_before", [0, 7])
def test_two_writers_of_one_shard_s_vectors_leave_no_row_twice(
    bucket: Bucket, there_before: int
) -> None:
    """LanceDB takes both for additions; both have looked before either has written."""
    first = ChunkTable(f"{bucket.uri}/data", E_DIM, EMBEDDER)
    if there_before:
        first.replace_shard("a", [chunk_rows("a", there_before)])
    first.replace_shard("b", [chunk_rows("b", 5)])
    both_looked = threading.Barrier(2)
    faults: list[BaseException] = []

    def rows() -> Iterator[pa.RecordBatch]:
        both_looked.wait(20)
        yield chunk_rows("a", 9)

    def write() -> None:
        try:
            ChunkTable(f"{bucket.uri}/data", E_DIM, EMBEDDER).replace_shard("a", rows())
        except Exception as error:
            faults.append(error)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    if faults:  # told, to be tried again; and then it is whole
        assert all(is_transient(fault) for fault in faults), faults
        first = ChunkTable(f"{bucket.uri}/data", E_DIM, EMBEDDER)
        first.replace_shard("a", [chunk_rows("a", 9)])
    assert chunk_counts(bucket) == {"a": 9, "b": 5}


@pytest.mark.parametrize("there_before", [0, 7])
def test_a_commit_that_was_confirmed_too_late_is_not_made_twice(
    bucket: Bucket, s3_server: str, monkeypatch: pytest.MonkeyPatch, there_before: int
) -> None:
    """The store takes the commit but answers 500; LanceDB tries again, and finds itself there."""
    with Proxy(s3_server, 1, {"lancedb": 0, "tables": 0}, 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        table = ChunkTable(f"{bucket.uri}/data", E_DIM, EMBEDDER)
        if there_before:
            table.replace_shard("a", [chunk_rows("a", there_before)])
        proxy.planned.append(("PUT", ".manifest", "unconfirmed"))
        table.replace_shard("a", [chunk_rows("a", 9)])
        assert proxy.injected["lancedb", "unconfirmed"] == 1
        assert chunk_counts(bucket) == {"a": 9}


# ------------------------------------------------------------------------------------ single faults


@pytest.mark.parametrize("fault", ["cut", "short"])
@pytest.mark.parametrize("ending", [MANIFEST, ".parquet"])
def test_a_body_cut_short_is_read_again(
    bucket: Bucket, s3_server: str, monkeypatch: pytest.MonkeyPatch, fault: str, ending: str
) -> None:
    with Proxy(s3_server, 1, {"lancedb": 0, "tables": 0}, 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = TableStore(f"{bucket.uri}/data")
        with store.write("embedding_index", WHOLE, fingerprint="f") as writer:
            writer.append("shards", shard_rows("x" * 1000))
        proxy.planned.append(("GET", ending, fault))
        rows = store.read("embedding_index", WHOLE, "shards").to_dicts()
        assert rows == shard_rows("x" * 1000)
        assert proxy.injected["tables", fault] == 1


def test_what_another_process_wrote_is_seen_at_once(bucket: Bucket) -> None:
    """A remembered listing would hide a shard from the sensors until they are started again."""
    store = TableStore(f"{bucket.uri}/data")
    assert store.shards("embedding_index") == []
    bucket.put("data/embedding_index/one/manifest.json", b"{}")
    assert store.shards("embedding_index") == ["one"]
    bucket.delete("data/embedding_index/one/manifest.json")
    assert store.shards("embedding_index") == []


@pytest.mark.parametrize("fault", ["cut", "short"])
def test_a_range_cut_short_is_read_again(
    bucket: Bucket, s3_server: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with Proxy(s3_server, 1, {"lancedb": 0, "tables": 0}, 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        bucket.put("text", b"line\n" * 100)
        fs, path = object_storage.open_uri(f"{bucket.uri}/text")
        proxy.planned.append(("GET", "text", fault))
        assert fs.cat_file(path, start=50, end=250) == b"line\n" * 40
        proxy.planned.append(("GET", "text", fault))
        with fs.open(path) as file:
            assert file.read() == b"line\n" * 100
        assert proxy.injected["tables", fault] == 2


def test_no_bucket_and_no_credentials_are_one_line(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match=r"^s3://nowhere-1: there is no such bucket; make it"):
        TableStore("s3://nowhere-1/x").put("nowhere-1/x/y", b"z")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    S3.clear_instance_cache()
    with pytest.raises(StorageError, match=r"no credentials; set AWS_ACCESS_KEY_ID and"):
        TableStore(f"{bucket.uri}/x").manifest("embedding_index")


def test_a_refusal_names_the_object_and_what_to_do(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Access Denied` alone does not say to what."""

    async def refuse(self: S3, method: str, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError("Access Denied")

    store = TableStore(f"{bucket.uri}/data")
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
    with pytest.raises(PermissionError) as caught:
        store.manifest("embedding_index")
    place = f"{bucket.uri}/data/embedding_index/all/manifest.json"
    assert str(caught.value).startswith(f"{place}: Access Denied; the credentials ")
    assert not is_transient(caught.value)


# ------------------------------------------------------------------------------- faults that stay


def expired(method: str) -> Any:
    """`_call_s3` as it is when the token has expired, for one method of S3."""
    call = S3._call_s3

    async def refuse(self: S3, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == method:
            raise PermissionError("The provided token has expired.")
        return await call(self, name, *args, **kwargs)

    return refuse


def test_a_listing_that_fails_is_no_empty_folder(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's walk takes a folder that can't be listed for an empty one: an index would be built
    without a shard, a source would lose its files."""
    bucket.put("data/embedding_index/one/manifest.json", b"{}")
    bucket.put("corpus/a/x.jsonl", b"{}")
    store = TableStore(f"{bucket.uri}/data")
    uris = [f"{bucket.uri}/corpus", f"{bucket.uri}/corpus/*/*.jsonl", f"{bucket.uri}/corpus/**"]
    sources = [SourceSettings(name="s", uri=uri, kind="jsonl") for uri in uris]
    assert store.shards("embedding_index") == ["one"]
    assert [len(list_files(source)) for source in sources] == [1, 1, 1]
    with (
        monkeypatch.context() as patch,
        Publication(f"{bucket.uri}/out", "v1") as publication,
    ):
        patch.setattr(S3, "_call_s3", expired("list_objects_v2"))
        with pytest.raises(PermissionError, match="token has expired"):
            store.shards("embedding_index")
        for source in sources:
            with pytest.raises(CorpusError, match=r"^source 's': no permission .* has expired"):
                list_files(source)
        with pytest.raises(PermissionError, match="token has expired"):
            publication.publish(b"{}")
    assert store.shards("none_of_it") == []


def test_the_shards_of_an_asset_are_one_request(
    bucket: Bucket, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a shard, and a plan of 10,000 shards takes minutes to look up."""
    for number in range(30):
        bucket.put(f"data/embedding_index/s-{number:02}/manifest.json", b"{}")
        bucket.put(f"data/embedding_index/s-{number:02}/.batches-k/manifest.json", b"{}")
    with Proxy(s3_server, 1, {"lancedb": 0, "tables": 0}, 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        S3.clear_instance_cache()
        store = TableStore(f"{bucket.uri}/data")
        assert store.shards("embedding_index") == [f"s-{number:02}" for number in range(30)]
        assert proxy.requests["tables"] == 1


def told_query(store: TableStore, query: str, happens: Callable[[], object] = lambda: None) -> None:
    """A query over `shards`; something happens once the view is made."""
    views: dict[str, duck.View] = {"shards": ("embedding_index", [WHOLE], "shards")}
    with duck.telling(store, views), duck.connect(store, views) as session:
        happens()
        session.sql(query).fetchall()


def test_a_fault_in_the_middle_of_a_query_is_tried_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB wraps what a file raises into an error of its own, which looks like a lasting one."""
    store = TableStore(f"{bucket.uri}/data")
    with store.write("embedding_index", WHOLE, fingerprint="f") as writer:
        writer.append("shards", shard_rows("v"))
    count = "SELECT sum(n_chunks) FROM shards"
    told_query(store, count)

    def lose(*_: Any, **__: Any) -> None:
        raise OSError(errno.EBUSY, "Please reduce your request rate.")

    with (
        monkeypatch.context() as patch,
        pytest.raises(ConnectionError, match=r"reduce your request rate") as caught,
    ):
        told_query(store, count, lambda: patch.setattr(KnownFiles, "_open", lose))
    assert is_transient(caught.value)
    assert "\n" not in str(caught.value)

    for query, error in {
        "SELECT nothing FROM shards": duckdb.Error,
        "SELEC 1": duckdb.ParserException,
        "SELECT * FROM nowhere": duckdb.CatalogException,
        "SELECT error('x')": duckdb.InvalidInputException,
        "SELECT data_version::INTEGER FROM shards": duckdb.ConversionException,
    }.items():
        with pytest.raises(error) as wrong:
            told_query(store, query)
        assert not is_transient(wrong.value), query

    key = store.path("embedding_index", WHOLE, "shards").partition("/")[2]
    with pytest.raises(TableError, match=r"gone; materialise"):
        told_query(store, count, lambda: bucket.delete(key))


def test_what_another_writer_has_removed_is_no_fault(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is published by then: an error would end a step whose work is done."""
    store = TableStore(f"{bucket.uri}/data")
    monkeypatch.setattr(tables, "UNLOCKED_FOR", timedelta(seconds=-1))
    kept = KeptBatches(store, "embedding_index", WHOLE, "k")
    kept.keep(0, Batch({}, {}))
    remove, modified, gone = store.fs.rm, store.fs.modified, []

    def removed_before(path: str, **kwargs: Any) -> None:
        remove(path, **kwargs)
        gone.append(path)
        raise FileNotFoundError(path)

    def modified_before(path: str) -> Any:
        if path.endswith(MANIFEST):
            return modified(path)
        gone.append(path)
        raise FileNotFoundError(path)

    for number, changed in enumerate(["rm", "rm", "rm", "modified"]):
        new = removed_before if changed == "rm" else modified_before
        with monkeypatch.context() as patch:
            patch.setattr(store.fs, changed, new)
            with store.write("embedding_index", WHOLE, fingerprint=str(number)) as writer:
                writer.append("shards", shard_rows(str(number)))
            if changed == "rm":
                kept.remove_all()
    assert store.require("embedding_index").fingerprint == "3"
    assert len(gone) == 3


@pytest.mark.parametrize("silent", [False, True], ids=["closes", "silent"])
@pytest.mark.parametrize("ask", ["cat_file", "ls", "open"])
def test_a_server_that_gives_no_answer_is_given_up(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, ask: str, silent: bool
) -> None:
    """botocore, s3fs's call and s3fs's reading each try again: the product took hours of a
    server that does not answer."""
    tries = 0
    held = []
    monkeypatch.setattr(object_storage, "ANSWER_SECONDS", 0.1)
    pause = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda *_: pause(0))
    with socket.create_server(("127.0.0.1", 0)) as closing:

        def close_all() -> None:
            nonlocal tries
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = closing.accept()
                    connection.recv(2**16)
                    tries += 1
                    held.append(connection)
                    if not silent:
                        connection.close()

        threading.Thread(target=close_all, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closing.getsockname()[1]}")
        S3.clear_instance_cache()
        fs, path = object_storage.open_uri(f"{bucket.uri}/x")
        with pytest.raises(Exception) as caught:  # noqa: PT011
            fs.open(path, size=9).read() if ask == "open" else getattr(fs, ask)(path)
        closing.shutdown(socket.SHUT_RDWR)
    assert is_transient(caught.value), repr(caught.value)
    # aiohttp asks a second time, at once, where a connection was closed.
    assert tries == 2 * object_storage.ATTEMPTS * (1 if silent else 2)
