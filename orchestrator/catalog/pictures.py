"""Pictures written into the catalog, by the loop or by a writer beside it."""

from collections.abc import Sequence

from orchestrator.catalog.schema import image_row
from orchestrator.catalog.tables import Tables
from orchestrator.pool import Done, Kept
from search_spaces.study import Study


def write_images(tables: Tables, study: Study, done: Sequence[Done]) -> None:
    """Finished requests as one part file of `images`, durable on return. Raises OSError."""
    rows = []
    for item in done:
        assert not isinstance(item.picture, Kept)
        rows.append(image_row(item, study, item.picture.png() if item.picture else None))
    tables.append("images", rows)


class CatalogWriter:
    """The seam `PictureWriter` over a catalog's root; made where it writes."""

    def __init__(self, root: str, study: Study) -> None:
        self._tables, self._study = Tables(root), study

    def write(self, done: Sequence[Done]) -> None:
        """Keep pictures of finished requests, which are durable on return. Raises OSError where they cannot be."""
        write_images(self._tables, self._study, done)
