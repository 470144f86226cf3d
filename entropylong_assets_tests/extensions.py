"""Extensions of another package, installed for the duration of a test.

point = EntryPoint("my_rule", "my_tests.rules:MyRule", "entropylong_assets.rules")
with installed(point):
    assert "my_rule" in RULES
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

from entropylong_assets.settings.registry import installed_entry_points


def write_package(folder: Path, name: str, *points: EntryPoint) -> None:
    """Write the metadata of an installed package that has these entry points."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{point.group}]\n{point.name} = {point.value}\n" for point in points]
    (metadata / "entry_points.txt").write_text("".join(lines))


@contextmanager
def search_path(folder: Path) -> Iterator[None]:
    """Put a folder of packages first on `sys.path`; registries find their entry points."""
    sys.path.insert(0, str(folder))
    installed_entry_points.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        installed_entry_points.cache_clear()


@contextmanager
def installed(*points: EntryPoint) -> Iterator[None]:
    """Install a package that has these entry points. Their targets must be importable."""
    with tempfile.TemporaryDirectory() as folder:
        write_package(Path(folder), "another-package", *points)
        with search_path(Path(folder)):
            yield
