"""How a part file is laid out: one picture can be read without its neighbours, and metadata without any picture."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.catalog.schema import REPEATED, SCHEMAS

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PLACES_KEY = b"latentsweep_pictures"
"""Of a part's own metadata: the byte offset and length of each row's picture in the file, as JSON."""

GROUP_ROWS = 16384
"""Rows in a row group of a table without pictures: what is read for the sake of one of them."""

GROUP_BYTES = 32 * 2**20
"""Of the pictures in a row group, which is what other readers take at a time: 160 pictures of 200 kB."""

MOST_PICTURES = 4096
"""In a row group, however small they are."""

PICTURE = "image.bytes"

NAMES = {"image_id", "study", "scorer"}
"""Texts that are asked for by name. Others may be long, and their least and greatest would stand in every page."""


def encode(table: str, data: pa.Table) -> list[bytes]:
    """Rows as the content of a part file, in pieces.

    Pictures are compressed already and stored as they are, so that their bytes stand in the file one after the
    other; where, is noted in its metadata. Statistics go where they let a reader skip row groups.
    """
    schema = SCHEMAS[table]
    leaves = [f"{name}.path" if name == "image" else name for name in schema.names]
    sink = _Pieces()
    writer = pq.ParquetWriter(
        sink,
        schema,
        compression={**dict.fromkeys(leaves, "zstd"), PICTURE: "none"},
        use_dictionary=[name for name in leaves if name in REPEATED],
        write_statistics=[
            field.name for field in schema if field.name in NAMES or not pa.types.is_string(field.type)
        ],
    )
    writer.write_table(data, row_group_size=group_rows(data))
    if table == "images":
        writer.add_key_value_metadata({PLACES_KEY: json.dumps(_places(sink.pieces, data["image"]))})
    writer.close()
    return sink.pieces


class _Pieces(io.RawIOBase):
    """A file in memory that keeps what is written as it comes, of which a page of pictures is one piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, piece: "ReadableBuffer") -> int:
        """Keep a piece."""
        self.pieces.append(bytes(piece))
        return len(self.pieces[-1])


def group_rows(data: pa.Table) -> int:
    """How many of some rows a row group is to have."""
    if "image" not in data.column_names or not data.num_rows:
        return GROUP_ROWS
    mean = int(data["image"].nbytes) // int(data.num_rows)
    return max(1, min(MOST_PICTURES, GROUP_BYTES // (mean + 1)))


def picture_places(metadata: Mapping[bytes, bytes] | None) -> Sequence[tuple[int, int] | None] | None:
    """Offset and length of each row's picture from a part's metadata; None where it does not tell."""
    noted = (metadata or {}).get(PLACES_KEY)
    return json.loads(noted) if noted else None


def _places(pieces: Sequence[bytes], images: pa.ChunkedArray) -> Sequence[tuple[int, int] | None] | None:
    """Where pictures stand in a file, in their order, each whole in one of its pieces; None where one does not."""
    places: list[tuple[int, int] | None] = []
    number = begin = at = 0  # the piece, where it begins in the file, and how far it has been looked through
    for picture in (value.as_buffer() for chunk in images.chunks for value in chunk.flatten()[0]):
        if picture is None:
            places.append(None)
            continue
        while number < len(pieces) and (found := _find(picture, pieces[number], at)) < 0:
            begin, number, at = begin + len(pieces[number]), number + 1, 0
        if number == len(pieces):
            return None
        places.append((begin + found, picture.size))
        at = found + picture.size
    return places


def _find(picture: pa.Buffer, piece: bytes, at: int) -> int:
    """Where a picture stands in a piece, from some byte on; -1 where it does not."""
    beginning, whole = picture.slice(0, 64).to_pybytes(), pa.py_buffer(piece)
    at = piece.find(beginning, at)
    while at >= 0 and not whole.slice(at, picture.size).equals(picture):
        at = piece.find(beginning, at + 1)
    return at
