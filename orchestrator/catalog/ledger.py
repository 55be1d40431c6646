"""Which part files there ought to be, so that one that is missing altogether is noticed.

An empty file stands for each part file, named after it and how many rows it has. There is no list that writers would
fight over, and whoever is killed between a part file and its entry leaves a part file of which nobody would notice
the loss: never an entry without a part file. Roots of earlier versions have no entries, and nothing is missed there.
"""

from collections.abc import Container
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

FAILS = (OSError, pa.ArrowException)
"""What a filesystem raises that fails; an entry that cannot be made is no reason to stop a run."""


class Ledger:
    """The entries of a catalog, in `ledger/` beside its tables."""

    def __init__(self, filesystem: pafs.FileSystem, base: str) -> None:
        """`base` is the catalog's folder on a filesystem."""
        self._filesystem, self._base = filesystem, base

    def enter(self, path: str, rows: int) -> None:
        """Note a part file that was just written, unless a compaction has merged and removed it already."""
        entry = self._entry(path, rows)
        with suppress(*FAILS):
            if isinstance(self._filesystem, pafs.LocalFileSystem):
                folder = Path(entry).parent
                folder.parent.mkdir(exist_ok=True)
                folder.mkdir(exist_ok=True)
                Path(entry).touch()
            else:
                self._filesystem.open_output_stream(entry).close()
            if self._is_gone(path):
                self.strike(path, rows)

    def strike(self, path: str, rows: int | None = None) -> None:
        """Note that a part file is to be missed by nobody: before it is removed, and once more after it.

        The second time is for whoever had just written it, and entered it meanwhile.
        """
        if rows is None:
            rows = self.entries(path.split("/")[-2]).get(path)
        if rows is not None:
            with suppress(*FAILS):
                self._filesystem.delete_file(self._entry(path, rows))

    def entries(self, table: str) -> dict[str, int]:
        """The part files that there ought to be, by path, with their rows. Raises OSError."""
        selector = pafs.FileSelector(f"{self._base}/ledger/{table}", allow_not_found=True)
        found = {}
        for info in self._filesystem.get_file_info(selector):
            name, _, rows = info.base_name.rpartition(".")
            if info.type == pafs.FileType.File and rows.isdigit():
                found[f"{self._base}/{table}/{name}.parquet"] = int(rows)
        return dict(sorted(found.items()))

    def missing(self, table: str, there: Container[str]) -> dict[str, int]:
        """The part files that ought to be there and are not, by path, with their rows. Raises OSError."""
        if not any(path not in there for path in self.entries(table)):
            return {}
        # One that somebody removes just now is struck first: it is missing only if its entry stands once it is gone.
        gone = [path for path in self.entries(table) if path not in there and self._is_gone(path)]
        still = self.entries(table) if gone else {}
        return {path: still[path] for path in gone if path in still}

    def _is_gone(self, path: str) -> bool:
        return bool(self._filesystem.get_file_info(path).type == pafs.FileType.NotFound)

    def _entry(self, path: str, rows: int) -> str:
        table, name = path.split("/")[-2:]
        return f"{self._base}/ledger/{table}/{name.removesuffix('.parquet')}.{rows}"
