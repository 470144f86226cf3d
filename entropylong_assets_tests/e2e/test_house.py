"""Two corpora and four datasets in one Dagster instance with its daemon: nothing of theirs touches.

The tests follow one another on one server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets_tests.e2e.conftest import keep_picture
from entropylong_assets_tests.e2e.server import Server
from entropylong_assets_tests.stage_names import BY_NAME, SHARDWISE
from entropylong_assets_tests.tiny_world import document, tiny_values, write_models

if TYPE_CHECKING:
    from playwright.sync_api import Page

CORPORA = ("web", "books")
OVER_WEB = ("calibrated", "paper_rule", "second_model")
DATASETS = (*OVER_WEB, "of_books")
OF_DATASET = [name for name in SHARDWISE if BY_NAME[name].scope == "dataset"]


def write_file(folder: Path, name: str, first: int) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": document(first + i), "id": f"{name}{i}"}) for i in range(12)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def house(folder: Path) -> dict[str, Any]:
    """Content of a settings file with two corpora and four datasets, over two scoring models."""
    first, second = folder / "first", folder / "second"
    for place, seed in ((first, 3), (second, 5)):
        place.mkdir()
        write_models(place, seed)
    values = tiny_values(
        folder / "unused", folder / "data", (str(first / "llama"), str(first / "bert"))
    )
    corpus = values.pop("corpus")
    shared = {name: values.pop(name) for name in ("embedding", "near_duplicates")}
    data_uri = values.pop("data_uri")
    corpora = {}
    for name, seed in zip(CORPORA, (1000, 5000), strict=True):
        for number, letter in enumerate("ab"):
            write_file(folder / name, letter, seed + 100 * number)
        source = {"name": name, "uri": f"{folder / name}/*.jsonl", "id_field": "id"}
        corpora[name] = {**corpus, "sources": [source], **shared}
    scoring = values["scoring"] | {"model": str(second / "llama")}
    rule = {"rule": "plain", "require_surprisal_drop": False}
    return {
        "data_uri": data_uri,
        "corpora": corpora,
        "datasets": {
            "calibrated": {"corpus": "web", **values},
            "paper_rule": {
                "corpus": "web",
                **values,
                "verification": values["verification"] | rule,
            },
            "second_model": {"corpus": "web", **values, "scoring": scoring},
            "of_books": {"corpus": "books", **values},
        },
    }


class House:
    """The server, its settings, and what its instance and its tables hold."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.values = folder, house(folder)
        self.server = Server(folder, self.values)

    @property
    def project(self) -> Project:
        return make_project(self.values)

    def path(self, owner: str, stage: str) -> list[str]:
        dataset = self.project.datasets.get(owner)
        name = dataset.corpus.name if dataset and BY_NAME[stage].scope == "corpus" else owner
        return [name, stage]

    def times(self, owner: str, stage: str) -> dict[str, list[float]]:
        return self.server.materializations_of(self.path(owner, stage))

    def made(self, owner: str, stage: str) -> set[str]:
        return set(self.times(owner, stage))

    def snapshot(self, *owners: str) -> dict[tuple[str, str], dict[str, list[float]]]:
        return {
            (owner, stage): self.times(owner, stage)
            for owner in owners
            for stage in BY_NAME
            if (BY_NAME[stage].scope == "corpus") == (owner in CORPORA)
        }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"))
    with made.server:
        yield made


def test_sensors_of_one_corpus_and_its_datasets_carry_its_shards_alone(home: House) -> None:
    """The failures: a shared partition set, a sensor that starts another dataset's stages, a
    corpus embedded once per dataset."""
    server = home.server
    server.switch_on("web__new_files")
    for name in ("web", *OVER_WEB):
        server.switch_on(f"{name}__carry_new_shards")
    shards = {"web-00000", "web-00001"}
    for dataset in OVER_WEB:
        server.wait(
            f"export of {dataset}",
            lambda dataset=dataset: home.made(dataset, "report") == {"all"} and server.settled(),
            600,
        )
        for stage in OF_DATASET:
            assert home.made(dataset, stage) == shards, (dataset, stage)
    # The second and the third dataset embedded nothing.
    embedded = home.times("web", CHUNK_EMBEDDINGS.name)
    assert {shard: len(times) for shard, times in embedded.items()} == dict.fromkeys(shards, 1)
    assert len(home.times("web", EMBEDDING_INDEX.name)["all"]) == 1
    assert all(not times for times in home.snapshot("books", "of_books").values())


def test_datasets_differ_where_their_settings_do(home: House) -> None:
    stores = {name: open_store(home.project.datasets[name]) for name in OVER_WEB}
    shards = stores["calibrated"].shards(ENTROPY_SCORES)

    def versions(name: str, tables: Any) -> list[str]:
        return [stores[name].require(tables, shard).data_version for shard in shards]

    ours, paper, second = OVER_WEB
    assert versions(ours, ENTROPY_SCORES) == versions(paper, ENTROPY_SCORES)
    assert versions(ours, ENTROPY_SCORES) != versions(second, ENTROPY_SCORES)
    pairs = {name: stores[name].read_all(VERIFIED_DEPENDENCIES, shards, "pairs") for name in stores}
    same = ["root_id", "anchor", "chunk_id", "entropy_context"]
    assert pairs[ours].select(same).equals(pairs[paper].select(same))
    assert pairs[paper]["accepted"].sum() > pairs[ours]["accepted"].sum() > 0


def test_second_corpus_is_backfilled_and_the_first_stays(home: House) -> None:
    server, before = home.server, home.snapshot("web", *OVER_WEB)
    for name in ("web", *OVER_WEB):
        server.switch_off(f"{name}__carry_new_shards")
    server.switch_off("web__new_files")
    with dg.DagsterInstance.from_config(str(server.home)) as instance:
        from entropylong_assets.orchestration.local_run import register_shards

        shards = [s.key for s in register_shards(home.project.corpora["books"], instance).shards]
        assert set(instance.get_dynamic_partitions("web_shards")) == {"web-00000", "web-00001"}
    assert shards == ["books-00000", "books-00001"]
    ingest = [["books", "corpus_documents"], ["books", "chunk_embeddings"]]
    assert home_backfill(home, ingest, shards) == "COMPLETED_SUCCESS"
    assert server.wait_for_run(server.launch("books__index"), 120) == "SUCCESS"
    follows = [["of_books", stage] for stage in OF_DATASET]
    assert home_backfill(home, follows, shards) == "COMPLETED_SUCCESS"
    assert server.wait_for_run(server.launch("of_books__export"), 180) == "SUCCESS"
    for stage in OF_DATASET:
        assert home.made("of_books", stage) == set(shards)
    assert home.snapshot("web", *OVER_WEB) == before


def home_backfill(home: House, paths: list[list[str]], shards: list[str]) -> str:
    backfill = home.server.backfill_of(paths, shards)
    ends = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED", "COMPLETED")
    return home.server.wait(
        f"backfill {backfill}",
        lambda: (s := home.server.backfill_status(backfill)) in ends and s,
        400,
    )


def test_changed_setting_makes_one_dataset_stale(home: House) -> None:
    server, verified = home.server, VERIFIED_DEPENDENCIES.name
    known = {name: server.is_stale([name, verified], "web-00000") for name in OVER_WEB}
    assert not any(known.values())
    home.values["datasets"]["paper_rule"]["verification"]["epsilon"] = 0.3
    server.write_settings(home.values)
    server.reload()
    stale = {name: server.is_stale([name, verified], "web-00000") for name in OVER_WEB}
    assert stale == {"calibrated": False, "paper_rule": True, "second_model": False}
    assert not server.is_stale(["of_books", verified], "books-00000")


def test_every_dataset_has_its_own_export_and_report(home: House) -> None:
    for name in DATASETS:
        folder = home.folder / "data" / name
        exports = [json.loads(m.read_bytes()) for m in folder.glob("exports/*/manifest.json")]
        assert {export["settings"]["name"] for export in exports} == {name}
        # Shards that became ready one after another were exported one after another.
        shards = [set(e["made_from"]["data_versions"]["corpus_documents"]) for e in exports]
        corpus = "books" if name == "of_books" else "web"
        assert shards.count({f"{corpus}-00000", f"{corpus}-00001"}) == 1, name
        assert len(list(folder.glob("reports/*.html"))) == 1, name


@pytest.mark.browser
def test_lineage_of_two_corpora_and_four_datasets_is_legible(home: House, page: Page) -> None:
    page.set_viewport_size({"width": 1900, "height": 1000})
    page.goto(f"{home.server.url}/asset-groups")
    graph = page.locator("svg")
    for name in (*CORPORA, *DATASETS):
        graph.get_by_text(name, exact=True).first.wait_for()
    boxes = {}
    for name in (*CORPORA, *DATASETS):
        box = graph.get_by_text(name, exact=True).first.bounding_box()
        assert box is not None, name
        boxes[name] = box
    for name in OVER_WEB:
        assert boxes["web"]["x"] < boxes[name]["x"], name
    assert boxes["books"]["x"] < boxes["of_books"]["x"]
    keep_picture(page, "house-groups")
    page.goto(f"{home.server.url}/jobs")
    page.get_by_text("paper_rule__verify").first.wait_for()
    keep_picture(page, "house-jobs")
    page.goto(f"{home.server.url}/automation")
    page.get_by_text("of_books__carry_new_shards").first.wait_for()
    keep_picture(page, "house-automation")
