"""Exports, read by readers of the formats that share no code with our writers."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.card import dataset_card
from entropylong_assets.stages.training_data.export import export_training_data
from entropylong_assets.stages.training_data.manifest import ExportError
from entropylong_assets.stages.training_data.verify import read_manifest, verify_export
from entropylong_assets.storage.manifest import TableError
from entropylong_assets_tests.stages.samples.worlds import PAD
from entropylong_assets_tests.stages.training_data.formats import (
    collate_like_prolong,
    read_mds,
    read_megatron,
)
from entropylong_assets_tests.stages.training_data.stores import (
    CODE,
    MODEL,
    SHARDS,
    TOKENS,
    export_settings,
    fill_store,
    rewrite_manifest,
    table,
    worlds,
)

ALL = {"formats": ["mds", "parquet", "megatron"], "file_bytes": 4096, "validation_fraction": 0.3}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A store of three shards, and its export in all formats."""
    settings = export_settings(tmp_path_factory.mktemp("data"), ALL)
    store = fill_store(settings)
    export = export_training_data(store, SHARDS, settings, code_version=CODE)
    return store, settings, export


def mds_samples(uri: str) -> dict[str, list[dict]]:
    """Samples by split."""
    by_split = defaultdict(list)
    for index in sorted(Path(uri).glob("mds/*/*/index.json")):
        by_split[index.parts[-3]] += list(read_mds(index.parent))
    return by_split


def test_all_formats_contain_the_ids_of_the_table(exported):
    store, _, export = exported
    expected = {row["sample_id"]: row["input_ids"] for row in table(store, "samples")}
    assert len(expected) > 8
    by_split = mds_samples(export.uri)
    assert {split: len(rows) for split, rows in by_split.items()} == export.manifest["splits"]
    mds = {s["provenance"]["sample_id"]: s for rows in by_split.values() for s in rows}
    assert {k: s["input_ids"].tolist() for k, s in mds.items()} == expected
    frame = pl.concat([pl.read_parquet(p) for p in Path(export.uri).glob("parquet/*.parquet")])
    assert dict(frame.select("sample_id", "input_ids").iter_rows()) == expected
    for split, rows in by_split.items():
        ids = [
            sequence.tolist()
            for prefix in sorted(Path(export.uri).glob(f"megatron/{split}-*.idx"))
            for sequence in read_megatron(prefix)
        ]
        assert ids == [sample["input_ids"].tolist() for sample in rows]
        names = frame.filter(
            pl.col("sample_id").is_in([s["provenance"]["sample_id"] for s in rows])
        )
        assert len(names) == len(rows)
    assert len(list(Path(export.uri).glob("mds/train/books/shard.*.mds"))) > 2, (
        "one file proves little"
    )
    assert len(list(Path(export.uri).glob("parquet/train-*.parquet"))) > 1


def test_mds_fields_are_what_trainers_read(exported):
    """Spans by document would mask every dependency; padding in a span would be learnt."""
    store, _, export = exported
    padded = {row["sample_id"]: row["n_padding"] for row in table(store, "samples")}
    seen = 0
    for samples in mds_samples(export.uri).values():
        for sample in samples:
            assert sample["input_ids"].dtype == np.int32
            assert sample["indices"].dtype == np.int64
            assert sample["length"] == TOKENS
            provenance = sample["provenance"]
            assert sample["domain"] == provenance["sample_id"].rsplit("-", 2)[0]
            n_padding = padded[provenance["sample_id"]]
            kept = TOKENS - n_padding
            assert sample["indices"].tolist() == [[0, kept]], "padding is learnt in a span"
            assert sample["mask"].tolist() == [1] * kept + [0] * n_padding
            assert sample["input_ids"][kept:].tolist() == [PAD] * n_padding
            seen += n_padding > 0
    assert seen
    encodings = {
        encoding.partition(":")[0]
        for index in Path(export.uri).glob("mds/*/*/index.json")
        for shard in json.loads(index.read_text())["shards"]
        for encoding in shard["column_encodings"]
    }
    assert encodings == {"ndarray", "int", "str", "json"}, "a pickle column would be refused"


def test_provenance_is_that_of_the_tables(exported):
    store, _, export = exported
    segments, dependencies = defaultdict(list), defaultdict(list)
    for row in table(store, "segments"):
        segments[row.pop("sample_id")].append(row)
    for row in table(store, "dependencies"):
        row["gain"] = pytest.approx(row["gain"], abs=1e-6)
        dependencies[row.pop("sample_id")].append(row)

    def rows(columns):
        return [dict(zip(columns, v, strict=True)) for v in zip(*columns.values(), strict=True)]

    def key(row):
        return row["context_start"], row["anchor_position"]

    checked = 0
    for sample in mds_samples(export.uri)["train"]:
        provenance = sample["provenance"]
        assert rows(provenance["segments"]) == segments[provenance["sample_id"]]
        for mine, theirs in zip(
            rows(provenance["dependencies"]),
            sorted(dependencies[provenance["sample_id"]], key=key),
            strict=True,
        ):
            for name in ("root_id", "anchor", "chunk_id", "anchor_position", "distance"):
                assert mine[name] == theirs[name]
            assert mine["gain"] == theirs["gain"]
            checked += 1
    assert checked > 10
    for path in Path(export.uri).glob("parquet/*.parquet"):
        for row in pl.read_parquet(path).iter_rows(named=True):
            assert row["segments"] == segments[row["sample_id"]]
            assert [d["distance"] for d in row["dependencies"]] == [
                d["distance"] for d in sorted(dependencies[row["sample_id"]], key=key)
            ]


@pytest.mark.parametrize("apply_masks", [False, True])
def test_trainers_see_context_and_anchor_in_one_span(exported, apply_masks):
    store, _, export = exported
    padded = {row["sample_id"]: row["n_padding"] for row in table(store, "samples")}
    checked = 0
    for samples in mds_samples(export.uri).values():
        for sample in samples:
            batch = collate_like_prolong(sample, apply_masks=apply_masks)
            real = TOKENS - padded[sample["provenance"]["sample_id"]]
            assert len(batch["input_ids"]) == real
            learnt = batch["labels"] != -100
            assert not learnt[0]
            assert learnt[1:].all()
            d = sample["provenance"]["dependencies"]
            for start, end, anchor in zip(
                d["context_start"], d["context_end"], d["anchor_position"], strict=True
            ):
                assert set(batch["span"][start:end]) == {batch["span"][anchor]}
                assert learnt[anchor]
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("kind", ["anchors", "distance"])
def test_weights_lift_anchors_with_evidence_only(tmp_path, kind):
    """1 elsewhere in Parquet; 0 in MDS, whose reader leaves the loss of a 0 as it is."""
    choice = {"formats": ["mds", "parquet"], "loss_weights": kind, "anchor_weight": 3.0}
    settings = export_settings(tmp_path, choice)
    export = export_training_data(fill_store(settings), SHARDS, settings, code_version=CODE)
    mds = {
        sample["provenance"]["sample_id"]: sample["position_weighted"].tolist()
        for samples in mds_samples(export.uri).values()
        for sample in samples
    }
    lifted = []
    for path in Path(export.uri).glob("parquet/*.parquet"):
        for row in pl.read_parquet(path).iter_rows(named=True):
            expected = [1.0 if label != -100 else 0.0 for label in row["labels"]]
            farthest = defaultdict(int)
            for dependency in row["dependencies"]:
                position = dependency["anchor_position"]
                farthest[position] = max(farthest[position], dependency["distance"])
            for position, distance in farthest.items():
                share = math.log(1 + distance) / math.log(1 + TOKENS) if kind == "distance" else 1
                expected[position] = 1 + 2 * share
                lifted.append(expected[position])
            assert row["loss_weights"] == pytest.approx(expected, rel=1e-6)
            real = sum(row["attention_mask"])
            assert mds[row["sample_id"]] == [0 if w == 1 else w for w in row["loss_weights"][:real]]
    assert len(lifted) > 20
    assert len(set(lifted)) > (5 if kind == "distance" else 0)


def test_parquet_columns_are_what_trainers_read(exported):
    """Trainers take the columns of the default configuration as they are."""
    store, _, export = exported
    roots = {}
    for shard in SHARDS:
        roots |= dict(
            store.read(ENTROPY_SCORES, shard, "roots", ["root_id", "anchors"]).iter_rows()
        )
    segments = pl.DataFrame(table(store, "segments")).filter(role="root")
    starts = {
        (s, r): at for s, r, at in segments.select("sample_id", "root_id", "start").iter_rows()
    }
    padded = {row["sample_id"]: row["n_padding"] for row in table(store, "samples")}
    alone = 0
    for path in Path(export.uri).glob("parquet/*.parquet"):
        schema = pq.read_schema(path)
        assert schema.names[:3] == ["input_ids", "labels", "attention_mask"]
        kinds = [str(field.type.value_type) for field in list(schema)[:3]]
        assert kinds == ["int32", "int32", "int8"]
        for row in pl.read_parquet(path).iter_rows(named=True):
            n = padded[row["sample_id"]]
            assert row["labels"] == row["input_ids"][: TOKENS - n] + [-100] * n
            assert row["attention_mask"] == [1] * (TOKENS - n) + [0] * n
            assert row["anchors"] == sorted(
                start + anchor
                for (sample_id, root_id), start in starts.items()
                if sample_id == row["sample_id"]
                for anchor in roots[root_id]
            )
            alone += len(set(row["anchors"]) - {d["anchor_position"] for d in row["dependencies"]})
    assert alone, "no anchor without a dependency"
    assert sum(padded.values()) > 0


def test_mask_is_omitted_if_nothing_is_masked(tmp_path):
    """ProLong reads no mask by default: an export without padding needs none."""
    settings = export_settings(tmp_path, {"formats": ["mds"]})
    by_shard = worlds(SHARDS[:1])
    store = fill_store(settings, by_shard)
    full = [s for s in table(store, "samples", SHARDS[:1]) if not s["n_padding"]]
    assert not full
    samples = store.read(LONG_CONTEXT_SAMPLES, SHARDS[0], "samples").head(1)
    segments = store.read(LONG_CONTEXT_SAMPLES, SHARDS[0], "segments")
    dependencies = store.read(LONG_CONTEXT_SAMPLES, SHARDS[0], "dependencies")
    name = samples["sample_id"][0]
    summary = store.summary(LONG_CONTEXT_SAMPLES, SHARDS[0])
    with store.write(LONG_CONTEXT_SAMPLES, SHARDS[0], fingerprint="t") as writer:
        writer.summary = summary.model_dump()
        role = pl.col("role").str.replace("padding", "hard_negative")
        writer.append("samples", samples)
        writer.append("segments", segments.filter(sample_id=name).with_columns(role))
        writer.append("dependencies", dependencies.filter(sample_id=name))
    export = export_training_data(store, SHARDS[:1], settings, code_version=CODE)
    ((sample,),) = mds_samples(export.uri).values()
    assert "mask" not in sample


def files_of(folder: str | Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def test_second_export_is_the_same_bytes(exported, tmp_path):
    store, settings, export = exported
    elsewhere = settings.model_copy(
        update={"export": settings.export.model_copy(update={"destination": str(tmp_path)})}
    )
    again = export_training_data(store, SHARDS[::-1], elsewhere, code_version=CODE)
    assert again.version == export.version
    first, second = files_of(export.uri), files_of(again.uri)
    assert first.keys() == second.keys()
    assert len(first) > 10
    for name, data in first.items():
        assert data == second[name], name


def test_order_in_settings_changes_neither_the_name_nor_a_byte(exported, tmp_path):
    """Sources, formats and compared rules are sets: an export is named by its content."""
    store, settings, export = exported
    values = {
        section: getattr(settings, section).model_dump(mode="json")
        for section in ("corpus", "export", "verification")
    }
    before = [values["corpus"]["sources"], values["export"]["formats"]]
    before.append(values["verification"]["compared_rules"])
    for given in before:
        assert len(given) > 1
        given.reverse()
    values["export"]["destination"] = str(tmp_path)
    other = settings.model_copy(
        update={
            name: type(getattr(settings, name)).model_validate(value)
            for name, value in values.items()
        }
    )
    assert [source.name for source in other.corpus.sources] == ["web", "books"]
    again = export_training_data(store, SHARDS, other, code_version=CODE)
    assert again.version == export.version
    assert files_of(again.uri) == files_of(export.uri)


def test_what_determines_the_content_changes_the_version(exported, tmp_path):
    store, settings, export = exported
    destination = {"destination": str(tmp_path)}
    changed = {
        "fraction": (settings_with(settings, destination | {"validation_fraction": 0.0}), CODE),
        "code": (settings_with(settings, destination), "def456"),
    }
    versions = {export.version}
    for other, code in changed.values():
        versions.add(export_training_data(store, SHARDS, other, code_version=code).version)
    versions.add(
        export_training_data(
            store, SHARDS[:2], settings_with(settings, destination), code_version=CODE
        ).version
    )
    assert len(versions) == 4
    assert len(list(tmp_path.iterdir())) == 3


def settings_with(settings, export):
    return settings.model_copy(update={"export": settings.export.model_copy(update=export)})


def test_existing_export_is_kept_and_an_incomplete_one_replaced(exported, tmp_path):
    store, settings, _ = exported
    settings = settings_with(settings, {"destination": str(tmp_path)})
    first = export_training_data(store, SHARDS, settings, code_version=CODE)
    assert not first.reused
    readme = Path(first.uri) / "README.md"
    readme.write_bytes(readme.read_bytes().replace(b"Figures", b"figures"))
    kept = export_training_data(store, SHARDS, settings, code_version=CODE)
    assert kept.reused
    assert kept.manifest == json.loads(json.dumps(first.manifest))
    assert verify_export(kept.uri).faults == ("README.md: its bytes have changed",)
    again = export_training_data(store, SHARDS, settings, code_version=CODE, overwrite=True)
    assert not again.reused
    assert not verify_export(again.uri).faults
    readme.unlink()
    assert not export_training_data(store, SHARDS, settings, code_version=CODE).reused
    assert not verify_export(first.uri).faults
    assert [path.name for path in tmp_path.iterdir()] == [first.version], "temporary files remain"


def test_no_document_is_in_both_splits(exported):
    _, _, export = exported
    documents = {
        split: {d for s in samples for d in s["provenance"]["segments"]["doc_id"] if d}
        for split, samples in mds_samples(export.uri).items()
    }
    assert documents["train"]
    assert documents["validation"]
    assert not documents["train"] & documents["validation"]


def test_samples_linked_to_both_splits_are_left_out_and_counted(tmp_path):
    """A small pool links most samples: a validation split is only possible by leaving some out."""
    choice = {"formats": ["mds", "parquet"], "validation_fraction": 0.2, "max_left_out": 0.5}
    settings = export_settings(tmp_path, choice)
    store = fill_store(settings, worlds(n_chunks=12))
    export = export_training_data(store, SHARDS, settings, code_version=CODE)
    manifest, by_split = export.manifest, mds_samples(export.uri)
    assert manifest["left_out"] > 0
    assert {split: len(rows) for split, rows in by_split.items()} == manifest["splits"]
    assert manifest["splits"]["validation"] > 0
    assert sum(manifest["splits"].values()) + manifest["left_out"] == manifest["figures"]["samples"]


def test_manifest_names_what_it_was_made_from(exported):
    store, settings, export = exported
    manifest = read_manifest(export.uri)
    assert manifest["made_from"]["model"] == MODEL
    assert manifest["made_from"]["indexes"] == ["index-0001"]
    assert manifest["made_from"]["code_version"] == CODE
    assert manifest["settings"]["seed"] == settings.seed
    for shard in SHARDS:
        known = store.require(LONG_CONTEXT_SAMPLES, shard).data_version
        assert manifest["made_from"]["data_versions"]["long_context_samples"][shard] == known
    names = {file["path"] for file in manifest["files"]} | {"manifest.json"}
    assert names == set(files_of(export.uri))
    text = "".join(
        data.decode(errors="ignore")
        for name, data in files_of(export.uri).items()
        if name.endswith((".md", ".json"))
    )
    assert "secret" not in text, "a password of a source's URI was published"
    assert "https://host/books/*.jsonl" in text


def test_card_opens_with_front_matter_and_shows_the_figures(exported):
    _, _, export = exported
    text = (Path(export.uri) / "README.md").read_text()
    head, body = text.removeprefix("---\n").split("---\n", 1)
    front = yaml.safe_load(head)
    assert front["configs"] == [
        {
            "config_name": name,
            "data_files": [
                {"split": split, "path": f"parquet/{split}-*.parquet"}
                for split in ("train", "validation")
            ],
        }
        | ({"columns": ["input_ids", "labels", "attention_mask"]} if name == "default" else {})
        for name in ("default", "provenance")
    ]
    assert (front["license"], front["license_link"]) == ("other", "LICENSE.md"), "two are not one"
    licenses = (Path(export.uri) / front["license_link"]).read_text()
    assert all(name in licenses for name in ("cc0-1.0", "odc-by", "| books |", "| web |"))
    rough = json.loads(json.dumps(export.manifest))
    rough["figures"]["false_acceptance"]["calibrated"]["is_rough"] = True
    note = "; few roots: interval assumes a correlation of 0.2 within a root)"
    assert note in dataset_card(rough)
    assert note not in body
    rough["figures"]["tokens_by_role"] = {"root": 100, "padding": 900 * 10**3}
    assert "100.0% of the tokens are padding: " in dataset_card(rough)
    assert "of the tokens are padding: " not in body
    for row in (
        f"| samples | {export.manifest['figures']['samples']} |",
        "| random contexts that the rule accepts, share |",
        "| roots of dependencies, effective number | ",
        f"| scoring model | {MODEL} |",
        "| vocabulary | 100,000 |",
        f"| padding | {PAD} (\\<pad\\>) |",
        "| EOS | – |",
        f"| tokens per sample | {TOKENS} |",
    ):
        assert row in body


def test_text_of_names_cannot_break_the_card(exported, tmp_path):
    store, settings, _ = exported
    settings = settings_with(settings, {"destination": str(tmp_path)})
    hostile = "x | y\n---\n<script>alert(1)</script> [a](javascript:b)"
    sources = [s.model_copy(update={"license": hostile}) for s in settings.corpus.sources]
    corpus = settings.corpus.model_copy(update={"sources": tuple(sources)})
    settings = settings.model_copy(update={"corpus": corpus})
    documents = store.read(CORPUS_DOCUMENTS, SHARDS[2], "documents")
    fresh = fill_store(export_settings(tmp_path / "data"))
    with fresh.write(CORPUS_DOCUMENTS, SHARDS[2], fingerprint="t") as writer:
        writer.append("documents", documents.with_columns(license=pl.lit(hostile)))
    export = export_training_data(fresh, SHARDS, settings, code_version=CODE)
    text = (Path(export.uri) / "README.md").read_text()
    assert "<script>" not in text
    assert "alert(1)" in text
    assert len([line for line in text.splitlines() if line == "---"]) == 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_flipped_byte_is_found_in_every_file(exported, tmp_path, share):
    _, _, export = exported
    copy = tmp_path / "copy"
    shutil.copytree(export.uri, copy)
    report = verify_export(str(copy))
    assert report.faults == ()
    assert report.files == len(files_of(copy)) - 1
    assert report.bytes > 10_000
    for name, data in files_of(copy).items():
        at = int(share * len(data))
        (copy / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        if name == "manifest.json":
            with pytest.raises(ExportError, match=r"manifest\.json"):
                verify_export(str(copy))
        else:
            assert verify_export(str(copy)).faults == (f"{name}: its bytes have changed",)
        (copy / name).write_bytes(data)


def test_what_clients_of_the_hub_add_is_no_fault(exported, tmp_path):
    """git writes .gitattributes into every repository of the Hub, and its client a cache."""
    _, _, export = exported
    copy = tmp_path / "copy"
    shutil.copytree(export.uri, copy)
    for name in (".gitattributes", ".git/objects/12/34", ".cache/huggingface/download/a.metadata"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("theirs")
    (copy / ".git/refs/tags").mkdir(parents=True)
    assert verify_export(str(copy)).faults == ()
    (copy / "parquet/.gitattributes").write_text("mine")
    (copy / "mds/empty/inner").mkdir(parents=True)
    assert verify_export(str(copy)).faults == (
        "parquet/.gitattributes: not part of the export",
        "mds/empty/: an empty folder that is not part of the export",
        "mds/empty/inner/: an empty folder that is not part of the export",
    )


def test_missing_cut_and_foreign_files_are_found(exported, tmp_path):
    _, _, export = exported
    copy = tmp_path / "copy"
    shutil.copytree(export.uri, copy)
    (copy / "README.md").unlink()
    (copy / "notes.txt").write_text("mine")
    index = copy / "mds/train/books/index.json"
    index.write_bytes(index.read_bytes()[:-1])
    missing, cut, foreign = sorted(verify_export(str(copy)).faults, key=lambda f: "README" not in f)
    assert missing == "README.md: missing"
    assert cut.startswith("mds/train/books/index.json: ")
    assert cut.endswith("were written")
    assert foreign == "notes.txt: not part of the export"
    with pytest.raises(ExportError, match="no export here"):
        verify_export(str(tmp_path))


def test_killed_export_leaves_nothing_visible(exported, tmp_path):
    store, settings, _ = exported
    settings = settings_with(settings, {"destination": str(tmp_path)})

    def stop(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_training_data(store, SHARDS, settings, code_version=CODE, on_progress=stop)
    assert not list(tmp_path.iterdir())
    left = tmp_path / ".tmp-0123-killed"
    (left / "mds").mkdir(parents=True)
    export = export_training_data(store, SHARDS, settings, code_version=CODE)
    assert not left.exists()
    assert not verify_export(export.uri).faults


def test_manifest_is_written_last_on_object_storage(exported):
    """It can't rename folders: until all files are written, no reader may find a manifest."""
    store, settings, local = exported
    settings = settings_with(settings, {"destination": "memory://exports"})
    fs = fsspec.filesystem("memory")
    early = []

    def look(done: int, _: int) -> None:
        early.append([p for p in fs.find("/exports") if p.endswith("manifest.json")])

    export = export_training_data(store, SHARDS, settings, code_version=CODE, on_progress=look)
    assert len(early) == export.manifest["figures"]["samples"]
    assert not any(early)
    assert not verify_export(export.uri).faults
    for name, data in files_of(local.uri).items():
        assert fs.cat_file(f"/exports/{export.version}/{name}") == data
    assert export_training_data(store, SHARDS, settings, code_version=CODE).reused
    fs.rm("/exports", recursive=True)


def test_two_exports_of_one_name_at_once_leave_it_whole(exported):
    """Object storage has no lock: the second must not remove the files of the first."""
    store, settings, _ = exported
    settings = settings_with(settings, {"destination": "memory://twice"})
    fs = fsspec.filesystem("memory")
    seen = []

    def again(done: int, total: int) -> None:
        if done == total:
            seen.append(sum(not p.endswith("manifest.json") for p in fs.find("/twice")))
            second = export_training_data(store, SHARDS, settings, code_version=CODE)
            fs.pipe_file(f"/twice/{second.version}/mds/left-over", b"of an older version")

    export = export_training_data(store, SHARDS, settings, code_version=CODE, on_progress=again)
    assert seen[0] > 0  # the first had written files when the second began
    assert not verify_export(export.uri).faults
    fs.rm("/twice", recursive=True)


def test_nothing_to_export_is_one_clear_line(tmp_path):
    settings = export_settings(tmp_path)
    barren = {SHARDS[0]: worlds()[SHARDS[0]]}
    for pair in barren[SHARDS[0]].pairs:
        pair["accepted"] = False
    store = fill_store(settings, barren)
    with pytest.raises(ExportError, match="no shard to export"):
        export_training_data(store, [], settings, code_version=CODE)
    with pytest.raises(ExportError, match="no root has a verified context"):
        export_training_data(store, SHARDS[:1], settings, code_version=CODE)
    with pytest.raises(TableError, match="materialize it first"):
        export_training_data(store, ["web-00009"], settings, code_version=CODE)
    assert not list(tmp_path.rglob("exports/*"))


def test_shards_of_two_models_are_not_mixed(tmp_path):
    settings = export_settings(tmp_path)
    store = fill_store(settings, models=("tiny@1", "tiny@2"))
    with pytest.raises(
        ExportError, match=r"books-00000 was scored by tiny@1, books-00001 by tiny@2"
    ):
        export_training_data(store, SHARDS, settings, code_version=CODE)


def test_shards_of_two_paddings_are_not_mixed(tmp_path):
    """A reader knows one padding per export: the other one would be learnt."""
    settings = export_settings(tmp_path)
    store = fill_store(settings)
    rewrite_manifest(store, LONG_CONTEXT_SAMPLES, SHARDS[1], summary=other_padding(store))
    with pytest.raises(ExportError, match=r"samples of books-00000 and books-00001 differ"):
        export_training_data(store, SHARDS, settings, code_version=CODE)


def other_padding(store) -> dict:
    summary = store.summary(LONG_CONTEXT_SAMPLES, SHARDS[1]).model_dump(mode="json")
    return summary | {"tokenizer": summary["tokenizer"] | {"pad_id": 5}}


def test_manifest_and_card_name_the_tokenizer(exported):
    _, _, export = exported
    tokenizer = read_manifest(export.uri)["tokenizer"]
    assert (tokenizer["pad_id"], tokenizer["bos_id"], tokenizer["eos_id"]) == (PAD, 1, None)
    assert (tokenizer["vocab_size"], tokenizer["sample_tokens"]) == (100_000, TOKENS)
    assert (tokenizer["dtype"], tokenizer["separator_ids"]) == ("int32", [7, 8])
