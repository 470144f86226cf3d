from __future__ import annotations

from typing import Any

import pytest

from entropylong_assets_tests.faults.reference import Reference, begin
from entropylong_assets_tests.faults.summary import PROPERTY, Tale


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return begin(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tale:
    """What a test writes here stands in the report of the suite."""
    request.node.user_properties.append((PROPERTY, {}))
    return Tale()


def pytest_runtest_makereport(item: pytest.Item, call: Any) -> None:
    """Before the report of the call is made: a fixture's end would come too late for it."""
    tale = item.funcargs.get("tell") if hasattr(item, "funcargs") else None
    if call.when == "call" and isinstance(tale, Tale):
        for name, figures in item.user_properties:
            if name == PROPERTY:
                figures |= tale.figures()
