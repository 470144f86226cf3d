"""An export of a mixture, through all stages of a tiny corpus.

The failures guarded against: shares that are not those of the files, tokens that are not those of
their documents, a document in both splits, other bytes in a second run, and sampling weights that
a trainer can't parse or that name other files. `make test-exports` draws with the trainers' own
classes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from entropylong_assets.audits.trial.arms import pack_arm
from entropylong_assets.audits.trial.folder import TrialError
from entropylong_assets.audits.trial.settings import Arm
from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import make_project, open_store
from entropylong_assets.report.natural import natural_section
from entropylong_assets.settings.section import Settings, SettingsError
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.natural_documents.tables import NATURAL_DOCUMENTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.training_data.destination import export_uri
from entropylong_assets.stages.training_data.export import Export, export_training_data
from entropylong_assets.stages.training_data.stage import TRAINING_DATASET_STAGE
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.tiny_world import document, tiny_values

TOKENS = 512
MIXTURE = {"constructed": 0.5, "natural": 0.3, "short": 0.2}
SHARDS = ("a-00000", "b-00000")


def long_document(seed: int) -> str:
    return "\n\n".join(document(1000 * seed + part) for part in range(9))


def settings_of(folder: Path, models: tuple[str, str], **export: Any) -> Settings:
    sources = [{"name": n, "uri": f"{folder}/corpus/{n}.jsonl", "license": "cc0-1.0"} for n in "ab"]
    values = tiny_values(
        folder / "corpus",
        folder / "data",
        models,
        roots={"fraction": 0.5, "min_tokens": 20, "max_tokens": 300},
        samples={"tokens": TOKENS},
        natural={"keep": 0.8, "short_tokens": 128, "max_gzip_ratio": 0.9},
        export={"validation_fraction": 0.2, "mixture": MIXTURE} | export,
    )
    values["corpus"]["sources"] = sources
    return make_project(values).dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("mixed")
    (path / "corpus").mkdir()
    for number, name in enumerate("ab"):
        short = [document(100 * number + seed, sentences=6) for seed in range(30, 80)]
        texts = [*short, *(long_document(10 * number + seed) for seed in range(1, 5))]
        lines = [json.dumps({"text": text}) for text in texts]
        (path / "corpus" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def settings(folder: Path, tiny_models: tuple[str, str]) -> Settings:
    """The settings, of which every stage is materialized."""
    result = settings_of(folder, tiny_models)
    save_plan(open_store(result.corpus), plan_shards(result.corpus))
    wanted = [stage.name for stage in TRAINING_DATASET_STAGE.upstream()]
    for stage in (s for s in STAGES if s.name in wanted or s is TRAINING_DATASET_STAGE):
        owner = result.corpus if stage.scope == "corpus" else result
        for shard in SHARDS if stage.partitioned else (WHOLE,):
            partition = Partition(owner, open_store(owner), shard)
            materialize(stage, partition)
            faults = [r.check.name for r in run_checks(stage, partition) if not r.passed]
            assert [f for f in faults if f in stage.blocking_checks] == []
    return result


def exported(settings: Settings, store_of: Settings | None = None) -> tuple[pl.DataFrame, dict]:
    """Rows of the Parquet files, and the manifest."""
    summary = open_store(store_of or settings).summary(TRAINING_DATASET)
    uri = Path(export_uri(settings, summary.version))
    parts = [
        pl.read_parquet(path).with_columns(split=pl.lit(path.name.partition("-")[0]))
        for path in sorted(uri.glob("parquet/**/*.parquet"))
    ]
    return pl.concat(parts), json.loads((uri / "manifest.json").read_text())


def test_shares_of_the_files_are_the_stated_ones(settings: Settings) -> None:
    rows, manifest = exported(settings)
    counts = dict(rows.group_by("kind").len().iter_rows())
    assert set(rows["input_ids"].list.len()) == {TOKENS}
    store = open_store(settings)
    available = {
        "constructed": sum(
            len(store.read(LONG_CONTEXT_SAMPLES, s, "samples", ["sample_id"])) for s in SHARDS
        ),
        "natural": sum(
            len(store.read(NATURAL_DOCUMENTS, s, "samples", ["window_id"])) for s in SHARDS
        ),
    }
    assert manifest["left_out"] == 0
    assert len(rows) == sum(counts.values()) == manifest["figures"]["samples"] >= 10
    for part, share in MIXTURE.items():
        assert abs(counts[part] - share * len(rows)) <= 1
        assert manifest["mixture"][part]["samples"] == counts[part]
    assert any(counts[p] + 1 > available[p] - 1 for p in available), "no part limits the total"
    tokens = manifest["figures"]["tokens_by_role"]
    assert sum(tokens.values()) == len(rows) * TOKENS
    segments = rows.select(pl.col("segments").explode().struct.unnest())
    by_role = segments.group_by("role").agg((pl.col("end") - pl.col("start")).sum())
    assert dict(by_role.iter_rows()) == tokens
    by_source = segments.drop_nulls("source").group_by("source")
    sums = dict(by_source.agg((pl.col("end") - pl.col("start")).sum()).iter_rows())
    assert sums == manifest["figures"]["tokens_by_source"]


def test_samples_are_the_tokens_of_their_documents(settings: Settings) -> None:
    rows, _ = exported(settings)
    store, tokenizer = open_store(settings), load_tokenizer(settings.scoring)
    texts, roots = {}, set()
    for shard in SHARDS:
        documents = store.read(CORPUS_DOCUMENTS, shard, "documents", ["doc_id", "text"])
        texts |= dict(documents.iter_rows())
        roots |= set(store.read(ENTROPY_SCORES, shard, "roots", ["root_id"])["root_id"])
    seen = set()
    for row in rows.filter(pl.col("kind") != "constructed").iter_rows(named=True):
        joined: list[int] = list(tokenizer.bos_ids)
        for segment in row["segments"]:
            if segment["role"] == "bos":
                continue
            assert segment["doc_id"] not in roots
            (ids,) = tokenizer.encode([texts[segment["doc_id"]]])
            part = row["input_ids"][segment["start"] : segment["end"]]
            if segment["role"] == "short":
                assert segment["doc_id"] not in seen
                seen.add(segment["doc_id"])
                assert part == [*ids, *tokenizer.separator_ids][: len(part)]
            else:
                assert any(ids[i : i + len(part)] == part for i in range(len(ids)))
            joined += part
        assert joined == row["input_ids"]
        assert row["labels"] == row["input_ids"]
    assert len(seen) > 4


def test_no_document_is_in_both_splits(settings: Settings) -> None:
    rows, manifest = exported(settings)
    documents = rows.select("split", pl.col("segments").list.eval(pl.element().struct["doc_id"]))
    pairs = documents.explode("segments").drop_nulls().unique()
    of = {split: set(pairs.filter(split=split)["segments"]) for split in ("train", "validation")}
    assert of["train"], manifest["splits"]
    assert of["validation"], manifest["splits"]
    assert not of["train"] & of["validation"]


def test_a_second_run_writes_the_same_bytes(settings: Settings, tmp_path: Path) -> None:
    _, manifest = exported(settings)
    export = settings.export.model_copy(update={"destination": str(tmp_path)})
    code = manifest["made_from"]["code_version"]
    again = export_training_data(
        open_store(settings),
        SHARDS[::-1],
        settings.model_copy(update={"export": export}),
        code_version=code,
    )
    assert again.manifest["files"] == manifest["files"]
    assert again.version == manifest["version"]


FORMATS = ("mds", "parquet", "megatron", "olmo", "nanotron", "jsonl")


@pytest.fixture(scope="module")
def published(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The mixture in every format."""
    changes = {"destination": str(tmp_path_factory.mktemp("published")), "formats": FORMATS}
    export = settings.export.model_copy(update=changes)
    return export_training_data(
        open_store(settings),
        SHARDS,
        settings.model_copy(update={"export": export}),
        code_version="c",
    )


def test_every_format_writes_the_mixture_and_the_card_its_shares(published: Export) -> None:
    folder = Path(published.uri)
    assert {p.name for p in folder.iterdir() if p.is_dir()} == set(FORMATS)
    lines = [
        json.loads(line)
        for path in folder.glob("jsonl/*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    kinds = [line["kind"] for line in lines]
    for part in MIXTURE:
        assert kinds.count(part) == published.manifest["mixture"][part]["samples"]
    natural = [line for line in lines if line["kind"] == "natural"]
    assert all(s["original"] for line in natural for s in line["segments"])
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "## Mixture" in card
    assert "| natural | 0.3 |" in card
    for group, weight in expected_weights(published).items():
        assert re.search(rf"^\| {group} \| \d+ \| {float(weight):.6g}\d* \|$", card, re.M), group


def expected_weights(published: Export) -> dict[str, Fraction]:
    """The share of a part, divided among its sources by the rows of the Parquet files."""
    parts = [pl.read_parquet(p) for p in Path(published.uri).glob("parquet/train-*.parquet")]
    counts = pl.concat(parts).group_by("kind", "domain").len().sort("kind", "domain")
    of_part = dict(counts.group_by("kind").agg(pl.col("len").sum()).iter_rows())
    assert set(of_part) == set(MIXTURE)
    return {
        f"{kind}-{domain}": Fraction(str(MIXTURE[kind])) * n / of_part[kind]
        for kind, domain, n in counts.iter_rows()
    }


def code_blocks(published: Export, heading: str, language: str) -> list[str]:
    """Code under a heading of the card, with the folder of the export in its place."""
    text = (Path(published.uri) / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {re.escape(heading)}.*?(?=^#|\Z)", text, re.M | re.S)
    blocks = re.findall(rf"```{language}\n(.*?)```", section, re.S)
    return [block.replace("<folder>", published.uri) for block in blocks]


def value_of(code: str, name: str, folder: str) -> Any:
    """The value assigned to a name, or given to a keyword of this name, in Python code."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.keyword) and node.arg == name:
            return eval(ast.unparse(node.value), {"folder": folder})
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return eval(ast.unparse(node.value), {"folder": folder})
    raise AssertionError(f"no {name}")


def prolong_weights(published: Export) -> dict[str, str]:
    """As its `build_dataset` reads the paths: the proportion follows the first @."""
    (command,) = code_blocks(published, "ProLong", "bash")
    arguments = re.findall(r"--tokenized_mds_train (.*?) \\\n", command)[0].split()
    pairs = dict(argument.split("@", 1) for argument in arguments)
    assert all((Path(path) / "index.json").is_file() for path in pairs)
    return {Path(path).name: weight for path, weight in pairs.items()}


def streaming_weights(published: Export) -> dict[str, float]:
    code = code_blocks(published, "ProLong", "python")[0]
    weights: dict[str, float] = value_of(code, "proportions", published.uri)
    return weights


def megatron_arguments(published: Export) -> dict[str, str]:
    """As its `get_blend_from_list` reads the arguments: weight, prefix, weight, prefix, ..."""
    (command,) = code_blocks(published, "Megatron-LM", "bash")
    arguments = re.findall(r"--train-data-path (.*)\n", command)[0].split()
    pairs = dict(zip(arguments[1::2], arguments[::2], strict=True))
    assert all(Path(f"{prefix}.idx").is_file() for prefix in pairs)
    return {Path(prefix).name.removeprefix("train-"): w for prefix, w in pairs.items()}


def megatron_blend(published: Export) -> dict[str, float]:
    code = code_blocks(published, "Megatron-LM", "python")[0]
    (prefixes, weights), validation, test = value_of(code, "blend_per_split", published.uri)
    assert validation[1] is test is None
    assert all(Path(f"{prefix}.bin").is_file() for prefix in [*prefixes, *validation[0]])
    names = [Path(prefix).name.removeprefix("train-") for prefix in prefixes]
    return dict(zip(names, weights, strict=True))


def olmo_ratios(published: Export) -> dict[str, float]:
    _, code = code_blocks(published, "OLMo-core", "python")
    ratios: dict[str, float] = value_of(code, "ratios", published.uri)
    for name in ratios:
        ids, mask = (f"olmo/{part}/{name}.npy" for part in ("train", "train-label-mask"))
        assert (Path(published.uri) / ids).is_file()
        assert (Path(published.uri) / mask).is_file()
    return ratios


def nanotron_weights(published: Export) -> dict[str, float]:
    (text,) = code_blocks(published, "nanotron", "yaml")
    dataset = yaml.safe_load(text)["data_stages"][0]["data"]["dataset"]
    folders = [Path(folder) for folder in dataset["dataset_folder"]]
    assert all((folder / "samples.ds").is_file() for folder in folders)
    weights = dataset["dataset_weights"]
    return {folder.name: w for folder, w in zip(folders, weights, strict=True)}


@pytest.mark.parametrize(
    "weights_of",
    [
        prolong_weights,
        streaming_weights,
        megatron_arguments,
        megatron_blend,
        olmo_ratios,
        nanotron_weights,
    ],
)
def test_weights_are_in_the_syntax_of_the_trainer(
    published: Export, weights_of: Callable[[Export], Mapping[str, Any]]
) -> None:
    weights = {name: Fraction(str(w)) for name, w in weights_of(published).items()}
    assert sum(weights.values()) == 1
    expected = expected_weights(published)
    assert len(expected) > len(MIXTURE)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert abs(weight - expected[name]) < Fraction(1, 10**9)
    for part, share in MIXTURE.items():
        of_part = [w for name, w in weights.items() if name.startswith(f"{part}-")]
        assert abs(sum(of_part) - Fraction(str(share))) < Fraction(len(of_part), 10**9)


def test_datasets_draw_from_configurations_of_the_parts(published: Export) -> None:
    (code,) = code_blocks(published, "Mixtures with `datasets`", "python")
    probabilities = value_of(code, "probabilities", published.uri)
    parts = re.findall(r'for part in \("(.*)"\)', code)[0].split('", "')
    assert dict(zip(parts, probabilities, strict=True)) == MIXTURE
    (text,) = code_blocks(published, "Mixtures with `datasets`", "yaml")
    entries = yaml.safe_load(text)["datasets"]
    assert {entry["name"]: entry["fraction"] for entry in entries} == MIXTURE
    card = (Path(published.uri) / "README.md").read_text(encoding="utf-8")
    configs = {c["config_name"]: c for c in yaml.safe_load(card.split("---\n")[1])["configs"]}
    for part in MIXTURE:
        (train,) = [f for f in configs[part]["data_files"] if f["split"] == "train"]
        rows = pl.read_parquet(f"{published.uri}/{train['path']}")
        assert set(rows["kind"]) == {part}


def test_card_shows_the_natural_windows_of_the_export(
    published: Export, settings: Settings
) -> None:
    """Figures against the stored tables, counted here in Python."""
    rows = pl.concat(
        [pl.read_parquet(p) for p in Path(published.uri).glob("parquet/*-natural-*.parquet")]
    )
    store = open_store(settings)
    windows, evidence = (
        store.read_all(NATURAL_DOCUMENTS, SHARDS, t) for t in ("windows", "evidence")
    )
    shown = windows.filter(pl.col("window_id").is_in(rows["sample_id"].to_list()))
    own = evidence.filter(pl.col("window_id").is_in(rows["sample_id"].to_list()))
    figures = published.manifest["natural"]
    assert figures["windows_scored"] == len(windows)
    assert figures["windows_kept"] == windows["reason"].null_count() > len(shown)
    assert figures["windows"] == len(shown) == len(rows) > 1
    assert figures["gain"]["median"] == pytest.approx(np.median(shown["gain"]), abs=1e-6)
    assert figures["key_tokens"] == len(own) == shown["key_tokens"].sum() > 0
    found = own.drop_nulls("found_at")
    assert figures["located"] == pytest.approx(len(found) / len(own), abs=1e-6)
    distances = found["position"] - found["found_at"]
    assert figures["distance_median"] == pytest.approx(np.median(distances))
    assert sum(figures["found_in_quarter"]) == pytest.approx(1, abs=1e-5)
    example, tokenizer = figures["example"], load_tokenizer(settings.scoring)
    best = found.filter(pl.col("ngram_tokens") >= 2)["window_id"].unique().to_list()
    gains = dict(shown.select("window_id", "gain").iter_rows())
    assert example["gain"] == pytest.approx(max(gains[name] for name in best), abs=1e-6)
    ids = dict(rows.select("sample_id", "input_ids").iter_rows())[example["window_id"]]
    assert example["tokens"]
    for token in example["tokens"]:
        at, place = token["position"], token["found_at"]
        assert token["token"][1] == tokenizer.decode([ids[at]])
        assert token["found"][1].endswith(tokenizer.decode([ids[place]]))
        assert ids[place] == ids[at]
        assert token["distance"] == at - place >= 64
        assert token["surprisal_short"] - token["surprisal_long"] > 2
    card = (Path(published.uri) / "README.md").read_text(encoding="utf-8")
    assert "## Natural documents" in card
    assert f"| key tokens: need more than the short window | {len(own):,} |" in card
    assert example["window_id"] in card
    section = natural_section(store, SHARDS, tokenizer)
    assert section is not None
    named = {name: value for name, value, _ in section["figures"]}
    assert named["windows described here"] == windows["reason"].null_count()


def test_trial_has_arms_of_natural_windows_and_mixtures(settings: Settings) -> None:
    store, dataset = open_store(settings), Partition(settings, open_store(settings))
    shares = {"constructed": 0.5, "natural": 0.25, "short": 0.25}
    tokenizer = load_tokenizer(settings.scoring)
    n_bos, length = len(tokenizer.bos_ids), TOKENS // 2
    alone = pack_arm(Arm(mixture={"natural": 1}), dataset, [*SHARDS], length, None)
    windows = store.read_all(NATURAL_DOCUMENTS, SHARDS, "samples")
    assert alone.documents == set(windows["doc_id"])
    step = length - n_bos
    expected = {
        (*tokenizer.bos_ids, *ids[n_bos:][at : at + step])
        for ids in windows["input_ids"].to_list()
        for at in range(0, (len(ids) - n_bos) // step * step, step)
    }
    assert {tuple(ids) for ids in alone.rows.token_ids_NT.tolist()} == expected
    assert alone.figures["tokens"]["natural"] == len(expected) * step
    mixed = pack_arm(Arm(mixture=shares), dataset, [*SHARDS], length, None)
    tokens = mixed.figures["tokens"]
    total = mixed.figures["samples"]
    assert total >= 8
    for part in ("natural", "short"):
        assert abs(tokens[part] / step - shares[part] * total) <= 1
    assert mixed.figures["roots"] > 0
    roots = store.read_all(ENTROPY_SCORES, SHARDS, "roots")["root_id"].to_list()
    assert mixed.documents - alone.documents - set(roots), "contexts and short documents"
    again = pack_arm(Arm(mixture=shares), dataset, [*SHARDS], length, None)
    assert again.rows.identity() == mixed.rows.identity()
    assert pack_arm(Arm(mixture=shares), dataset, [*SHARDS], length, 6).figures["samples"] == 6
    with pytest.raises(TrialError, match=r"fewer than trial\.sample_tokens"):
        pack_arm(Arm(mixture={"natural": 1}), dataset, [*SHARDS], 2 * TOKENS, None)


READERS_PYTHON = os.environ.get("ENTROPYLONG_READERS_PYTHON")
READER = Path(__file__).parent / "readers" / "read_mixture.py"
PAGE = Path(__file__).parents[3] / "docs" / "trainers.md"
AT_RANDOM = {"datasets", "torchtitan", "litdata"}
"""Trainers that draw the part of each sample at random."""


@pytest.mark.skipif(
    not READERS_PYTHON, reason="the trainers have an environment of their own: make test-exports"
)
@pytest.mark.parametrize(
    "trainer", ["streaming", "prolong", "megatron", "olmo", "trl", *sorted(AT_RANDOM)]
)
def test_trainers_draw_the_stated_shares(published: Export, tmp_path: Path, trainer: str) -> None:
    command = [str(READERS_PYTHON), str(READER), trainer, published.uri, str(tmp_path), str(PAGE)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    parts = [pl.read_parquet(p) for p in Path(published.uri).glob("parquet/train-*.parquet")]
    part_of = {
        hashlib.sha256(np.array(ids[:64], np.int64).tobytes()).hexdigest(): kind
        for kind, ids in pl.concat(parts).select("kind", "input_ids").iter_rows()
    }
    assert len(part_of) == published.manifest["splits"]["train"]
    drawn = [part_of[name] for name in json.loads(run.stdout.splitlines()[-1])]
    sources = len(published.manifest["sources"]["train"])
    assert len(drawn) >= 8
    for part, share in MIXTURE.items():
        expected = share * len(drawn)
        spread = 4 * (expected * (1 - share)) ** 0.5 if trainer in AT_RANDOM else sources
        assert abs(drawn.count(part) - expected) <= spread, (drawn.count(part), expected)


def test_without_a_mixture_no_weights_are_stated(settings: Settings, tmp_path: Path) -> None:
    changes = {"destination": str(tmp_path), "formats": FORMATS, "mixture": None}
    plain = settings.model_copy(update={"export": settings.export.model_copy(update=changes)})
    export = export_training_data(open_store(settings), SHARDS, plain, code_version="c")
    card = (Path(export.uri) / "README.md").read_text(encoding="utf-8")
    assert "sampling_weights" not in export.manifest
    for word in ("@0", "proportion", "ratio=", "interleave_datasets"):
        assert word not in card
    # nanotron draws from every folder equally often without weights.
    weights = nanotron_weights(export)
    sources = export.manifest["sources"]["train"]
    for name, n in sources.items():
        assert weights[name] == pytest.approx(n / sum(sources.values()), abs=1e-8)


def test_repetition_lets_a_small_part_limit_less(settings: Settings, tmp_path: Path) -> None:
    export = settings.export.model_copy(
        update={"destination": str(tmp_path), "mixture_repeat": 3, "formats": ("parquet",)}
    )
    published = export_training_data(
        open_store(settings),
        SHARDS,
        settings.model_copy(update={"export": export}),
        code_version="c",
    )
    _, once = exported(settings)
    assert published.manifest["figures"]["samples"] > once["figures"]["samples"]
    rows = pl.concat([pl.read_parquet(p) for p in Path(published.uri).glob("parquet/**/*.parquet")])
    assert rows["sample_id"].n_unique() == len(rows) == published.manifest["figures"]["samples"]
    originals = rows["sample_id"].str.split("~").list.first()
    assert originals.value_counts()["count"].max() in (2, 3)


def test_shares_must_add_up(folder: Path, tiny_models: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"export\.mixture: .*must add up to 1, not 0\.9"):
        settings_of(folder, tiny_models, mixture={"constructed": 0.5, "natural": 0.4})
