"""A setting makes exactly the stages stale that it determines. Which shards may be used, and why.

KNOBS is written by hand from what the computations read, not from what the stages declare: for each
setting, the stages whose own content it can change. (Later stages become stale through the data
versions of their inputs.) `training_dataset` also copies all settings into its manifest, which does
not count.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from entropylong_assets.audits.trial.settings import Arm
from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.settings.section import Section, Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.settings import EvaluationSet, FilterSettings, SourceSettings
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.versioning import (
    code_version,
    eligible_shards,
    failed_check,
    is_up_to_date,
    shard_fault,
    stale_reason,
)
from entropylong_assets.storage.manifest import CheckOutcome
from entropylong_assets.storage.tables import WHOLE, TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.tiny_world import tiny_project

D, C, X, E = "corpus_documents", "chunk_embeddings", "embedding_index", "entropy_scores"
R, V, S = "candidate_contexts", "verified_dependencies", "long_context_samples"
T, N, M, L = "training_dataset", "null_calibration", "cross_model_audit", "long_range_audit"
P = "report"
Z = "natural_documents"
Y = "training_trial"
G, Q, B = "document_signatures", "near_duplicates", "index_segments"

KNOBS: dict[str, tuple[Any, set[str]]] = {
    "data_uri": ("elsewhere", set()),
    "seed": (1, {X, E, V, S, T, N, L}),
    "corpus.sources": ((SourceSettings(name="a", uri="b"),), {T}),  # licences
    "corpus.shard_rows": (7, set()),  # the plan of shards; a shard is identified by its rows
    "corpus.on_bad_row": ("skip", set()),  # a shard with bad rows fails, or drops them
    "corpus.max_bad_share": (0.5, set()),  # a check
    "corpus.min_chars": (201, {D}),
    "corpus.max_chars": (2001, {D}),
    "corpus.filters": ((FilterSettings(name="a", use="callable"),), {D}),
    "corpus.decontaminate": ((EvaluationSet(name="a", uri="b"),), {D}),
    "embedding.model": ("m", {C, X, R, N, L}),
    "embedding.trust_remote_code": (True, set()),
    "embedding.query_prompt": ("q: ", {R, N, L}),
    "embedding.document_prompt": ("d: ", {C, X}),
    "embedding.query_task": ("q", {R, N, L}),
    "embedding.document_task": ("d", {C, X}),
    "embedding.dimensions": (16, {C, X, R, N, L}),
    "embedding.dtype": ("bfloat16", {C, X, R, N, L}),
    "embedding.chunk_tokens": (100, {C}),
    "embedding.min_chunk_chars": (65, {C}),
    "embedding.batch_size": (1, set()),
    "embedding.device": ("cpu", set()),
    "embedding.search": ("exact", {X, B}),
    "embedding.ann_min_rows": (256, {X, B}),
    "embedding.index": ("ivf_sq", {X, B}),
    "embedding.index_generation": (1, {X, B}),
    "embedding.target_recall": (0.9, {X}),
    "embedding.recall_queries": (10, {X}),
    "embedding.phrase_documents": (10, {X}),
    "embedding.text_index": (True, {X}),
    "embedding.recall_k": (9, {X}),
    "near_duplicates.threshold": (0.8, {Q}),
    "near_duplicates.threshold_by_source": ({"tiny": 0.8}, {Q}),
    "near_duplicates.shingle_words": (5, {G, Q}),
    "roots.number": (5000, {E}),
    "roots.fraction": (0.5, {E}),
    "roots.fraction_by_source": ({"web": 0.5}, {E}),
    "roots.min_tokens": (255, {E}),
    "roots.max_tokens": (4095, {E}),
    "scoring.model": ("m", {E, R, V, S, N, L}),
    "scoring.trust_remote_code": (True, set()),
    "scoring.device": ("cpu", set()),
    "scoring.dtype": ("bfloat16", {E, V, N, L}),
    "scoring.bos": ("never", {E, V, S, N, L}),
    "scoring.separator": ("\n", {V, S, N, L}),
    "scoring.max_forward_tokens": (4000, {E, V, N, L}),
    "scoring.pack_tokens": (512, set()),  # how fast, not what
    "entropy.alpha": (1.5, {E}),
    "entropy.anchors": ("both", {E}),
    "entropy.min_entropy": (0.5, {E}),
    "entropy.min_anchor_position": (0, {E}),
    "retrieval.half_window": (8, {R}),
    "retrieval.top_k": (4, {R, N}),
    "retrieval.text_candidates": (4, {R}),
    "retrieval.text_half_window": (8, {R}),
    "retrieval.leak_check": ("other", {R, V, N, L}),
    "retrieval.leak_ngram_words": (5, {R, V, N, L}),
    "retrieval.max_containment": (0.5, {R, V, N, L}),
    "verification.rule": ("plain", {V, S, T, N, L}),
    "verification.compared_rules": (("plain",), {V, T, N}),
    "verification.epsilon": (0.2, {V, T, N}),
    "verification.controls": (3, {V}),
    "verification.evidence": (False, {V}),
    "verification.require_surprisal_drop": (False, {V, T, N}),
    "verification.min_calibrated_gain": (0.1, {V, T, N}),
    "verification.min_surprisal_gain": (0.1, {V, T, N}),
    "verification.max_phrase_documents": (9, {V, T, N}),
    "verification.max_pair_documents": (61, {V, T, N}),
    "verification.excluded_anchors": (("url",), {V, T, N}),
    "verification.max_false_acceptance": (0.5, set()),  # a check
    "verification.max_contexts_per_root": (46, {V}),
    "verification.max_forward_tokens_per_root": (100_000, {V}),
    "verification.screen": ("bfloat16", {V}),
    "verification.screen_recall": (0.9, set()),  # without a screen
    "samples.tokens": (8192, {S}),
    "samples.order": ("sequence", {S, L}),
    "samples.layout": ("grouped", {S}),  # an audited window has one root
    "samples.fill": ("verified_only", {S}),
    "samples.recipe": ("random", {S}),
    "samples.max_uses_per_context": (3, {S}),
    "samples.max_uses_per_document": (3, {S}),
    "samples.max_contexts_per_root": (3, {S}),
    "samples.meta_chunk_tokens": (128, {L}),  # of recipe nextlong, which is audited
    "export.formats": (("mds",), {T}),
    "export.destination": ("/elsewhere", {T}),
    "export.validation_fraction": (0.1, {T}),
    "export.max_left_out": (0.1, {T}),
    "export.file_bytes": (4096, {T}),
    "export.loss_weights": ("anchors", {T}),
    "export.mixture": ({"constructed": 1.0}, {T}),
    "export.mixture_repeat": (2, {T}),
    "export.learn_fillers": (False, {T}),
    "export.anchor_weight": (3.0, {T}),
    # Without a share of windows nothing is read.
    "natural.keep": (0.2, {Z}),
    "natural.min_tokens": (1000, set()),
    "natural.short_tokens": (1000, set()),
    "natural.min_gzip_ratio": (0.2, set()),
    "natural.max_gzip_ratio": (0.5, set()),
    "audit.roots": (3, {N, L}),
    "audit.controls": (3, {N}),
    "audit.wished_false_acceptance": (0.1, {N, P}),
    "audit.pairs": (3, set()),
    "audit.model": ("m2", {M}),
    "audit.recipes": (("random",), {L}),
    "audit.short_tokens": (64, {L}),
    "audit.segment_tokens": (32, {L}),
    "audit.segment_pairs": (2, {L}),
    # Without arms there is no trial.
    "trial.arms": ({"quest": Arm(recipe="quest")}, {Y}),
    "trial.tokens": (1000, set()),
    "trial.sample_tokens": (8192, set()),
    "trial.seeds": ((0,), set()),
    "trial.evaluation": ("text.jsonl", set()),
    "trial.items": (8, set()),
    "trial.natural": (8, set()),
    "trial.short_window": (64, set()),
    "trial.learning_rate": (1e-3, set()),
    "trial.batch_tokens": (16384, set()),
    "trial.max_repeats": (1, set()),
    "trial.max_short_loss": (0.1, set()),  # a check
}

ALL = ("plain", "calibrated", "genuine")
_ARMS = {"trial.arms": {"genuine": Arm(rule="genuine"), "random": Arm(recipe="random")}}

OTHER_BASES: list[tuple[dict[str, Any], str, Any, set[str]]] = [
    # A second model: its audit depends on the pairs that it scores and on its settings.
    *(
        ({"audit.model": "m2"}, path, value, stages | {M})
        for path, (value, stages) in KNOBS.items()
        if path
        in (
            "seed",
            "scoring.model",
            "scoring.bos",
            "scoring.dtype",
            "scoring.max_forward_tokens",
            "scoring.separator",
            "verification.epsilon",
            "audit.roots",
            "audit.pairs",
        )
    ),
    ({"audit.model": "m2"}, "verification.rule", "plain", {V, S, T, N, L}),
    # Natural documents.
    *(
        ({"natural.keep": 0.2}, path, value, KNOBS[path][1] | {Z})
        for path, value in [
            ("natural.keep", 0.3),
            ("natural.min_tokens", 1000),
            ("natural.short_tokens", 1000),
            ("natural.min_gzip_ratio", 0.2),
            ("natural.max_gzip_ratio", 0.5),
            ("samples.tokens", 8192),
            ("scoring.model", "m"),
            ("scoring.bos", "never"),
            ("scoring.dtype", "bfloat16"),
            ("scoring.max_forward_tokens", 4000),
        ]
    ),
    # A trial: what the samples of its arms are made of, and its own settings but that of a check.
    *(
        (_ARMS, path, value, stages | ({Y} if path != "trial.max_short_loss" else set()))
        for path, (value, stages) in KNOBS.items()
        if path
        in {
            "seed",
            "scoring.model",
            "scoring.bos",
            "scoring.separator",
            "verification.rule",
            "samples.order",
            "samples.layout",
            "samples.fill",
            "samples.max_uses_per_context",
            "samples.max_uses_per_document",
            "samples.max_contexts_per_root",
            "retrieval.leak_check",
            "retrieval.leak_ngram_words",
            "retrieval.max_containment",
            "embedding.model",
            "embedding.query_prompt",
            "embedding.query_task",
            "embedding.dimensions",
            "embedding.dtype",
        }
        or path.startswith("trial.")
    ),
    (_ARMS, "samples.tokens", 8192, {S}),
    (_ARMS, "samples.recipe", "random", {S}),
    (_ARMS, "scoring.dtype", "bfloat16", {E, V, N, L}),
    # Recipes.
    ({"samples.recipe": "nextlong"}, "samples.meta_chunk_tokens", 128, {S, L}),
    ({"samples.recipe": "nextlong"}, "samples.layout", "grouped", set()),
    ({"samples.recipe": "random"}, "samples.meta_chunk_tokens", 128, {L}),
    ({"samples.recipe": "random"}, "samples.layout", "grouped", {S}),
    ({"samples.recipe": "random"}, "retrieval.max_containment", 0.5, {R, V, S, N, L}),
    ({"samples.recipe": "random"}, "retrieval.leak_check", "other", {R, V, S, N, L}),
    ({"samples.recipe": "random"}, "embedding.model", "m", {C, X, R, S, N, L}),
    # Without controls nothing is drawn.
    ({"verification.controls": 0}, "seed", 1, {X, E, S, T, N, L}),
    ({"verification.controls": 0}, "retrieval.leak_check", "other", {R, N, L}),
    # A setting of a rule that is not evaluated.
    (
        {"verification.rule": "genuine", "verification.compared_rules": ()},
        "verification.epsilon",
        0.2,
        set(),
    ),
    (
        {"verification.rule": "plain", "verification.compared_rules": ("plain",)},
        "verification.require_surprisal_drop",
        False,
        set(),
    ),
]


def leaves(settings: BaseModel, prefix: str = "") -> set[str]:
    """Dotted paths of all settings."""
    names = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        inner = f"{prefix}{name}."
        names |= leaves(value, inner) if isinstance(value, BaseModel) else {prefix + name}
    return names


def with_value(settings: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    inner = with_value(getattr(settings, name), rest, value) if rest else value
    return settings.model_copy(update={name: inner})


def changed(project: Project, path: str, value: Any) -> Project:
    """The project with one setting changed, in its short form; not validated."""
    corpus, dataset = project.corpus, project.dataset
    of_corpus = path.removeprefix("corpus.")
    if path.startswith("corpus.") or hasattr(corpus, path.partition(".")[0]):
        corpus = with_value(corpus, of_corpus, value)
    if hasattr(dataset, path.partition(".")[0]) and not path.startswith("corpus."):
        dataset = with_value(dataset, path, value)
    dataset = dataset.model_copy(update={"corpus": corpus})
    result = project.model_copy(
        update={"corpora": {corpus.name: corpus}, "datasets": {dataset.name: dataset}}
    )
    assert result != project
    return result


def versions(project: Project) -> dict[str, str]:
    owners = {"corpus": project.corpus, "dataset": project.dataset}
    return {stage.name: code_version(stage, owners[stage.scope]) for stage in project.stages}


def all_rules() -> Project:
    """The defaults, with all rules evaluated, so that the settings of all count."""
    return make_project({"verification": {"rule": "calibrated", "compared_rules": ALL}})


def stale_stages(base: Project, path: str, value: Any) -> set[str]:
    before, after = versions(base), versions(changed(base, path, value))
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("knob", KNOBS)
def test_setting_changes_the_versions_of_what_it_determines(knob: str) -> None:
    value, stale = KNOBS[knob]
    assert stale_stages(all_rules(), knob, value) == stale


@pytest.mark.parametrize(
    ("base", "path", "value", "stale"),
    [
        pytest.param(*case, id="-".join(f"{k}={v}" for k, v in case[0].items()) + f"-{case[1]}")
        for case in OTHER_BASES
    ],
)
def test_setting_determines_by_other_settings(
    base: dict[str, Any], path: str, value: Any, stale: set[str]
) -> None:
    project = all_rules()
    for base_path, base_value in base.items():
        project = changed(project, base_path, base_value)
    assert stale_stages(project, path, value) == stale


def test_the_table_names_every_setting() -> None:
    """A new setting must say here what it determines."""
    project = make_project()
    of_corpus = {p if "." in p else f"corpus.{p}" for p in leaves(project.corpus)}
    of_dataset = {p for p in leaves(project.dataset) if not p.startswith("corpus.")}
    shared = {"name", "data_uri", "seed"}
    known = {p for p in of_corpus if p.removeprefix("corpus.") not in shared} | of_dataset
    assert known - {"name"} == set(KNOBS)


def test_where_a_step_runs_changes_no_version() -> None:
    """Tables made on a laptop would otherwise be stale on the cluster."""
    before = make_project({"data_uri": "/data"})
    resources = {stage.name: {"num_cpus": 3, "memory": "2GiB"} for stage in STAGES}
    cluster = {"engine": "ray", "address": "http://head:8265", "resources": resources}
    after = make_project({"data_uri": "/data", "cluster": cluster})
    assert versions(before) == versions(after)


def test_names_change_no_version() -> None:
    """Equal data of two datasets have equal versions."""
    named = make_project({"name": "ours", "corpus": {"name": "web"}})
    assert versions(named) == versions(make_project())


def test_no_two_stages_share_a_version() -> None:
    by_stage = versions(make_project())
    assert len(set(by_stage.values())) == len(by_stage) == len(STAGES)


# What a computation reads

WITHOUT_EFFECT = {
    "data_uri", "name", "corpus.name", "corpus.data_uri", "corpus.on_bad_row",
    "corpus.max_bad_share", "corpus.shard_rows", "scoring.device", "scoring.pack_tokens",
    "scoring.trust_remote_code", "embedding.device", "embedding.batch_size",
    "embedding.trust_remote_code", "verification.max_false_acceptance",
}  # fmt: skip
"""Settings that computations may read although they don't determine the content, by KNOBS."""

_SAMPLE_STAGES = (D, C, X, E, R, V, S)
_OF_QUERIES = {"embedding.query_prompt", "embedding.query_task"}
_OF_CHUNKS = {"embedding.chunk_tokens", "embedding.document_prompt", "embedding.document_task"}
READ_WITHOUT_EFFECT: dict[str, set[str]] = {
    # `identify` returns the shard's own source; the other settings are declared if they are used.
    D: {"corpus.sources", "corpus.filters", "corpus.decontaminate"},
    # Recorded settings are validated again.
    P: {
        "corpus.sources", "corpus.filters", "corpus.decontaminate",
        "near_duplicates.threshold_by_source", "natural.min_gzip_ratio", "natural.max_gzip_ratio",
        "trial.arms",
    },
    G: {"near_duplicates.threshold"},  # identified: whether there is one
    # Identified: the embedder and its prompt.
    B: {"embedding.model", "embedding.document_prompt"},
    # Opening the embedder tests it with a query and a chunk, of which only one is used here.
    C: _OF_QUERIES,
    # Restored documents are cut as the others were, or refused.
    X: {"embedding.chunk_tokens", "embedding.min_chunk_chars", *_OF_QUERIES},
    # Opening the tokenizer reads its framing, which a query or an entropy does not contain.
    E: {"scoring.separator"},
    R: {*_OF_CHUNKS, "scoring.separator", "scoring.bos"},
    N: _OF_CHUNKS,
    L: {
        *_OF_CHUNKS,
        # Set by the audit itself, in copies of the settings.
        "samples.recipe", "samples.fill", "samples.layout", "samples.tokens",
        # A recipe whose verdicts are not stored is refused.
        "verification.compared_rules",
    },
}  # fmt: skip
"""The same for single stages, with the reason."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[tuple[type, str]]:
    """The (class of settings, field) pairs that are read from now on."""
    pairs: set[tuple[type, str]] = set()
    original = Section.__getattribute__

    def recording(self: Section, name: str) -> Any:
        if not name.startswith("_") and name in type(self).model_fields:
            pairs.add((type(self), name))
        return original(self, name)

    monkeypatch.setattr(Section, "__getattribute__", recording, raising=False)
    return pairs


def short_paths(project: Project) -> dict[tuple[type, str], str]:
    """The path in the short form of every setting, by its class and field."""
    corpus, dataset = project.corpus, project.dataset
    paths: dict[tuple[type, str], str] = {}
    for owner in (corpus, dataset):
        for name in type(owner).model_fields:
            section = getattr(owner, name)
            if isinstance(section, Settings):
                continue
            if isinstance(section, Section):
                paths |= {(type(section), f): f"{name}.{f}" for f in type(section).model_fields}
            else:
                is_own = owner is corpus and name not in type(dataset).model_fields
                paths[type(owner), name] = f"corpus.{name}" if is_own else name
    return paths


def declared_paths(stage: Stage, settings: Settings) -> set[str]:
    """What the stage declares, as paths in the short form down to single settings."""
    paths = set()
    for path in stage.determined_by(settings):
        value: Any = settings
        for part in path.split("."):
            value = getattr(value, part)
        name = path.removeprefix("corpus.") if path != "corpus.sources" else path
        if stage.scope == "corpus" and "." not in name and name != "seed":
            name = f"corpus.{name}"
        paths |= {f"{name}.{f}" for f in leaves(value)} if isinstance(value, Section) else {name}
    return paths


@pytest.mark.parametrize("stage", [s for s in STAGES if s.name != T], ids=lambda s: s.name)
def test_stage_reads_only_what_it_declares(
    stage: Stage, copied: Copied, reads: set[tuple[type, str]]
) -> None:
    """`training_dataset` is left out: it repeats all settings in its manifest."""
    partition, paths = copied.partition(stage), short_paths(copied.project)
    declared = declared_paths(stage, partition.settings)
    reads.clear()
    materialize(stage, partition)
    seen = {paths[key] for key in set(reads) if key in paths}
    allowed = declared | WITHOUT_EFFECT | READ_WITHOUT_EFFECT.get(stage.name, set())
    if stage.name == P:  # it shows the settings that the samples' manifests have recorded
        for name in _SAMPLE_STAGES:
            stage_copy = copied.stage(name)
            allowed |= declared_paths(stage_copy, copied.partition(stage_copy).settings)
    assert seen - allowed == set()
    if stage.name != M:
        assert seen & declared or not declared


# Which shards may be used


class Copied:
    """A copy of the world's data, to be changed."""

    def __init__(self, project: Project, shards: tuple[str, ...]) -> None:
        self.project, self.shards = project, shards
        self.store: TableStore = open_store(project.dataset)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.project.stages if stage.name == name)

    def partition(self, stage: Stage | str, shard: str | None = None) -> Partition:
        stage = self.stage(stage) if isinstance(stage, str) else stage
        settings = self.project.corpus if stage.scope == "corpus" else self.project.dataset
        if not stage.partitioned:
            shard = WHOLE
        return Partition(settings, open_store(settings), shard or self.shards[0])

    def up_to_date(self, name: str, shard: str | None = None) -> bool:
        return is_up_to_date(self.stage(name), self.partition(name, shard))

    def change_manifest(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        partition = self.partition(name)
        folder = partition.store.folder(self.stage(name).tables, partition.shard)
        path = Path(folder) / "manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def remove_outcomes(self, name: str, shard: str) -> None:
        (Path(self.store.folder(self.stage(name).tables, shard)) / "checks.json").unlink()

    def fail(self, name: str, shard: str, check: str) -> None:
        stage = self.stage(name)
        blocking = next(c.blocking for c in stage.checks if c.name == check)
        outcome = CheckOutcome(passed=False, blocking=blocking, faulty_rows=2)
        self.store.record_checks(stage.tables, shard, {check: outcome})


@pytest.fixture
def copied(world: World, tiny_models: tuple[str, str], tmp_path: Path) -> Copied:
    shutil.copytree(world.project.data_uri, tmp_path / "data")
    return Copied(tiny_project(world.corpus, tmp_path / "data", tiny_models), world.shards)


def test_copied_data_are_up_to_date(copied: Copied) -> None:
    for stage in STAGES:
        if stage.name not in (B, N, M, L, Y):
            assert stale_reason(stage, copied.partition(stage)) is None, stage.name


def test_another_index_over_the_same_shards_makes_what_searched_it_stale(copied: Copied) -> None:
    """Fewer probes do not change the tables of the index, but they change its tag."""
    version = copied.store.require(copied.stage(X).tables).data_version

    def other_tag(manifest: dict[str, Any]) -> None:
        manifest["summary"]["tag"] = "index-2"

    def searched_other(manifest: dict[str, Any]) -> None:
        manifest["summary"]["index"] = manifest["determinants"]["index"] = "index-2"

    assert copied.up_to_date(R)
    assert copied.up_to_date(V)
    copied.change_manifest(X, other_tag)
    assert copied.store.require(copied.stage(X).tables).data_version == version
    assert not copied.up_to_date(R)
    assert stale_reason(copied.stage(R), copied.partition(R)) == "index has changed"
    copied.change_manifest(R, searched_other)
    assert copied.up_to_date(R)
    assert not copied.up_to_date(V)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["determinants"].update(code=0), "made by other code"),
        (lambda m: m["determinants"]["settings"].update({"entropy.alpha": 9}), "setting entropy"),
        (lambda m: m["determinants"]["settings"].pop("seed"), "setting seed has changed"),
        (lambda m: m["determinants"]["inputs"].update({D: "x"}), f"input {D} has changed"),
        (lambda m: m["determinants"].update(model="other"), "model has changed"),
        (lambda m: m.update(format_version=1), "written in format 1"),
    ],
)
def test_reason_names_what_has_changed(
    copied: Copied, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    copied.change_manifest(E, change)
    reason = stale_reason(copied.stage(E), copied.partition(E))
    assert reason is not None
    assert words in reason


def test_all_shards_of_a_sound_project_are_eligible(copied: Copied) -> None:
    for name in (X, T):
        eligibility = eligible_shards(copied.stage(name), copied.partition(name))
        assert eligibility.shards == copied.shards
        assert eligibility.left_out == {}


@pytest.mark.parametrize(
    ("broken", "check", "left_out_by"),
    [
        (D, "unique_documents", {X, T}),
        (C, "one_vector_per_chunk", {X}),  # samples are made of what the index contains
        (E, "anchors_recomputed", {T}),
        (V, "verdicts_recomputed", {T}),
        (S, "exact_length", {T}),
    ],
)
@pytest.mark.parametrize("outcome", ["failed", "never ran"])
def test_shard_without_its_blocking_checks_is_left_out(
    copied: Copied, broken: str, check: str, left_out_by: set[str], outcome: str
) -> None:
    bad = copied.shards[1]
    if outcome == "failed":
        copied.fail(broken, bad, check)
        words = f"check {check} of {broken} failed"
    else:
        copied.remove_outcomes(broken, bad)
        words = f"of {broken} has not run on the present data"
    for name in (X, T):
        eligibility = eligible_shards(copied.stage(name), copied.partition(name))
        if name in left_out_by:
            assert eligibility.shards == copied.shards[:1]
            assert words in eligibility.left_out[bad]
        else:
            assert eligibility.shards == copied.shards


def test_stages_over_all_shards_leave_out_a_failed_shard(copied: Copied) -> None:
    """Through the computation: neither the index nor the export contains it, and both say so."""
    bad = copied.shards[1]
    copied.fail(C, bad, "vectors_unit_length")
    warnings: list[str] = []
    index = materialize(copied.stage(X), copied.partition(X), warn=warnings.append)
    tables = copied.stage(X).tables
    assert index.left_out == {bad: f"check vectors_unit_length of {C} failed"}
    assert any(bad in line for line in warnings)
    assert copied.store.read(tables, WHOLE, "shards")["shard"].to_list() == [copied.shards[0]]

    copied.fail(S, bad, "segments_tile")
    export = materialize(copied.stage(T), copied.partition(T))
    assert export.left_out == {bad: f"check segments_tile of {S} failed"}
    tables = copied.stage(T).tables
    assert copied.store.read(tables, WHOLE, "shards")["shard"].to_list() == [copied.shards[0]]
    assert copied.store.read(tables, WHOLE, "left_out")["shard"].to_list() == [bad]


def test_failed_warning_holds_nothing_back(copied: Copied) -> None:
    for name, check in ((D, "bad_rows"), (V, "false_acceptance_low")):
        copied.fail(name, copied.shards[1], check)
        assert failed_check(copied.stage(name), copied.partition(name, copied.shards[1])) is None
    assert eligible_shards(copied.stage(T), copied.partition(T)).left_out == {}


def test_outcomes_end_with_the_data_that_they_belong_to(copied: Copied) -> None:
    """A partition that is made again has not passed its checks until they run again."""
    shard = copied.shards[0]
    partition = copied.partition(D, shard)
    assert failed_check(copied.stage(D), partition) is None
    other = replace(partition, settings=partition.settings.model_copy(update={"min_chars": 21}))
    materialize(copied.stage(D), other)
    fault = failed_check(copied.stage(D), partition)
    assert fault is not None
    assert "has not run on the present data" in fault
    assert all(result.passed for result in run_checks(copied.stage(D), other))
    assert failed_check(copied.stage(D), partition) is None


def test_shard_made_from_older_inputs_is_left_out(copied: Copied) -> None:
    shard = copied.shards[0]

    def older(manifest: dict[str, Any]) -> None:
        manifest["determinants"]["inputs"][D] = "0" * 16

    copied.change_manifest(C, older)
    fault = shard_fault(copied.stage(X), copied.partition(C, shard))
    assert fault == f"{C} was made from an older {D}; materialize it again"
    assert eligible_shards(copied.stage(X), copied.partition(X)).shards == copied.shards[1:]


def test_export_alone_leaves_out_shards_made_under_other_settings(copied: Copied) -> None:
    """The index may contain shards made under other settings; an export must have one set."""

    def other(manifest: dict[str, Any]) -> None:
        manifest["determinants"]["settings"]["embedding.min_chunk_chars"] = 9

    def other_alpha(manifest: dict[str, Any]) -> None:
        manifest["determinants"]["settings"]["entropy"]["alpha"] = 9

    copied.change_manifest(C, other)
    assert eligible_shards(copied.stage(X), copied.partition(X)).left_out == {}
    copied.change_manifest(E, other_alpha)
    left_out = eligible_shards(copied.stage(T), copied.partition(T)).left_out
    assert left_out == {
        copied.shards[0]: f"{E} is stale (setting entropy has changed); materialize it again"
    }


def test_partition_whose_input_was_removed_is_stale(copied: Copied) -> None:
    """The failure: an error, although a run would make the input again."""
    shutil.rmtree(copied.store.folder(copied.stage(R).tables, copied.shards[0]))
    reason = stale_reason(copied.stage(V), copied.partition(V))
    assert reason is not None
    assert f"{R}, {copied.shards[0]}: not materialized yet" in reason
    assert not copied.up_to_date(V)
    shutil.rmtree(copied.store.folder(copied.stage(X).tables))
    assert "an input can't be read" in str(
        stale_reason(copied.stage(R), copied.partition(R, copied.shards[1]))
    )
