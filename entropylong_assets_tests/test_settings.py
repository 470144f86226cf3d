"""Wrong values are refused in one line that names the field and what is allowed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from entropylong_assets.settings.model import (
    PROFILES,
    Settings,
    SettingsError,
    fingerprint,
    load_settings,
    make_settings,
)


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def at(settings: Settings, path: str) -> Any:
    value: Any = settings
    for part in path.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_load_and_hold_their_own_values(profile: str) -> None:
    settings = make_settings(profile)
    assert settings.profile == profile
    said = 0
    for group, values in PROFILES[profile].items():
        for name, value in values.items() if isinstance(values, dict) else []:
            if name != "sources":
                assert at(settings, f"{group}.{name}") == value
                said += 1
    assert said > 0 or profile == "calibrated"


def test_the_paper_s_values_are_the_published_ones() -> None:
    paper = make_settings("paper")
    assert (paper.entropy.alpha, paper.retrieval.half_window) == (2.0, 16)
    assert (paper.verification.epsilon, paper.verification.rule) == (0.4, "plain")
    assert (paper.samples.tokens, paper.samples.order) == (131_072, "shuffle")
    assert paper.scoring.model == "meta-llama/Meta-Llama-3-8B"
    assert [s.name for s in paper.corpus.sources] == ["fineweb-edu", "cosmopedia"]


SECRET_URIS = [
    "s3://AKIAKEY:sEcReT@bucket/run",
    "s3://AKIAKEY:sEc/ReT@bucket/run",  # secret keys do hold slashes
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
    over = nested(field, uri)
    if field.startswith("corpus"):
        over = {"corpus": {"sources": [{"name": "s", "uri": uri}]}}
    with pytest.raises(SettingsError, match=f"^{field}: the URI holds credentials; ") as caught:
        make_settings("calibrated", over)
    for part in ("ReT", "sEc", "AKIAKEY"):
        assert part not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/a@b:c/run", "sftp://user@host/run", "/data/a:b@c", "hf://datasets/me/x@main/**",
     "abfs://container@account.dfs.core.windows.net/run", "s3://bucket/a/*@b"],
)  # fmt: skip
def test_an_at_sign_alone_is_no_credential(uri: str) -> None:
    assert make_settings("calibrated", {"data_uri": uri}).data_uri == uri


NAN, INF = math.nan, math.inf
WRONG = [
    ("seed", -1, "greater than or equal to 0"),
    ("seed", 1.5, "integer"),
    ("data_uri", "  ", "must name a folder or URI"),
    ("corpus", None, "dictionary"),
    ("corpus", 3, "dictionary"),
    ("corpus.shard_rows", 0, "greater than or equal to 1"),
    ("corpus.shard_rows", "many", "integer"),
    ("corpus.on_bad_row", "ignore", "'fail' or 'skip'"),
    ("corpus.min_chars", 0, "greater than or equal to 1"),
    ("corpus.root_fraction", 1.01, "less than or equal to 1"),
    ("corpus.root_fraction", -0.01, "greater than or equal to 0"),
    ("corpus.root_fraction", NAN, "less than or equal to 1"),
    ("corpus.root_min_tokens", 1, "greater than or equal to 2"),
    ("corpus.sources", "docs", "tuple"),
    ("corpus.soruces", [], "no such setting"),
    ("embedding.chunk_tokens", 15, "greater than or equal to 16"),
    ("embedding.batch_size", 0, "greater than or equal to 1"),
    ("embedding.target_recall", 0, "greater than 0"),
    ("embedding.target_recall", 1.1, "less than or equal to 1"),
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
    ("retrieval.leak_ngram_words", 0, "greater than or equal to 1"),
    ("retrieval.max_containment", 0, "greater than 0"),
    ("retrieval.max_containment", 1.5, "less than or equal to 1"),
    ("verification.rule", "Plain", "'plain' or 'calibrated'"),
    ("verification.epsilon", 1, "less than 1"),
    ("verification.epsilon", NAN, "finite"),
    ("verification.epsilon", "0,4", "number"),
    ("verification.controls", 33, "less than or equal to 32"),
    ("verification.max_false_acceptance", 1.1, "less than or equal to 1"),
    ("samples.tokens", 15, "greater than or equal to 16"),
    ("samples.order", "random", "'shuffle' or 'sequence'"),
    ("samples.layout", "", "'grouped' or 'interleaved'"),
    ("samples.fill", "none", "'verified_only' or 'hard_negatives'"),
    ("export.formats", [], "at least one format"),
    ("export.formats", ["mds", "mds"], "each once"),
    ("export.validation_fraction", 0.6, "less than or equal to 0.5"),
    ("export.anchor_weight", 0, "greater than 0"),
    ("no_such_group", {}, "no such setting"),
]


@pytest.mark.parametrize(("path", "value", "allowed"), WRONG)
def test_a_wrong_value_is_refused_in_one_line(path: str, value: Any, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_settings(overrides=nested(path, value))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert allowed in message
    assert "\n" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"corpus": {"min_chars": 9, "max_chars": 8}}, ("min_chars", "max_chars")),
        ({"corpus": {"root_min_tokens": 9, "root_max_tokens": 8}}, ("root_min_tokens",)),
        ({"verification": {"controls": 1}}, ("controls", "at least 2")),
        ({"samples": {"tokens": 4096}}, ("samples.tokens", "4096", "corpus.root_max_tokens")),
        ({"corpus": {"sources": [{"name": "a"}]}}, ("corpus.sources.0", "uri")),
        ({"corpus": {"sources": [{"name": "A b", "uri": "x"}]}}, ("corpus.sources.0.name",)),
        ({"corpus": {"sources": [{"name": "../x", "uri": "x"}]}}, ("corpus.sources.0.name",)),
        ({"corpus": {"sources": [{"name": "a", "uri": "x"}] * 2}}, ("same name",)),
        ({"corpus": {"sources": [{"name": "a", "uri": "x", "kind": "xml"}]}}, ("kind", "jsonl")),
        ({"corpus": {"sources": [{"uri": "x"}]}}, ("corpus.sources.0.name", "required")),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    overrides: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        make_settings(overrides=overrides)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_names_those_that_exist() -> None:
    with pytest.raises(SettingsError, match="calibrated, paper, quickstart"):
        make_settings("papers")


def test_the_message_says_how_many_faults_follow() -> None:
    with pytest.raises(SettingsError, match=r"and 1 more$"):
        make_settings(overrides={"seed": -1, "retrieval": {"top_k": 0}})


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "settings.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_file_changes_the_profile_that_it_names(tmp_path: Path) -> None:
    path = written(tmp_path, "profile: paper\nverification:\n  epsilon: 0.2\n")
    settings = load_settings(path)
    paper = make_settings("paper")
    assert settings.verification.epsilon == 0.2
    assert settings.verification.rule == "plain"
    assert settings.model_copy(update={"verification": paper.verification}) == paper
    assert load_settings(written(tmp_path, "")) == make_settings()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("corpus: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("\tcorpus: 1", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("- 1\n- 2\n", "keys and values"),
        ("just words", "keys and values"),
        ("1: x\n", "1: "),
        ("retrieval:\n  2: x\n", "retrieval.2: "),
        ("profile: none\n", "no profile 'none'"),
        ("profile:\n", "no profile"),
        ("retrieval:\n  top_k: a\\\n", "retrieval.top_k: "),
        ("retrieval:\n", "retrieval: "),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, content: str | bytes, words: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    message = str(caught.value)
    assert message.startswith(f"settings file {path}")
    assert words in message
    assert "\n" not in message


def test_what_is_not_yaml_is_not_quoted(tmp_path: Path) -> None:
    """PyYAML quotes the line that it stumbles over, and that line may hold a key."""
    path = written(tmp_path, "seed: 1\ndata_uri: s3://AKIAKEY:sEcReT@bucket/x: y\n")
    with pytest.raises(SettingsError, match=r"is not YAML: .* in line 2, column") as caught:
        load_settings(path)
    assert "sEcReT" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "over"),
    [
        ("data_uri", {"data_uri": "data"}),
        ("export.destination", {"export": {"destination": "out"}}),
        ("uri of source 'web'", {"corpus": {"sources": [{"name": "web", "uri": "in/*.jsonl"}]}}),
    ],
)
def test_a_place_that_nodes_do_not_share_is_refused_on_a_cluster(
    field: str, over: dict[str, Any]
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
    assert make_settings(overrides=shared).cluster.engine == "kubernetes"
    with pytest.raises(SettingsError, match=rf"{field} .* must be a URI or the full path"):
        make_settings(overrides=shared | over)
    make_settings(overrides=over)  # on one machine it is fine


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings(tmp_path / "none.yaml")
    with pytest.raises(SettingsError, match="settings file"):
        load_settings(tmp_path)


def test_the_environment_names_file_and_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENTROPYLONG_SETTINGS", raising=False)
    monkeypatch.setenv("ENTROPYLONG_PROFILE", "paper")
    assert load_settings().profile == "paper"
    monkeypatch.setenv("ENTROPYLONG_SETTINGS", str(written(tmp_path, "seed: 5")))
    assert (load_settings().profile, load_settings().seed) == ("calibrated", 5)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
_GROUPS = st.sampled_from([*Settings.model_fields, "nonsense"])


@hypothesis_settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.dictionaries(_GROUPS, _JSON, max_size=3))
def test_whatever_is_written_is_settings_or_one_line(overrides: dict[str, Any]) -> None:
    overrides.pop("profile", None)
    said = ""
    try:
        make_settings(overrides=overrides)
    except SettingsError as error:
        said = str(error)
    assert "\n" not in said


_ODD = (
    "[" * 3000,
    "a: " * 3000,
    "{a: " * 3000 + "1" + "}" * 3000,
    "seed: " + "9" * 5000,
    "seed: !!int abc",
    "seed: !!bool maybe",
    "seed: 2001-99-99",
    "seed: !!timestamp 2001-99-99",
    "seed: .inf",
    "seed: .nan",
    "seed: 1:59",
    "seed: =",
    "seed: !!binary _",
    "corpus: !!set {a, b}",
    "corpus: &a {sources: [*a]}",
    "&a {corpus: *a}",
    "&a [*a]",
    "profile: &a [*a]",
    "profile: &a {b: *a}",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nseed: [*c, *c]",
    "? [a, b]\n: c",
    "? {a: b}\n: c",
    '"a\\nb": 1',
    'corpus: {"a\\nb\\e[2J": 1}',
    'profile: "x\\ny\\e[2J"',
    'embedding: {search: "x\\ny"}',
    "1: 2",
    "null: 2",
    "true: {false: 1}",
    "seed: 1\n---\nseed: 2",
    "seed: 1\nseed: 2",
    "!!python/object/apply:os.mkdir [hacked]",
    "seed: !!python/object/apply:os.mkdir [hacked]",
    "seed: !!python/name:os.system",
    "\0",
    "\ufeffseed: 1",
    "%YAML 9.9\n---\nseed: 1",
)


def settled(path: Path, text: str) -> None:
    """Holds that a settings file gives settings, or one printable line."""
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    said = "-"
    try:
        assert isinstance(load_settings(path), Settings)
    except SettingsError as error:
        said = str(error)
    assert said.isprintable(), text
    assert 0 < len(said) < 1200, text


@pytest.mark.parametrize("text", _ODD, ids=range(len(_ODD)))
def test_odd_yaml_is_settings_or_one_line(tmp_path: Path, text: str, monkeypatch) -> None:
    """PyYAML passes on errors that are not its own; an alias may hold itself; a tag names code."""
    monkeypatch.chdir(tmp_path)
    settled(tmp_path / "settings.yaml", text)
    assert not (tmp_path / "hacked").exists()


_KNOWN = sorted(
    {name for group in Settings.model_fields for name in (group,)}
    | {
        name
        for group in Settings().model_dump().values()
        if isinstance(group, dict)
        for name in group
    }
)
_KEYS = st.sampled_from([*_KNOWN, "name", "uri"]) | st.text(max_size=6) | st.integers() | st.none()
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from(["auto", "off", "calibrated", "../..", "s3://u:p@b/x", "-1", "1e400"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@hypothesis_settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.dictionaries(_KEYS, _VALUES, max_size=5))
def test_any_mapping_is_settings_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, mapping: dict[Any, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    settled(folder / "fuzzed.yaml", yaml.safe_dump(mapping, allow_unicode=True))


_SIGNS = ": _\n_  _- _[_]_{_}_,_&a _*a_!!int _>_'_\"_#_%_? _---_1_x_\t_\0_é"
_TOKENS = st.sampled_from([*_KNOWN[:30], *_SIGNS.split("_"), "|"])


@hypothesis_settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.lists(_TOKENS, max_size=25))
def test_any_text_is_settings_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[str]
) -> None:
    settled(tmp_path_factory.getbasetemp() / "fuzzed.yaml", "".join(tokens))


def test_the_fingerprint_goes_by_content_and_not_by_order() -> None:
    a, b = {"x": 1, "y": [1, 2]}, {"y": [1, 2], "x": 1}
    assert fingerprint(a) == fingerprint(b) != fingerprint(a, b)
    assert fingerprint({"x": "1"}) != fingerprint({"x": 1})
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])
    assert fingerprint("a", "b") != fingerprint("ab")
    assert fingerprint(make_settings()) == fingerprint(make_settings())
    assert len(fingerprint()) == 16
