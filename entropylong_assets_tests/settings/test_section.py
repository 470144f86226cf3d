"""Fingerprints of settings and values."""

from __future__ import annotations

from entropylong_assets.project import make_project
from entropylong_assets.settings.section import fingerprint


def test_fingerprint_goes_by_content_and_not_by_order() -> None:
    a, b = {"x": 1, "y": [1, 2]}, {"y": [1, 2], "x": 1}
    assert fingerprint(a) == fingerprint(b) != fingerprint(a, b)
    assert fingerprint({"x": "1"}) != fingerprint({"x": 1})
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])
    assert fingerprint("a", "b") != fingerprint("ab")
    assert fingerprint(make_project().dataset) == fingerprint(make_project().dataset)
    assert len(fingerprint()) == 16
