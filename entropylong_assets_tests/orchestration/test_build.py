"""Building the definitions of a project."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_loading_the_definitions_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure: `dg dev` printed forty lines of PreviewWarning and BetaWarning per load.

    Runs in another process, since the tests themselves ignore these warnings.
    """
    monkeypatch.setenv("ENTROPYLONG_PROFILE", "quickstart")
    load = (
        "from entropylong_assets.orchestration.build import build_definitions; "
        "from entropylong_assets.project import load_project; "
        "print(len(build_definitions(load_project()).resolve_all_asset_specs()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", load], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stderr == ""
    assert int(done.stdout) > 10
