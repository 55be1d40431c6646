"""What runs a study, keeps its results and shows them.

Its siblings `workers` and `search_spaces` have names that others use too: the wrong ones are refused here by name.
"""

from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path


def _refuse_namesakes(folder: _Path) -> None:
    """Raise ImportError for a module that is not from `folder` and would be imported in place of ours."""
    for name in ("workers", "search_spaces"):
        found = _find_spec(name)
        if found is None:
            continue
        place = _Path(found.origin or next(iter(found.submodule_search_locations or ()), "")).resolve()
        if folder not in place.parents:
            raise ImportError(
                f"{place} is in the way of latentsweep's own package {name!r}; rename it, or take its folder from "
                "PYTHONPATH or sys.path, or start the program by its name, latentsweep"
            )


_refuse_namesakes(_Path(__file__).resolve().parents[1])
