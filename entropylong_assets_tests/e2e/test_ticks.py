"""New files flow to samples by sensor and conditions alone; one bad shard stops only itself.

The ticks and the runs they ask for are evaluated here in one process; `test_one_day.py` does the
same with the real daemon.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.scanning import register, scan
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.orchestration.test_sensors import tick
from entropylong_assets_tests.stage_names import SHARDWISE, path_of
from entropylong_assets_tests.tiny_world import document, tiny_values


def write_file(path: Path, seeds: range, broken: int = 0) -> None:
    lines = [json.dumps({"text": document(seed), "id": f"{path.stem}{seed}"}) for seed in seeds]
    for row in range(broken):
        lines[row] = lines[row][:-9]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Operator:
    """Dagster's daemon in this process: ticks of both sensors, and the runs they ask for."""

    def __init__(self, project: Project, instance: dg.DagsterInstance) -> None:
        self.project, self.instance = project, instance
        self.store = open_store(project.dataset)
        self.defs = build_definitions(project)
        self.resources = self.defs.resources
        self.repository = self.defs.get_repository_def()
        self.cursor: object = None
        self.runs: Counter[tuple[str, str]] = Counter()
        self.asked: set[str] = set()

    def scan(self) -> str:
        """One tick of `new_files`; returns what it says."""
        result = tick(self.project, self.instance, "corpus__new_files")
        for request in result.run_requests or []:
            assert request.run_key is not None
            assert request.run_key not in self.asked
            self.asked.add(request.run_key)
            self.run(["corpus_documents", "chunk_embeddings"], request.partition_key)
        return result.skip_message or ""

    def run(self, assets: list[str], shard: str | None) -> bool:
        job = self.repository.get_job("__ASSET_JOB")
        done = job.execute_in_process(
            instance=self.instance,
            partition_key=shard,
            asset_selection=[dg.AssetKey(path_of(asset)) for asset in assets],
            raise_on_error=False,
        )
        self.runs.update((asset, shard or WHOLE) for asset in assets)
        return done.success

    def carry(self, most_ticks: int = 12) -> list[list[tuple[str, tuple[str, ...]]]]:
        """Ticks of `carry_new_shards` until one asks for nothing; returns what each asked for."""
        ticks = []
        for _ in range(most_ticks):
            with pytest.MonkeyPatch.context() as patch:
                # Each node of each condition asks for the shards, which stay the same in a tick:
                # half of a test's time.
                asked_once = cache(self.instance.get_dynamic_partitions)
                patch.setattr(self.instance, "get_dynamic_partitions", asked_once)
                result = dg.evaluate_automation_conditions(
                    defs=self.defs,
                    instance=self.instance,
                    cursor=self.cursor,  # type: ignore[arg-type]
                )
            self.cursor = result.cursor
            wanted: dict[str | None, list[str]] = {}
            for evaluation in result.results:
                asset = evaluation.key.path[-1]
                subset = result.get_requested_partitions(evaluation.key)
                for shard in sorted(subset, key=str):
                    wanted.setdefault(shard, []).append(asset)
            if not wanted:
                return ticks
            ticks.append([(shard or WHOLE, tuple(sorted(a))) for shard, a in wanted.items()])
            for shard, assets in wanted.items():
                self.run(assets, shard)
        raise AssertionError(f"still asking after {most_ticks} ticks: {ticks}")

    def sweep(self, schedule: str) -> list[dg.RunRequest]:
        """One tick of a schedule."""
        definition = self.repository.get_schedule_def(schedule)
        context = dg.build_schedule_context(
            instance=self.instance, repository_def=self.repository, resources=self.resources
        )
        with partition_loading_context(dynamic_partitions_store=self.instance):
            return list(definition.evaluate_tick(context).run_requests or [])

    def times(self, asset: str) -> dict[str, list[float]]:
        records = self.instance.fetch_materializations(
            dg.AssetKey(path_of(asset)), limit=1000
        ).records
        times: dict[str, list[float]] = {}
        for record in records:
            times.setdefault(record.partition_key or WHOLE, []).append(record.timestamp)
        return times


@pytest.fixture
def operator(tmp_path: Path, tiny_models: tuple[str, str]) -> Iterator[Operator]:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, first in (("a", 100), ("b", 200)):
        write_file(corpus / f"{name}.jsonl", range(first, first + 12))
    values = tiny_values(corpus, tmp_path / "data", tiny_models)
    values["corpus"]["on_bad_row"] = "skip"
    project = make_project(values)
    home = tmp_path / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield Operator(project, instance)


def test_new_files_become_samples_and_old_shards_stay(operator: Operator) -> None:
    corpus = Path(operator.project.corpus.sources[0].uri).parent
    operator.carry()  # the sensor was on before anything was there
    operator.scan()
    ticks = operator.carry()
    flat = [step for tick in ticks for step in tick]
    three = ("candidate_contexts", "long_context_samples", "verified_dependencies")
    for shard in ("tiny-00000", "tiny-00001"):
        steps = [assets for at, assets in flat if at == shard]
        assert steps[0] == ("document_signatures", "entropy_scores")
        assert sorted(a for assets in steps[1:] for a in assets) == sorted(
            [*three, "natural_documents"]
        )
    whole = [a for at, a in flat if at == WHOLE]
    names = [name for assets in whole for name in assets]
    assert names == ["near_duplicates", "embedding_index", "training_dataset", "report"]
    assert operator.scan() == "nothing new in 2 shards"
    before = {asset: operator.times(asset) for asset in SHARDWISE}
    assert all(set(times) == {"tiny-00000", "tiny-00001"} for times in before.values())

    for name, first in (("c", 300), ("d", 400)):
        write_file(corpus / f"{name}.jsonl", range(first, first + 12))
    operator.scan()
    operator.carry()
    for asset in SHARDWISE:
        times = operator.times(asset)
        assert {shard: times[shard] for shard in before[asset]} == before[asset]
        assert set(times) == {f"tiny-0000{i}" for i in range(4)}
    # Once for each of the two batches.
    assert len(operator.times("embedding_index")[WHOLE]) == 2
    assert len(operator.times("training_dataset")[WHOLE]) == 2
    index = operator.store.read(EMBEDDING_INDEX, WHOLE, "shards")
    assert index["shard"].to_list() == [f"tiny-0000{i}" for i in range(4)]


def test_a_poisoned_file_stops_only_its_shard_and_heals(operator: Operator) -> None:
    corpus = Path(operator.project.corpus.sources[0].uri).parent
    write_file(corpus / "b.jsonl", range(200, 212), broken=8)
    operator.carry()
    operator.scan()
    operator.carry()
    assert set(operator.times("corpus_documents")) == {"tiny-00000", "tiny-00001"}
    for asset in SHARDWISE[1:]:
        assert set(operator.times(asset)) == {"tiny-00000"}, asset
    store = operator.store
    assert store.read(EMBEDDING_INDEX, WHOLE, "shards")["shard"].to_list() == ["tiny-00000"]
    key = dg.AssetCheckKey(dg.AssetKey(path_of("corpus_documents")), "few_bad_rows")
    history = operator.instance.event_log_storage.get_asset_check_execution_history(key, 10)
    verdicts = {
        e.partition: (e.passed, e.metadata)
        for record in history
        if (e := record.event.dagster_event.asset_check_evaluation_data)  # type: ignore[union-attr]
    }
    assert verdicts["tiny-00000"][0]
    assert not verdicts["tiny-00001"][0]
    shown = verdicts["tiny-00001"][1]
    assert shown["faulty rows"].value == 8
    assert "b.jsonl" in str(shown["examples"].value)
    # A run started by hand is not held back by Dagster: the index looks itself.
    assert operator.run(["chunk_embeddings"], "tiny-00001")
    assert operator.run(["embedding_index"], None)
    assert store.read(EMBEDDING_INDEX, WHOLE, "shards")["shard"].to_list() == ["tiny-00000"]

    untouched = {asset: operator.times(asset)["tiny-00000"] for asset in SHARDWISE}
    write_file(corpus / "b.jsonl", range(200, 212))
    operator.scan()
    operator.carry()
    for asset in SHARDWISE:
        times = operator.times(asset)
        assert set(times) == {"tiny-00000", "tiny-00001"}, asset
        assert times["tiny-00000"] == untouched[asset]


def test_the_sweeps_find_what_no_tick_saw(operator: Operator) -> None:
    """The runs that a scan asked for were lost and no sensor is on: each step is found."""
    corpus_settings = operator.project.corpus
    corpus = Path(corpus_settings.sources[0].uri).parent
    for seen in range(2):  # the second time for a changed file
        if seen:
            write_file(corpus / "b.jsonl", range(500, 512))
        register(corpus_settings, scan(corpus_settings, operator.instance), operator.instance)
        steps = []
        for _ in range(10):
            gaps = [*operator.sweep("corpus__fill_gaps"), *operator.sweep("dataset__fill_gaps")]
            index = operator.sweep("corpus__refresh_index")
            for request in gaps:
                assert request.asset_selection is not None
                [key] = request.asset_selection
                steps.append((request.partition_key, key.path[-1]))
                operator.run([key.path[-1]], request.partition_key)
            for _ in index:  # the job `index`
                steps.append((WHOLE, "index"))
                operator.run(["near_duplicates", "embedding_index"], None)
            if not gaps and not index:
                break
        changed = [asset for shard, asset in steps if shard == "tiny-00001"]
        # A corpus and its dataset take turns, so that the order is not that of the data.
        assert sorted(changed) == sorted(SHARDWISE), steps
        assert len([shard for shard, _ in steps if shard == WHOLE]) == 1, steps
        first = [asset for shard, asset in steps if shard == "tiny-00000"]
        assert sorted(first) == ([] if seen else sorted(SHARDWISE))
    # A gap that was requested and is still there has failed. The index goes on without the shard.
    write_file(corpus / "b.jsonl", range(600, 612))
    register(corpus_settings, scan(corpus_settings, operator.instance), operator.instance)
    operator.run(["corpus_documents"], "tiny-00001")
    [request] = operator.sweep("corpus__fill_gaps")
    assert operator.sweep("corpus__refresh_index") == []
    operator.instance.create_run_for_job(
        operator.repository.get_job("__ASSET_JOB"),
        status=dg.DagsterRunStatus.FAILURE,
        tags={"dagster/run_key": str(request.run_key)},
    )
    assert len(operator.sweep("corpus__refresh_index")) == 1
