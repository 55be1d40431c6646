"""The program `latentsweep`: its own packages come first, whatever else on the way to them bears their names.

A `workers.py` of the user's on PYTHONPATH would be found before ours. This module has a name that is ours alone, and
sees to that before it imports any of them; Ray's workers and children get the same order of folders.
"""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("orchestrator", "workers", "search_spaces")

FOLDER = Path(__file__).resolve().parent
"""Where our packages lie."""


def come_first() -> None:
    """Put our folder before all others, where others hide a package of ours; else nothing is changed."""
    for name in PACKAGES:
        found = PathFinder.find_spec(name)
        places = [*(found.submodule_search_locations or ()), found.origin] if found else []
        if any(place is not None and FOLDER not in Path(place).resolve().parents for place in places):
            sys.path.insert(0, str(FOLDER))
            return


def main() -> int:
    """Run one command; the result is the exit code."""
    come_first()
    from orchestrator import start

    return start.main()


if __name__ == "__main__":
    sys.exit(main())
