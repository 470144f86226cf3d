"""Whatever a settings file contains: a project, or one printable line that names the file."""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from entropylong_assets.project import Project, load_project, make_project
from entropylong_assets.settings.loading import merge, read_settings_file
from entropylong_assets.settings.section import Section, SettingsError
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS
from entropylong_assets.stages.retrieval.registry import LEAK_CHECKS
from entropylong_assets.stages.samples.registry import RECIPES
from entropylong_assets.stages.training_data.registry import EXPORT_FORMATS
from entropylong_assets.stages.verification.registry import RULES, SCREENS


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "settings.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_file_changes_the_profile_that_it_names(tmp_path: Path) -> None:
    path = written(tmp_path, "profile: paper\nverification:\n  epsilon: 0.2\n")
    dataset = load_project(path).dataset
    data = {"data_uri": str(tmp_path / "data")}
    paper = make_project(data, "paper").dataset
    assert dataset.verification.epsilon == 0.2
    assert dataset.verification.rule == "plain"
    assert dataset.model_copy(update={"verification": paper.verification}) == paper
    plain = make_project(data).model_copy(update={"folder": tmp_path})
    assert load_project(written(tmp_path, "")) == plain


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
        ("seed: 1\nseed: 2\n", "the key 'seed' occurs twice in line 2"),
        ("corpora: {web: {}, web: {}}\n", "the key 'web' occurs twice"),
        (
            "corpora: {web: {}}\ndatasets:\n  a: {}\n  b: {}\n  a: {}\n",
            "the key 'a' occurs twice in line 5",
        ),
        ("corpora: {Web: {}}\n", "corpora.Web.name: "),
    ],
)
def test_bad_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, content: str | bytes, words: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(SettingsError) as caught:
        load_project(path)
    message = str(caught.value)
    assert message.startswith(f"settings file {path}")
    assert words in message
    assert "\n" not in message


def test_what_is_not_yaml_is_not_quoted(tmp_path: Path) -> None:
    """PyYAML quotes the faulty line, which may contain a key."""
    path = written(tmp_path, "seed: 1\ndata_uri: s3://AKIAKEY:sEcReT@bucket/x: y\n")
    with pytest.raises(SettingsError, match=r"is not YAML: .* in line 2, column") as caught:
        load_project(path)
    assert "sEcReT" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "key", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", 3),
        ("a: 1\n'a': 1\n", "a", 2),
        ("x:\n  a: 1\n  b: {c: 1, d: 2, c: 1}\n", "c", 3),
        ("x:\n- a: 1\n- a: 1\n  b: 2\n  b: 3\n", "b", 5),
        ("1: x\n1: y\n", "1", 2),
        ("base: &base {a: 1}\nx:\n  <<: *base\n  b: 1\n  b: 2\n", "b", 5),
    ],
)
def test_duplicate_key_is_refused_at_any_depth(
    tmp_path: Path, content: str, key: str, line: int
) -> None:
    """PyYAML keeps the last one, so a setting would silently have no effect."""
    path = written(tmp_path, content)
    message = rf"is not YAML: the key '{key}' occurs twice in line {line}, column \d+$"
    with pytest.raises(SettingsError, match=message):
        read_settings_file(path)


def test_equal_keys_of_different_mappings_are_no_duplicates(tmp_path: Path) -> None:
    content = "x: {a: 1}\ny: {a: 2}\nz: [{a: 3}, {a: 4}]\n"
    expected = {"x": {"a": 1}, "y": {"a": 2}, "z": [{"a": 3}, {"a": 4}]}
    assert read_settings_file(written(tmp_path, content)) == expected


def test_merge_key_is_overridden_without_being_a_duplicate(tmp_path: Path) -> None:
    content = "base: &base {a: 1, b: 1}\nx:\n  <<: *base\n  b: 2\n"
    assert read_settings_file(written(tmp_path, content))["x"] == {"a": 1, "b": 2}


@pytest.mark.parametrize("content", ["", "\n", "# a comment\n", "---\n", "null\n", "{}\n"])
def test_empty_file_is_an_empty_mapping(tmp_path: Path, content: str) -> None:
    assert read_settings_file(written(tmp_path, content)) == {}


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({}, {}, {}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, {"a": 2, "b": 3}, {"a": 2, "b": 3}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"d": 3}}}, {"a": {"b": {"c": 1, "d": 3}}}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    ],
)
def test_merge_lays_values_over_those_of_the_base(
    base: dict[str, Any], over: dict[str, Any], merged: dict[str, Any]
) -> None:
    """Mappings are merged; lists and other values are replaced."""
    before = copy.deepcopy((base, over))
    assert merge(base, over) == merged
    assert (base, over) == before, "an argument was changed"


def test_merge_keeps_the_order_of_the_base() -> None:
    assert list(merge({"b": 1, "a": 1}, {"c": 1, "a": 2})) == ["b", "a", "c"]


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_project(tmp_path / "none.yaml")
    with pytest.raises(SettingsError, match="settings file"):
        load_project(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
_PROJECT = make_project()
_SECTIONS = {
    name: getattr(owner, name)
    for owner in (_PROJECT.corpus, _PROJECT.dataset)
    for name in type(owner).model_fields
    if hasattr(getattr(owner, name), "model_fields_set")
}
_TOP = sorted(
    {*_SECTIONS, "corpus", "name", "seed", "data_uri", "cluster", "corpora", "datasets", "profile"}
)
_GROUPS = st.sampled_from([*_TOP, "nonsense"])


@hypothesis_settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.dictionaries(_GROUPS, _JSON, max_size=3))
@example({"datasets": {}, "data_uri": None})  # nothing but the project itself reads data_uri
def test_any_values_are_a_project_or_one_line(values: dict[str, Any]) -> None:
    message = "-"
    try:
        make_project(values)
    except SettingsError as error:
        message = str(error)
    assert message.isprintable()


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
    "corpora: {a: &a {min_chars: 3}, b: *a}\ndatasets: &d {c: {corpus: a, datasets: *d}}",
    "corpora: &a {a: *a}",
    "corpora: {? [a] : {}}",
    "corpora: {a: {}}\ndatasets: {'x\\ny': {corpus: 'z\\nq'}}",
    "corpora: {'x\\ny': {name: 1}}",
    "corpora: {'x\\ny': {root_fraction: 1}}",
    "name: [a]",
    "corpus: {name: {a: b}}",
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


def check_file(path: Path, text: str) -> None:
    """Assert that a settings file gives a project, or one printable line."""
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    message = "-"
    try:
        assert isinstance(load_project(path), Project)
    except SettingsError as error:
        message = str(error)
    assert message.isprintable(), text
    assert 0 < len(message) < 1200, text


@pytest.mark.parametrize("text", _ODD, ids=range(len(_ODD)))
def test_odd_yaml_is_a_project_or_one_line(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyYAML may raise any error; an alias may contain itself; a tag may name code."""
    monkeypatch.chdir(tmp_path)
    check_file(tmp_path / "settings.yaml", text)
    assert not (tmp_path / "hacked").exists()


_KNOWN = sorted(
    {*_TOP, *(name for section in _SECTIONS.values() for name in type(section).model_fields)}
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
def test_any_mapping_is_a_project_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, mapping: dict[Any, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    check_file(folder / "fuzzed.yaml", yaml.safe_dump(mapping, allow_unicode=True))


_SIGNS = ": _\n_  _- _[_]_{_}_,_&a _*a_!!int _>_'_\"_#_%_? _---_1_x_\t_\0_é"
_TOKENS = st.sampled_from([*_TOP, *_KNOWN[:20], *_SIGNS.split("_"), "|"])


@hypothesis_settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.lists(_TOKENS, max_size=25))
def test_any_text_is_a_project_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[str]
) -> None:
    check_file(tmp_path_factory.getbasetemp() / "fuzzed.yaml", "".join(tokens))


def _names(annotation: Any) -> Iterator[str]:
    """The enumerated values of a setting of this type."""
    for argument in typing.get_args(annotation):
        if isinstance(argument, str):
            yield argument
        else:
            yield from _names(argument)


def _words(section: Section) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _words(value)
        else:
            yield from _names(field.annotation)
            yield from [value] if isinstance(value, str) else []


def test_words_of_settings_are_words_in_yaml_without_quotes() -> None:
    """The failure: Dagster's launchpad writes `screen: off`, and reads it as False."""
    registries = (SOURCE_FORMATS, LEAK_CHECKS, RULES, SCREENS, RECIPES, EXPORT_FORMATS)
    words = {*_words(make_project().dataset), *(n for r in registries for n in r.names())}
    assert {"none", "calibrated", "mds", "shuffle", "bfloat16"} <= words
    assert [word for word in sorted(words) if word.strip() and yaml.safe_load(word) != word] == []
