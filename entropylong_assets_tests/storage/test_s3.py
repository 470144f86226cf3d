"""All stages on object storage with injected faults, compared with a run on a local folder."""

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
from concurrent.futures import ThreadPoolExecutor
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
from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.report.page import save_report
from entropylong_assets.report.tables import REPORT
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.listing import list_files
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.compaction import compact
from entropylong_assets.stages.embeddings.connection import chunk_schema
from entropylong_assets.stages.embeddings.shard_commits import ShardCommit
from entropylong_assets.stages.embeddings.table import ChunkTable, open_table
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.destination import export_uri
from entropylong_assets.stages.training_data.publication import Publication
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage import duck, object_storage, tables
from entropylong_assets.storage.checkpoints import Batch, Checkpoints, remove_checkpoints
from entropylong_assets.storage.known_files import KnownFiles
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.object_storage import StorageError
from entropylong_assets.storage.s3 import S3
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import MANIFEST, WHOLE, TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.storage.faulty_s3 import KEY_ID, SECRET, Bucket, Proxy, environment
from entropylong_assets_tests.tiny_world import tiny_values

SHARE = {"tables": 0.03, "lancedb": 0.08}
"""Of requests that meet a fault. botocore's pauses are long, LanceDB's short."""

ANSWER_SECONDS, STUCK_SECONDS = 3, 5

COMPARED: tuple[TableSet[Any], ...] = (
    CORPUS_DOCUMENTS,
    CHUNK_EMBEDDINGS,
    EMBEDDING_INDEX,
    ENTROPY_SCORES,
    CANDIDATE_CONTEXTS,
    VERIFIED_DEPENDENCIES,
    LONG_CONTEXT_SAMPLES,
)
RUNS = 2 * len(("ingest", "score", "verify", "assemble", "natural")) + len(("index", "export"))


@dataclass(frozen=True)
class Run:
    """A project that ran on S3 through faults."""

    project: Project
    shards: tuple[str, ...]
    bucket: Bucket
    proxy: Proxy
    export: str
    """URI of the export."""
    reports: tuple[str, ...]
    """URIs of the reports: that of the stage, and one that was written by hand."""
    home: Path
    """Folder of the Dagster instance: its events and logs."""


@pytest.fixture(scope="module")
def through_faults(
    world: World,
    tiny_models: tuple[str, str],
    s3_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Run]:
    bucket, home = Bucket(s3_server, "faulty-lake"), tmp_path_factory.mktemp("dagster")
    for file in sorted(world.corpus.glob("*.jsonl")):
        bucket.put(f"corpus/{file.name}", file.read_bytes())
    values = tiny_values(f"{bucket.uri}/corpus", f"{bucket.uri}/some/run", tiny_models)
    project = make_project(values)
    with (
        pytest.MonkeyPatch.context() as patch,
        Proxy(s3_server, 20251002, SHARE, STUCK_SECONDS) as proxy,
        dg.DagsterInstance.local_temp(str(home)) as instance,
    ):
        for name, value in environment(proxy.url).items():
            patch.setenv(name, value)
        patch.setattr(object_storage, "ANSWER_SECONDS", ANSWER_SECONDS)
        S3.clear_instance_cache()
        # Writes are few, so one fault of each kind is planned. The second version of the table
        # adds the first vectors.
        second = f"{2**64 - 1 - 2}.manifest"
        proxy.planned = [("PUT", MANIFEST, "unconfirmed"), ("PUT", second, "unconfirmed")]
        plan = register_shards(project.corpus, instance)
        assert run_project(project, instance) == RUNS
        store = open_store(project.dataset)
        export = export_uri(project.dataset, store.summary(TRAINING_DATASET).version)
        page = f"{store.dataset_uri}/{store.summary(REPORT).path}"
        reports = (page, save_report(project.dataset))
        shards = tuple(shard.key for shard in plan.shards)
        yield Run(project, shards, bucket, proxy, export, reports, home)
    S3.clear_instance_cache()


def rows_in(bucket: Bucket, tables: TableSet[Any], shard: str, table: str) -> pl.DataFrame:
    """A table in the bucket, read without the store. Its bytes are as the manifest says."""
    folder = f"some/run/{tables.scope}/{tables.name}/{shard}"
    file = json.loads(bucket.get(f"{folder}/{MANIFEST}"))["tables"][table]
    content = bucket.get(f"{folder}/{file['file']}")
    assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    rows = pl.read_parquet(io.BytesIO(content))
    assert len(rows) == file["rows"]
    return rows


def test_all_tables_are_those_of_an_undisturbed_run(through_faults: Run, world: World) -> None:
    seen = 0
    for stage in COMPARED:
        for shard in [WHOLE] if stage is EMBEDDING_INDEX else world.shards:
            for table in world.store.require(stage, shard).tables:
                stored = rows_in(through_faults.bucket, stage, shard, table)
                local = world.store.read(stage, shard, table)
                if "file" in stored.columns:  # the source files are in another folder
                    last = pl.col("file").str.split("/").list.last()
                    stored, local = stored.with_columns(last), local.with_columns(last)
                assert stored.equals(local), (stage.name, shard, table)
                seen += len(stored)
    assert set(through_faults.shards) == set(world.shards)
    assert seen > 1000


def test_the_vectors_are_those_of_an_undisturbed_run(through_faults: Run, world: World) -> None:
    """A commit that was confirmed too late must not be in the table twice."""
    columns = [field.name for field in chunk_schema(1, "")]
    tables = []
    for store in (open_store(through_faults.project.dataset), world.store):
        tag = store.summary(EMBEDDING_INDEX).tag
        rows = pl.concat(open_table(store, tag).scan(columns))
        tables.append(rows.sort("shard", "chunk_id"))
    assert tables[0].equals(tables[1])
    assert tables[0].select("shard", "chunk_id").is_unique().all()
    assert len(tables[0]) > 50


def test_all_checks_ran_on_every_partition_and_passed(through_faults: Run) -> None:
    project = through_faults.project
    counts = [count_checks(project, settings) for settings in (project.corpus, project.dataset)]
    expected = sum(
        len(stage.checks) * (len(through_faults.shards) if stage.partitioned else 1)
        for stage in project.stages
        if stage.automation != "by_hand"
    )
    assert sum(passed for passed, _ in counts) == sum(n for _, n in counts) == expected
    assert expected >= 2 * 31 + 3


def is_root_candidate(doc_id: str, project: Project) -> bool:
    """The draw of roots as documented: a hash of seed and id, below the fraction."""
    content = f"root:{project.dataset.seed}:{doc_id}".encode()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < project.dataset.roots.fraction


def test_the_counts_reconcile(through_faults: Run) -> None:
    """Counted from the files in the bucket, independently of the stages' checks."""
    bucket = through_faults.bucket
    lines = sum(bucket.get(key).count(b"\n") for key in bucket.list("corpus/"))
    counts = dict.fromkeys(("documents", "dropped", "drawn", "scored", "pairs", "candidates"), 0)
    accepted: set[tuple[Any, ...]] = set()
    packed: set[tuple[Any, ...]] = set()
    dependency = ["root_id", "anchor", "chunk_id"]
    for shard in through_faults.shards:
        documents = rows_in(bucket, CORPUS_DOCUMENTS, shard, "documents")
        counts["documents"] += len(documents)
        counts["dropped"] += len(rows_in(bucket, CORPUS_DOCUMENTS, shard, "dropped"))
        counts["drawn"] += sum(
            is_root_candidate(doc_id, through_faults.project) for doc_id in documents["doc_id"]
        )
        for table in ("roots", "dropped"):
            counts["scored"] += len(rows_in(bucket, ENTROPY_SCORES, shard, table))
        counts["candidates"] += len(rows_in(bucket, CANDIDATE_CONTEXTS, shard, "candidates"))
        pairs = rows_in(bucket, VERIFIED_DEPENDENCIES, shard, "pairs")
        counts["pairs"] += len(pairs)
        accepted |= set(pairs.filter("accepted").select(dependency).iter_rows())
        in_samples = rows_in(bucket, LONG_CONTEXT_SAMPLES, shard, "dependencies")
        packed |= set(in_samples.select(dependency).iter_rows())
    assert counts["documents"] + counts["dropped"] == lines == 24
    assert counts["drawn"] == counts["scored"] > 4
    assert counts["pairs"] == counts["candidates"] > 100
    assert packed == accepted
    assert len(accepted) > 5


def test_the_export_is_whole(through_faults: Run) -> None:
    """Read from the bucket: every file as the manifest says, and no other."""
    bucket = through_faults.bucket
    key = through_faults.export.removeprefix(f"{bucket.uri}/")
    manifest = json.loads(bucket.get(f"{key}/{MANIFEST}"))
    for file in manifest["files"]:
        content = bucket.get(f"{key}/{file['path']}")
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    names = {f"{key}/{file['path']}" for file in manifest["files"]} | {f"{key}/{MANIFEST}"}
    assert set(bucket.list(f"{key}/")) == names
    samples = sum(
        len(rows_in(bucket, LONG_CONTEXT_SAMPLES, shard, "samples"))
        for shard in through_faults.shards
    )
    assert samples == sum(manifest["splits"].values()) > 1
    for report in through_faults.reports:
        assert b"</html>" in bucket.get(report.removeprefix(f"{bucket.uri}/"))


def test_every_kind_of_fault_was_met(through_faults: Run) -> None:
    """Otherwise the tests above would show nothing."""
    proxy = through_faults.proxy
    kinds = {"500", "503", "reset", "slow", "stuck", "cut", "unconfirmed"}
    wanted = {(client, kind) for client in SHARE for kind in kinds} | {("tables", "short")}
    assert set(proxy.injected) == wanted, proxy.injected
    assert proxy.requests["lancedb"] > 200
    # Every request that failed was repeated and answered.
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


def test_the_command_line_on_s3_prints_no_secret(
    through_faults: Run, tmp_path: Path, bucket: Bucket
) -> None:
    command = [sys.executable, "-m", "entropylong_assets.cli", "verify-export"]
    done = subprocess.run(
        [*command, through_faults.export],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "0 faults" in done.stdout, done
    for secret in (KEY_ID, SECRET):
        assert secret not in done.stdout + done.stderr


# ----------------------------------------------------------------------------- two writers at once


def shard_rows(mark: str) -> list[dict[str, Any]]:
    return [{"shard": "s-0", "position": 0, "data_version": mark, "n_chunks": 1}]


def test_two_writers_of_one_partition_leave_one_of_them_whole(bucket: Bucket) -> None:
    """Without a lock, the second must not remove the files that the first is about to name."""
    store = TableStore(f"{bucket.uri}/data")
    for mark in ("before", "long before"):
        with store.write(EMBEDDING_INDEX, WHOLE, fingerprint=mark) as writer:
            writer.append("shards", shard_rows(mark))

    slow = TableStore(store.uri)
    slow.fs = S3(skip_instance_cache=True)
    put, between = slow.fs.pipe_file, []

    def put_after_the_other(path: str, content: bytes) -> None:
        # The files of this writer are written; its manifest is written after the other's.
        between.append(len(bucket.list("data/corpus/embedding_index/all/shards-")))
        with store.write(EMBEDDING_INDEX, WHOLE, fingerprint="fast") as other:
            other.append("shards", shard_rows("fast"))
        put(path, content)

    slow.fs.pipe_file = put_after_the_other
    with slow.write(EMBEDDING_INDEX, WHOLE, fingerprint="slow") as writer:
        writer.append("shards", shard_rows("slow"))
    assert between == [3]
    assert store.require(EMBEDDING_INDEX).fingerprint == "slow"
    assert store.read(EMBEDDING_INDEX, WHOLE, "shards").to_dicts() == shard_rows("slow")


def test_files_of_old_generations_are_removed_after_an_hour(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TableStore(f"{bucket.uri}/data")
    for number in range(4):
        if number == 3:
            monkeypatch.setattr(tables, "UNLOCKED_FOR", timedelta(seconds=-1))
        with store.write(EMBEDDING_INDEX, WHOLE, fingerprint=str(number)) as writer:
            writer.append("shards", shard_rows(str(number)))
        kept = len(bucket.list("data/corpus/embedding_index/all/shards-"))
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
    rows = pl.concat(open_table(TableStore(f"{bucket.uri}/data")).scan(["chunk_id", "shard"]))
    assert rows.is_unique().all()
    return dict(rows["shard"].value_counts().iter_rows())


@pytest.mark.parametrize("rows_before", [0, 7])
def test_two_writers_of_one_shard_s_vectors_leave_no_row_twice(
    bucket: Bucket, rows_before: int
) -> None:
    """Both have read the table before either writes; no lock keeps them apart."""
    first = ChunkTable(f"{bucket.uri}/data/corpus", E_DIM, EMBEDDER)
    if rows_before:
        first.replace_shard("a", [chunk_rows("a", rows_before)])
    first.replace_shard("b", [chunk_rows("b", 5)])
    both_looked = threading.Barrier(2)

    def rows() -> Iterator[pa.RecordBatch]:
        both_looked.wait(60)
        yield chunk_rows("a", 9)

    def write(_: int) -> None:
        ChunkTable(f"{bucket.uri}/data/corpus", E_DIM, EMBEDDER).replace_shard("a", rows())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    assert chunk_counts(bucket) == {"a": 9, "b": 5}


def test_sixteen_writers_at_once_commit_by_conditional_puts(bucket: Bucket) -> None:
    """Twelve new shards and four that write the same one, from an empty table."""
    uri = f"{bucket.uri}/data/corpus"
    ChunkTable(uri, E_DIM, EMBEDDER)
    shards = [f"s{i}" for i in range(12)] + ["same"] * 4
    go = threading.Barrier(len(shards))

    def write(number: int) -> None:
        change = ShardCommit(uri, shards[number])
        change.write([chunk_rows(shards[number], 10 + number)])
        go.wait(120)
        change.commit()

    with ThreadPoolExecutor(len(shards)) as pool:
        list(pool.map(write, range(len(shards))))
    counts = chunk_counts(bucket)
    assert counts.pop("same") in {22, 23, 24, 25}
    assert counts == {f"s{i}": 10 + i for i in range(12)}
    # What a killed writer left is swept, and no row of the others.
    ShardCommit(uri, "killed").write([chunk_rows("killed", 3)])
    before = chunk_counts(bucket)
    done = compact(uri)
    assert (done.fragments_before, done.fragments_after, done.files_swept) == (13, 2, 0)
    assert compact(uri, timedelta(0)).files_swept >= 1
    assert chunk_counts(bucket) == before


@pytest.mark.parametrize("rows_before", [0, 7])
def test_a_commit_that_was_confirmed_too_late_is_not_made_twice(
    bucket: Bucket, s3_server: str, monkeypatch: pytest.MonkeyPatch, rows_before: int
) -> None:
    """The store accepts the commit but answers 500; LanceDB repeats it and finds its own commit."""
    with Proxy(s3_server, 1, {"lancedb": 0, "tables": 0}, 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        table = ChunkTable(f"{bucket.uri}/data/corpus", E_DIM, EMBEDDER)
        if rows_before:
            table.replace_shard("a", [chunk_rows("a", rows_before)])
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
        with store.write(EMBEDDING_INDEX, WHOLE, fingerprint="f") as writer:
            writer.append("shards", shard_rows("x" * 1000))
        proxy.planned.append(("GET", ending, fault))
        rows = store.read(EMBEDDING_INDEX, WHOLE, "shards").to_dicts()
        assert rows == shard_rows("x" * 1000)
        assert proxy.injected["tables", fault] == 1


def test_what_another_process_wrote_is_seen_at_once(bucket: Bucket) -> None:
    """A cached listing would hide a shard from the sensors until they are restarted."""
    store = TableStore(f"{bucket.uri}/data")
    assert store.shards(EMBEDDING_INDEX) == []
    bucket.put("data/corpus/embedding_index/one/manifest.json", b"{}")
    assert store.shards(EMBEDDING_INDEX) == ["one"]
    bucket.delete("data/corpus/embedding_index/one/manifest.json")
    assert store.shards(EMBEDDING_INDEX) == []


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
    with pytest.raises(
        StorageError, match=r"^s3://nowhere-1: the bucket does not exist; create it"
    ):
        TableStore("s3://nowhere-1/x").put("nowhere-1/x/y", b"z")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    S3.clear_instance_cache()
    with pytest.raises(StorageError, match=r"no credentials; set AWS_ACCESS_KEY_ID and"):
        TableStore(f"{bucket.uri}/x").manifest(EMBEDDING_INDEX)


def test_a_refusal_names_the_object_and_what_to_do(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Access Denied` alone does not say which object is meant."""

    async def refuse(self: S3, method: str, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError("Access Denied")

    store = TableStore(f"{bucket.uri}/data")
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
    with pytest.raises(PermissionError) as caught:
        store.manifest(EMBEDDING_INDEX)
    place = f"{bucket.uri}/data/corpus/embedding_index/all/manifest.json"
    assert str(caught.value).startswith(f"{place}: Access Denied; grant this ")
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
    without a shard, and a source would seem to have no files."""
    bucket.put("data/corpus/embedding_index/one/manifest.json", b"{}")
    bucket.put("corpus/a/x.jsonl", b"{}")
    store = TableStore(f"{bucket.uri}/data")
    uris = [f"{bucket.uri}/corpus", f"{bucket.uri}/corpus/*/*.jsonl", f"{bucket.uri}/corpus/**"]
    sources = [SourceSettings(name="s", uri=uri, kind="jsonl") for uri in uris]
    assert store.shards(EMBEDDING_INDEX) == ["one"]
    assert [len(list_files(source)) for source in sources] == [1, 1, 1]
    with (
        monkeypatch.context() as patch,
        Publication(f"{bucket.uri}/out", "v1") as publication,
    ):
        patch.setattr(S3, "_call_s3", expired("list_objects_v2"))
        with pytest.raises(PermissionError, match="token has expired"):
            store.shards(EMBEDDING_INDEX)
        for source in sources:
            with pytest.raises(CorpusError, match=r"^source 's': no permission .* has expired"):
                list_files(source)
        with pytest.raises(PermissionError, match="token has expired"):
            publication.publish(b"{}")
    assert store.shards(CHUNK_EMBEDDINGS) == []


def test_the_shards_of_an_asset_are_few_requests(
    bucket: Bucket, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one request per shard, listing 10,000 shards would take minutes."""
    for number in range(30):
        bucket.put(f"data/corpus/embedding_index/s-{number:02}/manifest.json", b"{}")
        bucket.put(f"data/corpus/embedding_index/s-{number:02}/.batches-k/manifest.json", b"{}")
    with Proxy(s3_server, 1, {"lancedb": 0, "tables": 0}, 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        S3.clear_instance_cache()
        store = TableStore(f"{bucket.uri}/data")
        assert store.shards(EMBEDDING_INDEX) == [f"s-{number:02}" for number in range(30)]
        assert proxy.requests["tables"] <= 4, "one, and three for what is retired"


def run_query(store: TableStore, query: str, happens: Callable[[], object] = lambda: None) -> None:
    """Run a query over `shards`, after `happens` was called in its session."""
    views: dict[str, duck.View] = {"shards": (EMBEDDING_INDEX, [WHOLE], "shards")}
    with duck.reporting_damage(store, views), duck.connect(store, views) as session:
        happens()
        session.sql(query).fetchall()


def test_a_fault_in_the_middle_of_a_query_is_tried_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB wraps the error of a file into one of its own, which looks like a permanent error."""
    store = TableStore(f"{bucket.uri}/data")
    with store.write(EMBEDDING_INDEX, WHOLE, fingerprint="f") as writer:
        writer.append("shards", shard_rows("v"))
    count = "SELECT sum(n_chunks) FROM shards"
    run_query(store, count)

    def lose(*_: Any, **__: Any) -> None:
        raise OSError(errno.EBUSY, "Please reduce your request rate.")

    with (
        monkeypatch.context() as patch,
        pytest.raises(ConnectionError, match=r"reduce your request rate") as caught,
    ):
        run_query(store, count, lambda: patch.setattr(KnownFiles, "_open", lose))
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
            run_query(store, query)
        assert not is_transient(wrong.value), query

    key = store.path(EMBEDDING_INDEX, WHOLE, "shards").partition("/")[2]
    with pytest.raises(TableError, match=r"missing; materialize"):
        run_query(store, count, lambda: bucket.delete(key))


def test_what_another_writer_has_removed_is_no_fault(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is published by then: an error would fail a step whose work is done."""
    store = TableStore(f"{bucket.uri}/data")
    monkeypatch.setattr(tables, "UNLOCKED_FOR", timedelta(seconds=-1))
    Checkpoints(store, EMBEDDING_INDEX, WHOLE, "k").save(0, Batch({}, {}))
    remove, modified, missing = store.fs.rm, store.fs.modified, []

    def removed_before(path: str, **kwargs: Any) -> None:
        remove(path, **kwargs)
        missing.append(path)
        raise FileNotFoundError(path)

    def modified_before(path: str) -> Any:
        if path.endswith(MANIFEST):
            return modified(path)
        missing.append(path)
        raise FileNotFoundError(path)

    for number, changed in enumerate(["rm", "rm", "rm", "modified"]):
        new = removed_before if changed == "rm" else modified_before
        with monkeypatch.context() as patch:
            patch.setattr(store.fs, changed, new)
            with store.write(EMBEDDING_INDEX, WHOLE, fingerprint=str(number)) as writer:
                writer.append("shards", shard_rows(str(number)))
            if changed == "rm":
                remove_checkpoints(store, EMBEDDING_INDEX, WHOLE)
    assert store.require(EMBEDDING_INDEX).fingerprint == "3"
    assert len(missing) == 3


@pytest.mark.parametrize("silent", [False, True], ids=["closes", "silent"])
@pytest.mark.parametrize("ask", ["cat_file", "ls", "open"])
def test_a_server_that_gives_no_answer_is_given_up(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, ask: str, silent: bool
) -> None:
    """botocore, calls of s3fs and files of s3fs all retry. Without a limit their product would be
    hours of attempts at a server that does not answer."""
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
    # aiohttp repeats a request once, immediately, if the connection was closed.
    assert tries == 2 * object_storage.ATTEMPTS * (1 if silent else 2)
