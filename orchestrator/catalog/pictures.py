"""Pictures written into the catalog, by the loop or by a writer beside it."""

from collections.abc import Sequence

from orchestrator.catalog.schema import image_row
from orchestrator.catalog.tables import Tables
from orchestrator.pool import Done, Kept
from search_spaces.study import Study


def write_images(tables: Tables, study: Study, done: Sequence[Done]) -> None:
    """Finished requests as one part file of `images`, durable on return. Raises OSError."""
    assert not any(isinstance(item.picture, Kept) for item in done), "these are in the catalog already"
    tables.append("images", [image_row(item, study) for item in done])


class CatalogWriter:
    """The seam `PictureWriter` over a catalog's root; made where it writes."""

    def __init__(self, root: str, study: Study) -> None:
        self._tables, self._study = Tables(root), study

    def write(self, done: Sequence[Done]) -> None:
        """Keep pictures of finished requests, which are durable on return. Raises OSError where they cannot be."""
        write_images(self._tables, self._study, done)
