"""Ray is started once for the tests that need it, and a tester's own key of Comet is not used."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from orchestrator import wiring
from orchestrator.ray_session import ray_session
from orchestrator.tracking.comet.keys import may_have_key


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the session's Ray come last: it ends the process that is shown another cluster's token."""
    items.sort(key=lambda item: "local_ray" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    with ray_session(None):
        yield


@pytest.fixture(autouse=True, scope="session")
def no_key_of_ones_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    nowhere = tmp_path_factory.mktemp("nowhere")

    def may_have(environ: Mapping[str, str], _: Path, __: Path) -> bool:
        return may_have_key(environ, nowhere, nowhere)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COMET_API_KEY", raising=False)
        patch.setattr(wiring, "may_have_key", may_have)
        yield
