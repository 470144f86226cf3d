"""Several writers of one folder: files of running ones are kept, those of killed ones removed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from entropylong_assets.stages.training_data.publication import Publication

_WRITE_AND_DIE = """
import os, signal, sys
from entropylong_assets.stages.training_data.publication import Publication
with Publication(sys.argv[1], "v1") as publication:
    with publication.file("a/data.bin") as file:
        file.write(b"half")
        print(publication._folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    command = [sys.executable, "-c", _WRITE_AND_DIE, str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    left = Path(killed.stdout.strip())
    assert left.parent == tmp_path
    assert (left / "a").is_dir()
    assert not (tmp_path / "v1").exists()
    with Publication(str(tmp_path), "v1") as publication:
        assert not left.exists()
        publication.publish(b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_a_living_export_is_not_swept_by_another(tmp_path):
    with Publication(str(tmp_path), "v1") as first:
        with first.file("data.bin") as file:
            file.write(b"first")
        with Publication(str(tmp_path), "v1") as second:
            with second.file("data.bin") as file:
                file.write(b"second")
            second.publish(b"{2}")
        assert (tmp_path / "v1/data.bin").read_bytes() == b"second"
        first.publish(b"{1}")
    assert (tmp_path / "v1/data.bin").read_bytes() == b"first"
    assert (tmp_path / "v1/manifest.json").read_bytes() == b"{1}"
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_hashes_are_those_of_the_bytes_on_disk(tmp_path):
    with Publication(str(tmp_path), "v1") as publication:
        with publication.file("data.bin") as file:
            for part in (b"one", memoryview(bytearray(b"two")), b""):
                file.write(part)
        publication.publish(b"{}")
    (written,) = publication.files
    data = (tmp_path / "v1" / written.path).read_bytes()
    assert data == b"onetwo"
    assert (written.bytes, written.sha256) == (6, hashlib.sha256(data).hexdigest())


def test_a_file_that_failed_is_not_listed(tmp_path):
    publication = Publication(str(tmp_path), "v1")
    with pytest.raises(RuntimeError), publication, publication.file("data.bin"):
        raise RuntimeError
    assert not publication.files
    assert not list(tmp_path.iterdir())
