"""Ray is started once for the tests that need it."""

from collections.abc import Iterator

import pytest

from orchestrator.ray_session import ray_session


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    with ray_session(None):
        yield
