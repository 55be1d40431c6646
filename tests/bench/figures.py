"""What the benches share: their command line, and how figures are printed and written."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path


def command_line(description: str | None, quick: str) -> argparse.ArgumentParser:
    """A bench's options: `--json`, and `--quick`, of which `quick` says what it leaves out."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def tell(figures: Mapping[str, float], file: Path | None) -> None:
    """Print figures under their plain names, and write them to a file where one is asked for."""
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:10.3f}")
    if file is not None:
        file.write_text(json.dumps(figures, indent=2), encoding="utf-8")
