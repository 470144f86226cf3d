"""The reference corpus: documents from a handmade sdist and wheels, limits, and held-out texts."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.reference_run import selection
from benchmarks.reference_run.ansible_docs import read_modules
from benchmarks.reference_run.botocore_docs import read_operations
from benchmarks.reference_run.corpus import build, read_package
from benchmarks.reference_run.docs_pages import Page, contents_order, manuals
from benchmarks.reference_run.docstrings import read_docstrings
from benchmarks.reference_run.overlap import longest_runs
from benchmarks.reference_run.packages import Package, PackageError, read_license, read_list
from benchmarks.reference_run.text import (
    MAX_CHARS,
    MIN_CHARS,
    Document,
    clean,
    cut,
    is_english_prose,
    strip_html,
)

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{license}\n"
MIT = "Classifier: License :: OSI Approved :: MIT License\n"
SENTENCE = "The server {0} reads the settings of the project and writes {0} lines to the log.\n"


def prose(chars: int, word: str) -> str:
    """Return sentences of at least `chars` characters, each with a word of its own."""
    lines: list[str] = []
    while sum(map(len, lines)) < chars:
        lines.append(SENTENCE.format(f"{word}{len(lines)}"))
    return "".join(lines)


def make_sdist(folder: Path, name: str, files: Mapping[str, str], license: str = MIT) -> Path:  # noqa: A002
    path = folder / f"{name}-1.0.tar.gz"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for inner, text in {
            **files,
            "PKG-INFO": METADATA.format(name=name, license=license),
        }.items():
            content = text.encode()
            info = tarfile.TarInfo(f"{name}-1.0/{inner}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make_wheel(folder: Path, name: str, files: Mapping[str, str]) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", METADATA.format(name=name, license=MIT))
        for inner, text in files.items():
            wheel.writestr(inner, text)
    return path


def document(text: str, group: str = "g", family: str = "docstrings") -> Document:
    return Document(text, "title", "package", "1.0", "MIT", "path", family, group)


def test_list_names_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# comment\na==1 sdist train\nb wheel train\n")
    with pytest.raises(PackageError, match="list line 3: 'b wheel train'"):
        read_list(tmp_path / "list")


def test_own_list_is_pinned_and_has_no_name_twice() -> None:
    packages = read_list()
    assert len({(p.name, p.kind) for p in packages}) == len(packages)
    held_out = {p.name for p in packages if p.use == "heldout"}
    assert not held_out & {p.name for p in packages if p.use == "train"}


@pytest.mark.parametrize(
    ("metadata", "expression"),
    [
        (MIT, "MIT"),
        ("License-Expression: BSD-3-Clause OR (Apache-2.0 AND MIT)\n", None),
        ("Classifier: License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)\n",
         "LGPL-3.0-or-later"),
        ("License: Apache License, Version 2.0\n", "Apache-2.0"),
    ],
)  # fmt: skip
def test_license_is_spdx(tmp_path: Path, metadata: str, expression: str | None) -> None:
    license_found = read_license(make_sdist(tmp_path, "a", {}, metadata))
    assert license_found == (expression or metadata.removeprefix("License-Expression: ").strip())


@pytest.mark.parametrize(
    "metadata", ["", "License-Expression: BUSL-1.1\n", "License: Proprietary\n"]
)
def test_package_without_a_free_license_is_refused(tmp_path: Path, metadata: str) -> None:
    with pytest.raises(PackageError, match=r"a-1\.0\.tar\.gz: licence '"):
        read_license(make_sdist(tmp_path, "a", {}, metadata))


def test_pages_are_english_prose_of_documentation_folders(tmp_path: Path) -> None:
    numbers = "".join(f"{i} 0.{i} {i * i} 17 42\n" for i in range(200))
    files = {
        "docs/guide.rst": ".. Copyright of somebody\n\nGuide\n=====\n\n" + prose(2_000, "alpha"),
        "docs/table.rst": numbers,
        "docs/de/guide.rst": prose(2_000, "deutsch"),
        "docs/changelog.rst": prose(2_000, "changes"),
        "src/notes.rst": prose(2_000, "elsewhere"),
        "docs/short.rst": "Too short.\n",
    }
    split = read_package(Package("a", "1.0", "sdist", "train"), make_sdist(tmp_path, "a", files))
    assert [(d.title, d.path, d.license) for d in split.train] == [
        ("Guide", "docs/guide.rst", "MIT")
    ]
    assert split.train[0].text == "Guide\n=====\n\n" + prose(2_000, "alpha")
    assert not split.long
    assert not split.short


def test_long_page_is_held_out_whole_and_never_trained_on(tmp_path: Path) -> None:
    archive = make_sdist(
        tmp_path, "a", {"docs/manual.rst": prose(75_000, "manual"), "docs/x.rst": prose(900, "x")}
    )
    split = read_package(Package("a", "1.0", "sdist", "train"), archive)
    assert [d.text for d in split.long] == [prose(75_000, "manual")]
    assert [d.path for d in split.train] == ["docs/x.rst"]


def test_held_out_package_trains_on_nothing_and_loses_no_page(tmp_path: Path) -> None:
    files = {f"docs/{i:02}.rst": prose(20_000, f"page{i}x") for i in range(13)}
    archive = make_sdist(tmp_path, "a", files)
    split = read_package(Package("a", "1.0", "sdist", "heldout"), archive)
    assert not split.train
    assert len(split.long) == 3
    assert "".join(d.text for d in split.long).replace("\n\n", "\n") == "".join(
        files[name] for name in sorted(files)
    )


def test_contents_order_follows_the_tables_of_contents() -> None:
    entries = "   second\n   The first <sub/first>\n   sub/*\n"
    index = f"Title\n=====\n\n.. toctree::\n   :maxdepth: 2\n\n{entries}"
    pages = dict.fromkeys(
        ["docs/a.rst", "docs/second.rst", "docs/sub/first.rst", "docs/sub/b.rst"], ""
    )
    order = contents_order({**pages, "docs/index.rst": index})
    assert order == [
        "docs/index.rst", "docs/second.rst", "docs/sub/first.rst", "docs/sub/b.rst", "docs/a.rst",
    ]  # fmt: skip


def test_pages_too_few_for_a_manual_make_none() -> None:
    assert manuals([Page("ab", "t", "p")], minimum=10) == []


def test_cut_keeps_all_text_and_begins_pieces_at_headings() -> None:
    part = prose(3_900, "word")
    text = "".join(f"Part {i}\n------\n\n{part}\n" for i in range(9))
    pieces = list(cut(text))
    assert "".join(pieces) == text
    assert all(MIN_CHARS <= len(p) <= MAX_CHARS and p.startswith("Part ") for p in pieces)
    assert len(pieces) > 3


def test_cut_splits_a_page_without_headings_at_line_ends() -> None:
    text = prose(30_000, "word")
    pieces = list(cut(text))
    assert "".join(pieces) == text
    assert all(len(p) <= MAX_CHARS and p.endswith("\n") for p in pieces)


def test_clean_removes_comments_and_targets_but_no_directives() -> None:
    page = (
        ".. License\n   of two lines\n\n.. _label:\n\nTitle\n=====\n\n.. note:: Stays.\n\nText.\n"
    )
    assert clean(page) == "Title\n=====\n\n.. note:: Stays.\n\nText.\n"


def test_prose_is_told_from_other_languages_and_lists() -> None:
    assert is_english_prose(prose(500, "a"))
    assert not is_english_prose("Der Server liest seine Einstellungen aus einer Datei ein.\n" * 9)
    assert not is_english_prose(prose(500, "a") + "django.contrib.admin.views\n" * 9)


def test_strip_html() -> None:
    text = "<p>Use <code>a &lt; b</code>.</p><ul><li><p>One</p></li><li>Two</li></ul>"
    assert strip_html(text) == "Use a < b.\n- One\n- Two"


MODULE = '''
DOCUMENTATION = r"""
short_description: Copies a file
description:
  - Copies with B(care), see M(a.b.other) and L(the manual,https://example.org).
options:
  src:
    description: Path of the O(src) file.
    required: true
    type: path
  mode:
    type: dict
    description: Modes.
    suboptions:
      owner: {description: Owner of it., type: str, choices: [root, me], default: me}
"""
EXAMPLES = """
- a.b.copy:
    src: /x
"""
RETURN = "dest: {description: Where it is., returned: success, type: str, sample: /y}"
'''


def test_ansible_module_is_rendered_as_plain_text(tmp_path: Path) -> None:
    path = "ansible_collections/a/b/plugins/modules/copy.py"
    wheel = make_wheel(tmp_path, "ansible", {path: MODULE, path.replace("copy", "not"): "x = 1\n"})
    (module,) = read_modules(wheel)
    assert (module.collection, module.name, module.path) == ("a.b", "copy", path)
    assert module.text == (
        "a.b.copy: Copies a file\n\n"
        "Copies with care, see a.b.other and the manual (https://example.org).\n\n"
        "Options:\n\nsrc (path; required)\n    Path of the src file.\nmode (dict)\n    Modes.\n"
        "    owner (str; default: me; choices: root, me)\n        Owner of it.\n\n"
        "Examples:\n\n- a.b.copy:\n    src: /x\n\n"
        "Return values:\n\ndest (str; returned: success)\n    Where it is.\n    Sample: /y\n"
    )


def test_botocore_operation_is_rendered_from_its_newest_model(tmp_path: Path) -> None:
    model = {
        "metadata": {"serviceFullName": "Amazon Box"},
        "operations": {
            "Put": {
                "documentation": "<p>Puts.</p>",
                "input": {"shape": "In"},
                "errors": [{"shape": "Full"}],
            }
        },
        "shapes": {
            "In": {
                "type": "structure",
                "required": ["items"],
                "members": {"items": {"shape": "Items", "documentation": "<p>What to put.</p>"}},
            },
            "Items": {"type": "list", "member": {"shape": "Item"}},
            "Item": {
                "type": "structure",
                "members": {"size": {"shape": "Size"}, "inner": {"shape": "Item"}},
            },
            "Size": {"type": "string", "enum": ["S", "L"], "documentation": "Its size."},
            "Full": {"type": "structure", "members": {}, "documentation": "<p>No room.</p>"},
        },
    }
    old = {**model, "metadata": {"serviceFullName": "Old"}}
    files = {
        "botocore/data/box/2020-01-01/service-2.json": json.dumps(old),
        "botocore/data/box/2021-01-01/service-2.json": json.dumps(model),
    }
    (operation,) = read_operations(make_wheel(tmp_path, "botocore", files))
    assert operation.text == (
        "Amazon Box: Put\n\nPuts.\n\nRequest members:\n\nitems (list, required)\n"
        "    What to put.\n    size (string)\n        Its size.\n        Values: S, L\n"
        "    inner (structure)\n\nErrors:\n- Full: No room.\n"
    )


def test_class_comes_with_its_public_methods(tmp_path: Path) -> None:
    long = " ".join(["word"] * 60)
    source = (
        f'class A:\n    """About A. {long}"""\n    def run(self, x, *, y):\n        """Runs."""\n'
        '    def _hidden(self):\n        """Hidden."""\n'
    )
    wheel = make_wheel(tmp_path, "lib", {"lib/a.py": source, "lib/tests/b.py": source})
    (entry,) = read_docstrings(wheel, 100)
    assert (entry.name, entry.path) == ("lib.a.A", "lib/a.py")
    assert "".join(entry.parts) == (f"class lib.a.A\n\nAbout A. {long}\n\nA.run(x, y)\n\nRuns.\n")


def test_longest_run_counts_words_that_training_repeats_in_order() -> None:
    words = [f"w{i}" for i in range(200)]
    train = [" ".join(words[:80]), " ".join(reversed(words[100:]))]
    heldout = [
        "Start " + ", ".join(words[10:70]).upper() + " end",  # 60 words, other case and punctuation
        " ".join(words[100:]),  # the same words in the other order
        " ".join(words[:12]),  # shorter than an n-gram
        "",
    ]
    assert longest_runs(heldout, train) == [60, 0, 0, 0]


def test_limits_hold_per_group_and_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "GROUP_CHARS", 30)
    monkeypatch.setattr(selection, "FAMILY_CHARS", 50)
    documents = [document(f"{g}{i:09}", g) for g in "abc" for i in range(9)]
    documents += [document(f"d{i:09}", "d", "docs") for i in range(9)]
    kept = selection.within_limits(selection.without_duplicates(documents))
    sizes = {g: sum(len(d.text) for d in kept if d.group == g) for g in "abcd"}
    assert max(sizes.values()) <= 30
    assert sum(sizes[g] for g in "abc") == 50
    assert sizes["d"] == 30


def test_order_and_choice_do_not_depend_on_the_input_order() -> None:
    documents = [document(f"text {i}") for i in range(30)]
    forward, backward = map(selection.without_duplicates, (documents, documents[::-1]))
    assert forward == backward != documents
    assert len(selection.without_duplicates([*documents, document("text  3\n")])) == 30


def test_build_writes_the_same_files_twice_and_keeps_heldout_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MAX_FAMILY_SHARE", 1)
    monkeypatch.setattr(selection, "MAX_GROUP_SHARE", 1)
    downloads = tmp_path / "downloads"
    copied = prose(75_000, "same")
    make_sdist(downloads, "a", {"docs/x.rst": prose(9_000, "x"), "docs/y.rst": prose(75_000, "y")})
    make_sdist(downloads, "b", {"docs/z.rst": copied})  # held out, but "c" trains on its text
    make_sdist(downloads, "c", {"docs/z.rst": copied[:9_000]})
    packages = [Package(name, "1.0", "sdist", "train") for name in "abc"]
    contents = []
    for _ in range(2):
        summary = build(packages, tmp_path, workers=1)
        contents.append({p.name: p.read_bytes() for p in sorted(tmp_path.glob("*.parquet"))})
    assert contents[0] == contents[1]
    train = pq.read_table(tmp_path / "train-00000.parquet").to_pylist()
    assert {row["package"] for row in train} == {"a", "c"}
    long = pq.read_table(tmp_path / "heldout-long.parquet").to_pylist()
    assert [(row["package"], row["path"]) for row in long] == [("a", "docs/y.rst")]
    assert summary["dropped for overlap"]["all"]["documents"] == 1  # type: ignore[index]
