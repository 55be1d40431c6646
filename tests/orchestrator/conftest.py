"""Ray is started once for the tests that need it, and a tester's own key of Comet is not used."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from orchestrator import wiring
from orchestrator.ray_pool import ray_session
from orchestrator.tracking.comet.keys import may_have_key


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
