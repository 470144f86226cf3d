"""A document is a root in only one sample of all shards, at a bounded cost per shard.

Failures looked for: a document that is packed as a root in two shards, for every reason why the
index may not prevent it; a check whose number of tables read grows with the number of shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import CheckResult, run_checks
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE as STAGE
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import WHOLE, TableStore
from entropylong_assets_tests.tiny_world import tiny_settings


@pytest.fixture
def settings(tmp_path: Path, tiny_models: tuple[str, str]) -> Settings:
    return tiny_settings(tmp_path, tmp_path / "data", tiny_models)


def write_samples(store: TableStore, shard: str, samples: Sequence[Sequence[str]]) -> None:
    """Write samples that have these roots, each at another position."""
    rows = [
        {
            "sample_id": f"{shard}-{number:05d}",
            "segment": place,
            "role": "root",
            "start": 10 * place,
            "end": 10 * place + 10,
            "root_id": root_id,
            "doc_id": root_id,
            "chunk_id": None,
            "source": "web",
        }
        for number, roots in enumerate(samples)
        for place, root_id in enumerate(roots)
    ]
    with store.write(LONG_CONTEXT_SAMPLES, shard, fingerprint="t") as writer:
        writer.append("segments", rows)


def write_chunks(store: TableStore, shard: str, documents: Sequence[str]) -> None:
    sizes = {"chunk_number": 0, "start": 0, "end": 9, "n_embedder_tokens": 3}
    rows = [{"chunk_id": f"{doc}-0", "doc_id": doc, **sizes} for doc in documents]
    with store.write(CHUNK_EMBEDDINGS, shard, fingerprint="t") as writer:
        writer.append("chunks", rows)


def write_index(store: TableStore, documents: Mapping[str, Sequence[str]]) -> None:
    """Index these shards, in this order: a document belongs to the first that holds it."""
    shards, duplicates = [], []
    owner: dict[str, str] = {}
    for position, (shard, held) in enumerate(documents.items()):
        write_chunks(store, shard, held)
        version = store.require(CHUNK_EMBEDDINGS, shard).data_version
        place = {"shard": shard, "position": position}
        shards.append(place | {"data_version": version, "n_chunks": len(held)})
        for doc in held:
            if owner.setdefault(doc, shard) != shard:
                row = {"doc_id": doc, "shard": shard, "owner": owner[doc], "n_chunks": 1}
                duplicates.append(row)
    with store.write(EMBEDDING_INDEX, WHOLE, fingerprint="t") as writer:
        writer.append("shards", shards)
        writer.append("duplicates", duplicates)


def check(settings: Settings, shard: str) -> CheckResult:
    partition = Partition(settings, open_store(settings), shard)
    (result,) = run_checks(STAGE, partition, {"no_root_used_twice"})
    return result


def faults(settings: Settings, shard: str) -> dict[str, list[str]]:
    """Samples of each root that the check finds faulty."""
    examples = check(settings, shard).examples
    return {root: sorted(samples) for root, _, samples in examples.iter_rows()}


def test_roots_of_one_shard_are_in_one_sample_each(settings: Settings) -> None:
    store = open_store(settings)
    write_index(store, {"a-00000": ["d1", "d2", "d3"]})
    write_samples(store, "a-00000", [["d1", "d2"], ["d3"]])
    assert faults(settings, "a-00000") == {}
    write_samples(store, "a-00000", [["d1", "d1", "d2"], ["d3"]])
    assert faults(settings, "a-00000") == {}, "a root in pieces"
    write_samples(store, "a-00000", [["d1", "d2"], ["d3", "d1"]])
    assert faults(settings, "a-00000") == {"d1": ["a-00000-00000", "a-00000-00001"]}


def test_a_piece_of_a_root_is_not_placed_twice(settings: Settings) -> None:
    store = open_store(settings)
    write_index(store, {"a-00000": ["d1"]})
    row = {"sample_id": "a-00000-00000", "role": "root", "start": 0, "end": 9, "root_id": "d1"}
    names = {"doc_id": "d1", "chunk_id": None, "source": "web"}
    with store.write(LONG_CONTEXT_SAMPLES, "a-00000", fingerprint="t") as writer:
        writer.append("segments", [row | names | {"segment": n} for n in (0, 1)])
    assert faults(settings, "a-00000") == {"d1": ["a-00000-00000"]}


def indexed(store: TableStore) -> None:
    """The index contains both shards and lists the copy. The shards used different indexes."""
    write_index(store, {"a-00000": ["d1", "d2"], "b-00000": ["d1", "d3"]})


def one_not_indexed(store: TableStore) -> None:
    """Shard b is embedded, but the index does not cover it."""
    write_chunks(store, "b-00000", ["d1", "d3"])
    write_index(store, {"a-00000": ["d1", "d2"]})


def one_never_embedded(store: TableStore) -> None:
    write_index(store, {"a-00000": ["d1", "d2"]})


def nothing_indexed(store: TableStore) -> None:
    """There is no index: every shard with samples is compared."""


def owner_not_indexed(store: TableStore) -> None:
    """The index covers shard b alone."""
    write_chunks(store, "a-00000", ["d1", "d2"])
    write_index(store, {"b-00000": ["d1", "d3"]})


INDEXES = (indexed, one_not_indexed, one_never_embedded, nothing_indexed, owner_not_indexed)


@pytest.mark.parametrize("index", INDEXES)
def test_a_root_of_two_shards_is_found_from_both(settings: Settings, index: Any) -> None:
    store = open_store(settings)
    index(store)
    write_samples(store, "a-00000", [["d2"], ["d1"]])
    write_samples(store, "b-00000", [["d1", "d3"]])
    wanted = {"d1": ["a-00000-00001", "b-00000-00000"]}
    assert faults(settings, "a-00000") == wanted
    assert faults(settings, "b-00000") == wanted


@pytest.mark.parametrize("index", INDEXES)
def test_a_document_of_two_shards_may_be_a_root_of_either(settings: Settings, index: Any) -> None:
    store = open_store(settings)
    index(store)
    for first, second in ((["d1", "d2"], ["d3"]), (["d2"], ["d1", "d3"])):
        write_samples(store, "a-00000", [first])
        write_samples(store, "b-00000", [second])
        assert faults(settings, "a-00000") == faults(settings, "b-00000") == {}


def test_a_shard_embedded_again_since_the_index_is_compared_with_all(settings: Settings) -> None:
    store = open_store(settings)
    write_index(store, {"a-00000": ["d1", "d2"], "b-00000": ["d3"]})
    write_samples(store, "a-00000", [["d1", "d2"]])
    write_samples(store, "b-00000", [["d3"]])
    assert faults(settings, "b-00000") == {}
    write_chunks(store, "b-00000", ["d1", "d3"])  # its file has changed
    write_samples(store, "b-00000", [["d1", "d3"]])
    assert faults(settings, "b-00000") == {"d1": ["a-00000-00000", "b-00000-00000"]}


@pytest.fixture
def tables_read(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str, str]]:
    """Counts every table that is opened, through the store or by DuckDB."""
    opened: Counter[tuple[str, str, str]] = Counter()
    open_file, file_name = TableStore.open, duck.file_name

    def counted_open(self: TableStore, tables: Any, shard: str, table: str) -> Any:
        opened[tables.name, shard, table] += 1
        return open_file(self, tables, shard, table)

    def counted_name(store: TableStore, tables: Any, shard: str, table: str) -> str:
        opened[tables.name, shard, table] += 1
        return file_name(store, tables, shard, table)

    monkeypatch.setattr(TableStore, "open", counted_open)
    monkeypatch.setattr(duck, "file_name", counted_name)
    return opened


def test_cost_of_a_check_does_not_grow_with_the_number_of_shards(
    settings: Settings, tables_read: Counter[tuple[str, str, str]]
) -> None:
    """Each shard shares one document with the next one; every third of these is a root.

    A check reads the shard's own segments twice, two tables of the index, and a copy's shard.
    """
    store = open_store(settings)
    most, total = {}, {}
    for n_shards in (6, 12, 24):
        shards = [f"s-{n:05d}" for n in range(n_shards)]
        documents = {
            s: [f"own{s}", f"d{n}", f"d{(n + 1) % n_shards}"] for n, s in enumerate(shards)
        }
        write_index(store, documents)
        for n, shard in enumerate(shards):
            write_samples(store, shard, [[f"own{shard}", *([f"d{n}"] if n % 3 == 0 else [])]])
        reads = []
        for shard in shards:
            tables_read.clear()
            assert check(settings, shard).passed
            reads.append(tables_read.total())
        most[n_shards], total[n_shards] = max(reads), sum(reads)
    assert most == {6: 5, 12: 5, 24: 5}
    assert total == {6: 4 * 6 + 2, 12: 4 * 12 + 4, 24: 4 * 24 + 8}


def test_a_check_reads_the_shards_that_hold_a_copy(
    settings: Settings, tables_read: Counter[tuple[str, str, str]]
) -> None:
    store = open_store(settings)
    write_index(
        store, {f"s-{n}": ["d1", f"own{n}"] if n % 4 == 0 else [f"own{n}"] for n in range(20)}
    )
    for n in range(20):
        write_samples(store, f"s-{n}", [["d1"] if n == 0 else [f"own{n}"]])
    tables_read.clear()
    assert check(settings, "s-0").passed
    read = {shard for name, shard, _ in tables_read if name == LONG_CONTEXT_SAMPLES.name}
    assert read == {"s-0", "s-4", "s-8", "s-12", "s-16"}
    tables_read.clear()
    assert check(settings, "s-4").passed
    assert {shard for name, shard, _ in tables_read if name == LONG_CONTEXT_SAMPLES.name} == {"s-4"}
