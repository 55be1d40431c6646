"""Connecting to Ray: what is wrong with an address is one sentence, within seconds."""

import socket

import pytest
import ray

from orchestrator.ray_session import ray_session
from search_spaces.errors import InputError


def test_an_address_that_nobody_answers_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance\nmore lines")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(InputError, match=r"--address auto: no Ray cluster answers there"),
        ray_session("auto"),
    ):
        pass


def test_without_an_address_a_local_instance_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address file that a killed cluster leaves behind is followed by any other way of asking."""
    asked: dict[str, object] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", asked.update)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_session(None):
        assert asked["address"] == "local"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        asked.clear()
        with ray_session(None):
            assert asked == {**asked, "address": address}


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "no-such-host.invalid:6379"]
)
def test_an_address_where_nothing_listens_is_told_without_asking_ray(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked, which tries for minutes"))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=r"^RAY_ADDRESS .*: nothing listens there"), ray_session(None):
        pass


@pytest.mark.usefixtures("local_ray")
def test_the_session_is_shared_and_left_open() -> None:
    with ray_session(None):
        assert ray.is_initialized()
    assert ray.is_initialized()
