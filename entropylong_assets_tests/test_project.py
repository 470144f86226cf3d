"""Projects: corpora and datasets of a settings file, and values refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.project import Project, load_project, make_project, open_store
from entropylong_assets.settings.profiles import PROFILES
from entropylong_assets.settings.section import Section, Settings, SettingsError
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES

OF_CORPUS = ("corpus", "embedding")
WEB = {"name": "web", "uri": "/in/*.jsonl"}


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def refusal(values: dict[str, Any], profile: str | None = None) -> str:
    """The one line with which these values are refused."""
    with pytest.raises(SettingsError) as caught:
        make_project(values, profile)
    message = str(caught.value)
    assert message.isprintable()
    assert "pydantic" not in message
    return message


# Profiles


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_contains_its_values(profile: str) -> None:
    project = make_project({}, profile)
    compared = 0
    for section, values in PROFILES[profile].items():
        owner: Settings = project.corpus if section in OF_CORPUS else project.dataset
        section_or_owner = owner if section == "corpus" else getattr(owner, section)
        for name, value in values.items() if isinstance(values, dict) else []:
            if name != "sources":
                assert getattr(section_or_owner, name) == value
                compared += 1
    assert compared > 0 or profile == "default"


def test_profile_paper_has_the_published_values() -> None:
    paper = make_project({}, "paper").dataset
    assert paper.samples.layout == "grouped"
    assert make_project({}).dataset.samples.layout == "interleaved"
    assert (paper.entropy.alpha, paper.retrieval.half_window) == (2.0, 16)
    assert (paper.verification.epsilon, paper.verification.rule) == (0.4, "plain")
    assert (paper.samples.tokens, paper.samples.order) == (131_072, "shuffle")
    assert paper.scoring.model == "meta-llama/Meta-Llama-3-8B"
    assert [s.name for s in paper.corpus.sources] == ["fineweb-edu", "cosmopedia"]


def test_unknown_profile_names_those_that_exist() -> None:
    assert "default, paper, quickstart" in refusal({}, "papers")
    assert "default, paper, quickstart" in refusal({"profile": "papers"})
    assert "default, paper, quickstart" in refusal({"datasets": {"a": {"profile": "x"}},
                                                       "corpora": {"web": {}}})  # fmt: skip


# Wrong values, in a file with one corpus and one dataset

NAN, INF = math.nan, math.inf
WRONG = [
    ("seed", -1, "greater than or equal to 0"),
    ("seed", 1.5, "integer"),
    ("data_uri", "  ", "must name a folder or URI"),
    ("corpus", None, "keys and values"),
    ("corpus", 3, "keys and values"),
    ("corpus.shard_rows", 0, "greater than or equal to 1"),
    ("corpus.shard_rows", "many", "integer"),
    ("corpus.on_bad_row", "ignore", "'fail' or 'skip'"),
    ("corpus.min_chars", 0, "greater than or equal to 1"),
    ("corpus.sources", "docs", "tuple"),
    ("corpus.soruces", [], "no such setting; did you mean sources?"),
    ("roots.fraction", 1.01, "less than or equal to 1"),
    ("roots.fraction", -0.01, "greater than or equal to 0"),
    ("roots.fraction", NAN, "less than or equal to 1"),
    ("roots.fraction_by_source.web", 1.5, "less than or equal to 1"),
    ("roots.min_tokens", 1, "greater than or equal to 2"),
    ("embedding.chunk_tokens", 15, "greater than or equal to 16"),
    ("embedding.batch_size", 0, "greater than or equal to 1"),
    ("embedding.target_recall", 0, "greater than 0"),
    ("embedding.target_recall", 1.1, "less than or equal to 1"),
    ("embedding.recall_k", 0, "greater than or equal to 1"),
    ("embedding.ann_min_rows", 255, "greater than or equal to 256"),
    ("embedding.trust_remote_code", "perhaps", "boolean"),
    ("scoring.dtype", "float16", "'auto', 'float32' or 'bfloat16'"),
    ("scoring.bos", True, "'auto', 'always' or 'never'"),
    ("scoring.max_forward_tokens", 15, "greater than or equal to 16"),
    ("entropy.alpha", NAN, "finite"),
    ("entropy.alpha", INF, "finite"),
    ("entropy.min_anchor_position", -1, "greater than or equal to 0"),
    ("retrieval.top_k", 0, "greater than or equal to 1"),
    ("retrieval.half_window", -1, "greater than or equal to 0"),
    ("retrieval.leak_check", "words", "there are word_ngrams"),
    ("retrieval.leak_ngram_words", 0, "greater than or equal to 1"),
    ("retrieval.max_containment", 0, "greater than 0"),
    ("retrieval.max_containment", 1.5, "less than or equal to 1"),
    ("verification.rule", "Plain", "there are plain, calibrated"),
    ("verification.screen", "int4", "there are bfloat16, fp8, splice, splice_fp8"),
    ("verification.screen_recall", 1, "less than 1"),
    ("verification.epsilon", 1, "less than 1"),
    ("verification.epsilon", NAN, "finite"),
    ("verification.epsilon", "0,4", "number"),
    ("verification.controls", 33, "less than or equal to 32"),
    ("verification.max_false_acceptance", 1.1, "less than or equal to 1"),
    ("verification.max_contexts_per_root", 0, "greater than or equal to 1"),
    ("samples.tokens", 15, "greater than or equal to 16"),
    ("samples.order", "random", "'shuffle' or 'sequence'"),
    ("samples.layout", "", "'grouped' or 'interleaved'"),
    ("samples.fill", "none", "'verified_only', 'hard_negatives' or 'corpus'"),
    ("samples.recipe", "nonsense", "no recipe 'nonsense'; there are"),
    ("export.formats", [], "at least one format"),
    ("export.formats", ["mds", "mds"], "each once"),
    ("export.validation_fraction", 0.6, "less than or equal to 0.5"),
    ("export.anchor_weight", 0, "greater than 0"),
    ("cluster.engine", "slurm", "'local', 'ray' or 'kubernetes'"),
    ("no_such_section", {}, "no such setting"),
    ("scorign", {}, "no such setting; did you mean scoring?"),
    ("verification.epsilom", 0.1, "no such setting; did you mean epsilon?"),
    ("cluster.resources.entropy_scores.num_gpu", 1, "no such setting; did you mean num_gpus?"),
]


def test_a_misspelt_field_of_a_source_names_the_right_one() -> None:
    source = {"name": "web", "uri": "x", "text_feld": "body"}
    assert refusal({"corpus": {"sources": [source]}}) == (
        "corpus.sources.0.text_feld: no such setting; did you mean text_field?"
    )


@pytest.mark.parametrize(("path", "value", "allowed"), WRONG)
def test_wrong_value_is_refused_in_one_line(path: str, value: Any, allowed: str) -> None:
    message = refusal(nested(path, value))
    assert message.startswith(f"{path}: ")
    assert allowed in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"corpus": {"min_chars": 9, "max_chars": 8}}, ("corpus", "min_chars", "max_chars")),
        ({"roots": {"min_tokens": 9, "max_tokens": 8}}, ("roots", "min_tokens")),
        ({"roots": {"fraction_by_source": {"b": 0.5}}}, ("no source 'b'", "'corpus'")),
        ({"verification": {"controls": 1}}, ("controls", "at least 2")),
        ({"samples": {"tokens": 4096}}, ("samples.tokens", "4096", "roots.max_tokens")),
        ({"corpus": {"sources": [{"name": "a"}]}}, ("corpus.sources.0", "uri")),
        ({"corpus": {"sources": [{"name": "A b", "uri": "x"}]}}, ("corpus.sources.0.name",)),
        ({"corpus": {"sources": [{"name": "../x", "uri": "x"}]}}, ("corpus.sources.0.name",)),
        ({"corpus": {"sources": [{"name": "a", "uri": "x"}] * 2}}, ("same name",)),
        ({"corpus": {"sources": [{"name": "a", "uri": "x", "kind": "xml"}]}}, ("kind", "jsonl")),
        ({"corpus": {"sources": [{"uri": "x"}]}}, ("corpus.sources.0.name", "required")),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    values: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = refusal(values)
    assert all(word in message for word in words), message


def test_message_counts_the_faults_that_follow() -> None:
    assert refusal({"retrieval": {"top_k": 0, "half_window": -1}}).endswith("and 1 more")


MOVED = {
    "corpus.root_fraction": "roots.fraction",
    "corpus.root_min_tokens": "roots.min_tokens",
    "corpus.root_max_tokens": "roots.max_tokens",
    "scoring.max_contexts_per_root": "verification.max_contexts_per_root",
    "scoring.max_forward_tokens_per_root": "verification.max_forward_tokens_per_root",
    "scoring.screen": "verification.screen",
}


@pytest.mark.parametrize("old", MOVED)
def test_moved_setting_is_refused_with_its_new_place(old: str) -> None:
    values = nested(old, 1)
    assert refusal(values) == f"{old}: no such setting; it is now {MOVED[old]}"
    section, _, name = old.partition(".")
    if section == "corpus":
        named, place = {"corpora": {"web": values["corpus"]}}, "corpora.web"
    else:
        named, place = (
            {"corpora": {"web": {}}, "datasets": {"ours": values}},
            f"datasets.ours.{section}",
        )
    assert refusal(named) == f"{place}.{name}: no such setting; it is now {MOVED[old]}"


def test_moved_setting_of_a_source_is_refused_with_its_new_place() -> None:
    values = {"corpus": {"sources": [WEB, {**WEB, "name": "b", "root_fraction": 0.5}]}}
    assert refusal(values) == (
        "corpus.sources.1.root_fraction: no such setting; it is now roots.fraction_by_source"
    )


SECRET_URIS = [
    "s3://AKIAKEY:sEcReT@bucket/run",
    "s3://AKIAKEY:sEc/ReT@bucket/run",  # secret keys may contain slashes
    "s3://sEcReT@bucket/run",
    "gs://sEcReT@bucket/run",
    "simplecache::s3://AKIAKEY:sEcReT@bucket/run",
    "zip://*.jsonl::https://user:sEcReT@host/a.zip",
    "sftp://user:sEcReT@host/run",
]


@pytest.mark.parametrize("uri", SECRET_URIS)
@pytest.mark.parametrize(
    "field", ["data_uri", "export.destination", "corpus.sources.0.uri", "cluster.address"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(field: str, uri: str) -> None:
    """They would go into every manifest, event and message."""
    values = nested(field, uri)
    if field.startswith("corpus"):
        values = {"corpus": {"sources": [{"name": "s", "uri": uri}]}}
    message = refusal(values)
    assert message.startswith(f"{field}: the URI contains credentials; ")
    for part in ("ReT", "sEc", "AKIAKEY"):
        assert part not in message


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/a@b:c/run", "sftp://user@host/run", "/data/a:b@c", "hf://datasets/me/x@main/**",
     "abfs://container@account.dfs.core.windows.net/run", "s3://bucket/a/*@b"],
)  # fmt: skip
def test_at_sign_alone_is_no_credential(uri: str) -> None:
    assert make_project({"data_uri": uri}).data_uri == uri


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("data_uri", {"data_uri": "data"}),
        ("export.destination", {"export": {"destination": "out"}}),
        ("uri of source 'web'", {"corpus": {"sources": [{"name": "web", "uri": "in/*.jsonl"}]}}),
    ],
)
def test_place_that_nodes_do_not_share_is_refused_on_a_cluster(
    field: str, values: dict[str, Any]
) -> None:
    """A pod would write there, end with success, and its files with it."""
    shared = {
        "data_uri": "s3://bucket/run",
        "export": {"destination": "/mnt/exports"},
        "corpus": {
            "sources": [
                {"name": "web", "uri": "/mnt/in/*.jsonl"},
                {"name": "docs", "kind": "python_docs", "uri": "numpy"},
            ]
        },
        "cluster": {"engine": "kubernetes"},
    }
    assert make_project(shared).cluster.engine == "kubernetes"
    message = refusal(shared | values)
    assert message.startswith(f"{field} ")
    assert "must be a URI or the full path" in message
    make_project(values)  # on one machine it is fine


# Names


def two_corpora() -> dict[str, Any]:
    """The content of a settings file with two corpora and four datasets."""
    return {
        "data_uri": "/data/lab",
        "seed": 5,
        "corpora": {
            "web": {"sources": [WEB], "embedding": {"chunk_tokens": 100}},
            "books": {"min_chars": 7, "seed": 6},
        },
        "datasets": {
            "ours": {"corpus": "web"},
            "paper_rule": {"corpus": "web", "profile": "paper", "retrieval": {"top_k": 3}},
            "loose": {"corpus": "web", "verification": {"epsilon": 0.2}},
            "tales": {"corpus": "books"},
        },
    }


def test_short_form_names_corpus_and_dataset() -> None:
    project = make_project({"data_uri": "/d", "corpus": {"sources": [WEB]}, "seed": 3})
    assert (list(project.corpora), list(project.datasets)) == (["corpus"], ["dataset"])
    assert project.dataset.corpus is project.corpus
    assert (project.corpus.seed, project.dataset.seed) == (3, 3)
    assert (project.corpus.data_uri, project.dataset.data_uri) == ("/d", "/d")
    long_form = make_project(
        {
            "data_uri": "/d",
            "seed": 3,
            "corpora": {"corpus": {"sources": [WEB]}},
            "datasets": {"dataset": {}},
        }
    )
    assert long_form == project


def test_short_form_may_name_its_corpus_and_dataset() -> None:
    project = make_project({"name": "ours", "corpus": {"name": "web", "sources": [WEB]}})
    assert (project.corpus.name, project.dataset.name) == ("web", "ours")
    assert project.dataset.corpus.name == "web"


def test_several_corpora_and_datasets_have_their_own_settings() -> None:
    project = make_project(two_corpora())
    assert list(project.corpora) == ["web", "books"]
    assert {d.name: d.corpus.name for d in project.datasets.values()} == {
        "ours": "web",
        "paper_rule": "web",
        "loose": "web",
        "tales": "books",
    }
    assert [d.name for d in project.datasets_over("web")] == ["ours", "paper_rule", "loose"]
    web, books = project.corpora["web"], project.corpora["books"]
    assert (web.embedding.chunk_tokens, books.embedding.chunk_tokens) == (100, None)
    assert (web.min_chars, books.min_chars) == (200, 7)
    assert (web.seed, books.seed) == (5, 6)
    epsilons = {d.name: d.verification.epsilon for d in project.datasets.values()}
    assert epsilons == {"ours": 0.4, "paper_rule": 0.4, "loose": 0.2, "tales": 0.4}
    rules = {d.name: d.verification.rule for d in project.datasets.values()}
    assert rules["paper_rule"] == "plain"
    assert rules["ours"] == rules["loose"] == "genuine"
    # A dataset's profile brings no settings of a corpus.
    assert web.embedding.model == make_project().corpus.embedding.model
    assert project.datasets["paper_rule"].retrieval.top_k == 3
    for settings in (*project.corpora.values(), *project.datasets.values()):
        assert settings.data_uri == "/data/lab"


def test_stages_of_a_corpus_and_a_dataset_are_all_stages() -> None:
    project = make_project(two_corpora())
    of_corpus = project.stages_of(project.corpora["web"])
    of_dataset = project.stages_of(project.datasets["ours"])
    assert [*of_corpus, *of_dataset] == list(project.stages)
    assert of_corpus
    assert of_dataset


def test_store_of_a_dataset_reads_its_corpus(tmp_path: Path) -> None:
    project = make_project(two_corpora() | {"data_uri": str(tmp_path)})
    store = open_store(project.datasets["loose"])
    assert (store.corpus, store.dataset) == ("web", "loose")
    assert store.folder(ENTROPY_SCORES, "s").endswith(f"/loose/{ENTROPY_SCORES.name}/s")
    assert open_store(project.corpora["books"]).corpus == "books"


def test_one_of_several_must_be_named() -> None:
    project = make_project(two_corpora())
    for find, kind, one, wanted in (
        (project.find_corpus, "corpus", "web", "web, books"),
        (project.find_dataset, "dataset", "tales", "ours, paper_rule, loose, tales"),
    ):
        assert find(one).name == one
        with pytest.raises(SettingsError, match=rf"name one of: {wanted}$"):
            find(None)
        with pytest.raises(SettingsError, match=rf"^no {kind} 'other' .* there are: {wanted}$"):
            find("other")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        # One name twice.
        ({"corpora": {"a": {}}, "datasets": {"a": {}}}, "datasets.a: a corpus has this name"),
        ({"corpus": {"name": "a"}, "name": "a"}, "datasets.a: a corpus has this name"),
        ({"name": "corpus"}, "datasets.corpus: a corpus has this name"),
        # Unknown corpora.
        (
            {"corpora": {"a": {}}, "datasets": {"b": {"corpus": "c"}}},
            "datasets.b.corpus: no corpus 'c'; there are a",
        ),
        ({"datasets": {"b": {"corpus": "c"}}}, "datasets.b.corpus: no corpus 'c'; there are none"),
        (
            {"corpora": {"a": {}, "b": {}}, "datasets": {"c": {}}},
            "datasets.c.corpus: no corpus 'None'; there are a, b",
        ),
        ({"corpora": {"a": {}}, "datasets": {"b": {"x": 1}}}, "datasets.b.x: no such setting"),
        (
            {"corpora": {"a": {}}, "datasets": {"b": {"corpus": {}}}},
            "datasets.b.corpus: no corpus '{}'; there are a",
        ),
        # Names that can't be.
        ({"corpora": {"Web": {}}}, "corpora.Web.name: "),
        ({"corpora": {"my-web": {}}}, "corpora.my-web.name: "),
        ({"corpora": {"a": {}}, "datasets": {"Ours": {}}}, "datasets.Ours.name: "),
        ({"corpora": {"a": {}}, "datasets": {"our-s": {}}}, "datasets.our-s.name: "),
        ({"corpora": {"a__b": {}}}, "corpora.a__b.name: "),
        ({"corpora": {"../a": {}}}, "corpora.../a.name: "),
        ({"corpora": {"": {}}}, "name: String should match"),
        ({"corpora": {"a" * 41: {}}}, "name: String should have at most 40 characters"),
        ({"corpora": {1: {}}}, "corpora.1.name: "),
        ({"corpus": {"name": "Web"}}, "corpus.name: "),
        ({"corpus": {"name": ["a"]}}, "corpus.name: "),
        ({"name": "Ours"}, "name: "),
        # Settings in the wrong place.
        ({"corpora": {"a": {}}, "scoring": {}}, "scoring: not at the top level"),
        ({"corpora": {"a": {}}, "corpus": {}}, "corpus: not at the top level"),
        ({"corpora": {"a": {"scoring": {}}}}, "corpora.a.scoring: no such setting"),
        (
            {"corpora": {"a": {}}, "datasets": {"b": {"embedding": {}}}},
            "datasets.b.embedding: no such setting",
        ),
        ({"corpora": {"a": {"name": "b"}}}, "corpora.a.name: not here"),
        ({"corpora": {"a": {"data_uri": "/x"}}}, "corpora.a.data_uri: not here"),
        (
            {"corpora": {"a": {}}, "datasets": {"b": {"data_uri": "/x"}}},
            "datasets.b.data_uri: not here",
        ),
        ({"corpus": {"data_uri": "/x"}}, "corpus.data_uri: not here"),
        # Other shapes.
        ({"corpora": ["a"]}, "corpora: expected keys and values"),
        ({"corpora": None}, "corpora: expected keys and values"),
        ({"corpora": {"a": 1}}, "corpora.a: expected keys and values"),
        ({"corpora": {"a": {}}, "datasets": {"b": "a"}}, "datasets.b: expected keys and values"),
        ({"corpora": {"a": {}}, "seed": -1}, "seed: "),
        ({"corpora": {"a": {"seed": -1}}}, "corpora.a.seed: "),
        (
            {"corpora": {"a": {}}, "datasets": {"b": {"verification": {"epsilon": 2}}}},
            "datasets.b.verification.epsilon: ",
        ),
        ({"corpora": {"a": {"shard_rows": 0}}}, "corpora.a.shard_rows: "),
    ],
)
def test_names_and_places_that_cannot_be_are_refused(values: dict[str, Any], words: str) -> None:
    assert words in refusal(values)


def test_name_alone_means_the_defaults() -> None:
    project = make_project({"corpora": {"web": None}, "datasets": {"ours": None}})
    assert project.dataset.verification == make_project().dataset.verification


def test_project_without_datasets_has_corpora_alone() -> None:
    project: Project = make_project({"data_uri": "/d", "corpora": {"web": {}}})
    assert project.data_uri == "/d"
    assert not project.datasets


def written_paths(model: Section) -> Iterator[str]:
    """Every text in the settings that says `here`."""
    for value in model.model_dump(mode="json").values():
        yield from (text for text in texts_in(value) if "here" in text)


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def test_every_path_in_a_file_is_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command in another folder found no source, or wrote its export beside itself."""
    values = {
        "data_uri": "here/data",
        "corpora": {
            "web": {
                "sources": [{"name": "a", "uri": "here/*.jsonl"}, {"name": "b", "uri": "../here/"}],
                "decontaminate": [
                    {"name": "r", "uri": "ruler:here/r"},
                    {"name": "x", "uri": "here/x", "tokenizer": "./here/t"},
                ],
                "embedding": {"model": "./here/embedder"},
            }
        },
        "datasets": {
            "ours": {
                "corpus": "web",
                "scoring": {"model": "../here/model"},
                "audit": {"model": "./here/second"},
                "trial": {"evaluation": "here/held-out.jsonl"},
                "export": {"destination": "here/out"},
            }
        },
    }
    (tmp_path / "lab").mkdir()
    file = tmp_path / "lab" / "settings.yaml"
    file.write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    project = load_project("lab/settings.yaml")
    lab = str(tmp_path / "lab")
    assert [source.uri for source in project.corpus.sources] == [
        f"{lab}/here/*.jsonl",
        f"{lab}/../here/",
    ]
    assert [texts.uri for texts in project.corpus.decontaminate] == [
        f"ruler:{lab}/here/r",
        f"{lab}/here/x",
    ]
    dataset = project.dataset
    assert dataset.corpus == project.corpus
    found = set(written_paths(dataset))
    assert len(found) == 11
    assert {text for text in found if not text.removeprefix("ruler:").startswith(lab)} == set()


def test_names_and_places_elsewhere_are_not_paths_beside_the_file(tmp_path: Path) -> None:
    values = {
        "data_uri": "/data/lab",
        "corpora": {
            "web": {
                "sources": [
                    {"name": "a", "uri": "hf://datasets/x/y.parquet"},
                    {"name": "b", "uri": "~/texts"},
                    {"name": "c", "kind": "python_docs", "uri": "numpy.fft"},
                ],
                "embedding": {"model": "sentence-transformers/all-MiniLM-L6-v2"},
            }
        },
        "datasets": {"ours": {"corpus": "web", "trial": {"evaluation": "web"}}},
    }
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(values))
    project = load_project(file)
    assert project.model_copy(update={"folder": None}) == make_project(values)


def test_environment_names_file_and_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENTROPYLONG_SETTINGS", raising=False)
    monkeypatch.setenv("ENTROPYLONG_PROFILE", "paper")
    assert load_project() == make_project({}, "paper")
    path = tmp_path / "settings.yaml"
    path.write_text("seed: 5")
    monkeypatch.setenv("ENTROPYLONG_SETTINGS", str(path))
    wanted = make_project({"seed": 5, "data_uri": str(tmp_path / "data")}, "default")
    assert load_project() == wanted.model_copy(update={"folder": tmp_path})
