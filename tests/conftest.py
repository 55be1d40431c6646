"""Two processes share the tests (`-n 2 --dist loadgroup`): one takes the orchestrator's, the other the rest."""

from pathlib import Path

import pytest

ORCHESTRATOR = Path(__file__).parent / "orchestrator"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group them, in their order, so that fixtures of a module are made once and only one process has Ray."""
    for item in items:
        group = "orchestrator" if item.path.is_relative_to(ORCHESTRATOR) else "rest"
        item.add_marker(pytest.mark.xdist_group(group))
