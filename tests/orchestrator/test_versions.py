"""Versions that must agree."""

from orchestrator.versions import difference, versions


def test_this_machine_agrees_with_itself_and_names_what_matters() -> None:
    here = versions()
    assert difference(here, here) is None
    assert set(here) == {"Python", "ray", "torch", "diffusers", "transformers", "latentsweep"}
    assert "source" in here["latentsweep"]


def test_a_difference_is_named_with_both_versions() -> None:
    here = {"Python": "3.11.9", "torch": "2.9.1+cu128", "ray": "2.60.0"}
    assert difference(here, {"Python": "3.11.2", "torch": "2.9.1", "ray": "2.60.0"}) is None
    assert difference(here, {**here, "torch": "2.8.0"}) == "torch 2.8.0 instead of 2.9.1+cu128"
    assert difference(here, {**here, "Python": "3.12.9"}) == "Python 3.12.9 instead of 3.11.9"
    assert difference(here, {"Python": "3.11.9", "torch": "2.9.1"}) == "ray not installed instead of 2.60.0"
