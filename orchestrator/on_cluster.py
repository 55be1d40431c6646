"""What a job runs on a cluster's head: `python3 -m orchestrator.on_cluster COMMAND …`, out of the shipped folder.

Until it knows that what the code needs is there, it uses the standard library alone.
"""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> int:
    """Check the head's versions, then run `run …` or `parcel STUDY ROOT`; its exit code, 2 where these differ."""
    here = Path(__file__).parents[1]
    problem = disagreement(json.loads((here / "versions.json").read_text(encoding="utf-8")))
    if problem is not None:
        sys.stderr.write(f"latentsweep: {problem}\n")
        return 2
    command, *rest = arguments
    if command == "parcel":
        study, root = rest
        os.chdir(Path.home())
        return _parcel(study, os.path.expanduser(root))  # noqa: PTH111  # may be s3://
    from orchestrator import cli

    rest = [os.path.expanduser(word) for word in rest]  # noqa: PTH111
    study_file = here / rest[0]
    os.chdir(Path.home())  # the folder of a job is thrown away; what a remote root keeps locally is not
    return cli.main([command, str(study_file), *rest[1:]])


def _parcel(study: str, root: str) -> int:
    """Write a study as lines of text, or one line that says what is wrong; the exit code."""
    from orchestrator.catalog.patient import reason
    from orchestrator.transfer import write_parcel
    from search_spaces.errors import InputError

    try:
        return write_parcel(study, root, sys.stdout)
    except (InputError, OSError) as error:
        problem = reason(error) if isinstance(error, OSError) else str(error)
        sys.stdout.write(f"latentsweep: {problem}\n")
        return 2


def disagreement(wanted: dict[str, Any]) -> str | None:
    """A sentence for what this machine lacks of the versions that the sender has; None where all agree."""
    python = ".".join(platform.python_version_tuple()[:2])
    advice = "install constraints.txt there, as cluster.yaml does"
    if python != wanted["python"]:
        ours = wanted["python"]
        return (
            f"the cluster's python3 ({sys.executable}) is Python {python} and the sender's {ours}; {advice}"
        )
    for package, version in wanted["packages"].items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            return f"the cluster's python3 ({sys.executable}) has no {package}; {advice}"
        if version is not None and found != version:
            return f"the cluster has {package} {found} and the sender {version}; {advice}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
