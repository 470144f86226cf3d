from __future__ import annotations

from typing import Any

import pytest

from entropylong_assets_tests.faults.reference import Reference, begin
from entropylong_assets_tests.faults.summary import PROPERTY, FaultRecord


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return begin(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> FaultRecord:
    """Figures of a test, which the report of the suite sums up."""
    request.node.user_properties.append((PROPERTY, {}))
    return FaultRecord()


def pytest_runtest_makereport(item: pytest.Item, call: Any) -> None:
    """Add the figures to the test's report. When fixtures end, the report has been made already."""
    record = item.funcargs.get("record") if hasattr(item, "funcargs") else None
    if call.when == "call" and isinstance(record, FaultRecord):
        for name, figures in item.user_properties:
            if name == PROPERTY:
                figures |= record.figures()
