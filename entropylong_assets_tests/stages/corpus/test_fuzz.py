"""Damaged files of every format: readers yield items and never raise."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from entropylong_assets.stages.corpus.readers import count_rows, read_rows
from entropylong_assets.stages.corpus.registry import kind_of
from entropylong_assets.stages.corpus.rows import REMEDIES, BadRow, Row
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets_tests.stages.corpus.files_for_tests import TABLE_ENDINGS, write_rows

ROWS = [{"id": f"d{i}", "text": f'text {i} é\n "q" ' * 5} for i in range(23)]

# A fault of a whole file is reported in every shard of it, so pieces report it more often.
WHOLE_FILE = {"missing_field", "not_text", "unreadable", "misnamed", "broken_csv"}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes changed, taken out, put in or cut off at one to four places."""
    result = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(result)) if result else 0
        match draw.choice(("change", "change", "remove", "insert", "cut")):
            case "change" if result:
                result[at] = draw.randrange(256)
            case "remove":
                del result[at : at + draw.randint(1, 30)]
            case "insert":
                result[at:at] = draw.randbytes(draw.randint(1, 9))
            case "cut":
                del result[at:]
    return bytes(result)


@pytest.mark.parametrize("ending", TABLE_ENDINGS)
def test_damage_is_reported_and_never_raised(tmp_path: Path, ending: str) -> None:
    path = write_rows(tmp_path / f"a{ending}", ROWS)
    name, kind, whole = str(path), kind_of(path.name), path.read_bytes()
    assert kind
    source = SourceSettings(name="s", uri=name, id_field="id")
    bad = 0
    for seed in range(80):
        path.write_bytes(damaged(whole, random.Random(f"{ending} {seed}")))
        items = list(read_rows(name, kind, source))
        count = count_rows(name, kind)
        assert items or count <= 1 or not path.read_bytes().strip(), seed
        assert all(0 <= item.row < count for item in items), seed
        rows = [item.row for item in items]
        assert rows == sorted(set(rows)), seed
        faults = [item for item in items if isinstance(item, BadRow)]
        assert all(fault.reason in REMEDIES and fault.detail.isprintable() for fault in faults)
        bad += bool(faults)
        pieces = [i for at in range(0, count, 7) for i in read_rows(name, kind, source, at, at + 7)]
        good = [item for item in pieces if isinstance(item, Row)]
        assert good == [item for item in items if isinstance(item, Row)], seed
        extra = set(pieces) - set(items)
        assert {item.reason for item in extra if isinstance(item, BadRow)} <= WHOLE_FILE, seed
    assert bad > 40
