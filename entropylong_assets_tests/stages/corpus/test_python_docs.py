"""The built-in source gives the same texts in every process, and runs no code of the packages."""

from __future__ import annotations

import ast
import importlib
import inspect
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from entropylong_assets.stages.corpus.errors import MissingSourceError
from entropylong_assets.stages.corpus.formats import python_docs
from entropylong_assets.stages.corpus.shards import current_shard, plan_shards, read_shard
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.corpus.files_for_tests import ingest, settings_for

PACKAGES = "pydoc_data.topics,numpy.linalg,statistics,asyncio"


def test_texts_are_the_docstrings_that_python_itself_shows() -> None:
    docs = dict(python_docs.read("statistics"))
    assert docs["statistics"] == inspect.getdoc(statistics)
    expected = {
        f"statistics.{name}"
        for name, value in vars(statistics).items()
        if inspect.isfunction(value)
        and value.__module__ == "statistics"
        and len(inspect.getdoc(value) or "") > python_docs.MIN_DOC_CHARS
    }
    assert expected <= set(docs)
    assert len(expected) >= 2
    for name in expected:
        assert docs[name] == inspect.getdoc(getattr(statistics, name.rpartition(".")[2]))


def test_topics_and_shards_over_packages() -> None:
    corpus = settings_for(PACKAGES, kind="python_docs", shard_rows=40)
    plan = plan_shards(corpus)
    files = dict.fromkeys(file for shard in plan.shards for file in shard.files)
    assert list(files) == [f"python_docs:{package}" for package in PACKAGES.split(",")]
    rows = [list(read_shard(shard, corpus.sources[0])) for shard in plan.shards]
    assert [len(items) for items in rows] == [shard.n_rows for shard in plan.shards]
    names = [item.external_id for items in rows for item in items]
    assert len(names) > 100
    assert sum(name.startswith("pydoc_data.topics.") for name in names if name) >= 70
    assert plan_shards(corpus, plan.shards).new == ()


def test_a_package_that_was_removed_is_missing_and_not_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise its shards would be read again, as zero rows."""
    (tmp_path / "passing_package.py").write_text(f'"""{"Documentation. " * 90}"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    plan = plan_shards(settings_for("passing_package,statistics", kind="python_docs"))
    (tmp_path / "passing_package.py").unlink()
    importlib.invalidate_caches()
    without = settings_for("statistics", kind="python_docs")
    scan = plan_shards(without, plan.shards, accept_changes=True)
    assert (scan.missing, scan.missing_shards) == (("python_docs:passing_package",), ("s-00000",))
    assert scan.shards == plan.shards
    with pytest.raises(MissingSourceError, match="python_docs:passing_package does not exist"):
        current_shard(without, scan, "s-00000")


_SCRIPT = """
import hashlib, sys
{first}
from entropylong_assets.stages.corpus.formats import python_docs
digest = hashlib.sha256()
for package in {packages!r}.split(","):
    start, rows = 0, []
    while part := python_docs.read(package, start, start + {step}):
        rows += part
        start += {step}
    digest.update(repr(rows).encode())
print(digest.hexdigest(), "sklearn" in sys.modules)
"""


def test_every_process_sees_the_same_rows() -> None:
    """For any earlier imports, any hash seed, and any division into pieces."""
    digests = set()
    for seed, first, step in [("1", "", 7), ("2", "import sklearn.cluster, asyncio", 1000)]:
        packages = f"{PACKAGES},sklearn.cluster"
        script = _SCRIPT.format(first=first, packages=packages, step=step)
        result = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        digest, sklearn = result.stdout.split()
        digests.add(digest)
        assert result.stderr == ""
        assert sklearn == str(bool(first))  # what is read is not imported
    assert len(digests) == 1


def test_reading_runs_nothing_and_steps_over_what_is_no_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "plantedpkg"
    (package / "tests").mkdir(parents=True)
    long = "A long text about something. " * 40
    marker = tmp_path / "ran"
    (package / "__init__.py").write_text(f'"""{long}"""\nopen({str(marker)!r}, "w")\n')
    (package / "broken.py").write_text(f'"""{long}"""\ndef (:\n')
    (package / "latin.py").write_bytes(b'"""' + b"\xe9" * 900 + b'"""\n')
    (package / "deep.py").write_text(f'"""{long}"""\nx = ' + "(" * 5000)
    (package / "tests" / "test_x.py").write_text(f'"""{long}"""')
    (package / "part.py").write_text(
        f'def f():\n    """short"""\nclass A:\n    """{long}A"""\n    def g(self):\n'
        f'        """{long}g"""\ntry:\n    def h():\n        r"""{long}h"""\nexcept E:\n    pass\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    docs = python_docs.read("plantedpkg")
    assert [doc.name for doc in docs] == [
        "plantedpkg",
        "plantedpkg.part.A",
        "plantedpkg.part.A.g",
        "plantedpkg.part.h",
    ]
    assert not marker.exists()
    rows, unparsed = python_docs.count("plantedpkg")
    assert (rows, unparsed) == (4, 3)
    assert docs[1].text == inspect.cleandoc(f"{long}A")
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text())) == docs[0].text


def test_an_interrupted_reading_leaves_no_short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows read before a failure must not be kept as if the package had no others."""
    expected = list(python_docs.read("asyncio"))
    assert len(expected) > 5
    python_docs._reader.cache_clear()
    real, calls = ast.parse, []

    def interrupted(content: bytes) -> ast.Module:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(content)

    monkeypatch.setattr(ast, "parse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python_docs.read("asyncio")
    assert python_docs.read("asyncio") == expected


def test_packages_are_read_in_threads() -> None:
    """Python 3.11's parser may fail if two threads use it at once."""
    packages = ["asyncio", "email", "concurrent", "unittest"]
    expected = [len(python_docs.read(package)) for package in packages]
    for _ in range(2):
        python_docs._reader.cache_clear()
        with ThreadPoolExecutor(6) as pool:
            assert [len(docs) for docs in pool.map(python_docs.read, packages)] == expected


def test_documents_of_the_demo_source(tmp_path: Path) -> None:
    config = settings_for("statistics,numpy.linalg", kind="python_docs")
    documents, dropped, summaries = ingest(config, TableStore(str(tmp_path)))
    assert len(documents) + len(dropped) == sum(s.rows_read for s in summaries) >= 30
    assert {document["file"] for document in documents} == {
        "python_docs:statistics",
        "python_docs:numpy.linalg",
    }
    assert documents[0]["external_id"] == "statistics"


@pytest.mark.parametrize("package", ["stdlib"])
def test_the_standard_library_is_read_in_seconds(package: str) -> None:
    import time

    start = time.process_time()
    rows, _ = python_docs.count(package)
    assert rows > 200
    assert time.process_time() - start < 15
    names = [doc.name for doc in python_docs.read(package)]
    assert len(set(names)) > 0.95 * len(names)
    assert not [name for name in names if {"test", "idlelib"} & set(name.split("."))]
