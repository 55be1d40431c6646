"""How a part file is laid out: one picture can be read without its neighbours, and metadata without any picture."""

import hashlib
import io
import json
import re
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


BODY_KEY = b"latentsweep_body_sha256"
"""Of a part's own metadata: the SHA-256 of everything in the file before its footer, as hexadecimal digits."""

SEALED = re.compile(r"part-\d+-[0-9a-f]{8}([0-9a-f]{16})\.parquet")
"""A part file's name that ends in its seal; those of earlier versions have none."""

ENDING = 65536
"""Bytes at a file's end that are read at once, in which a footer mostly lies."""


def encode(table: str, data: pa.Table) -> tuple[list[bytes], str]:
    """Rows as the content of a part file, in pieces, and its seal, which belongs in its name.

    Pictures are compressed already and stored as they are, so that their bytes stand in the file one after the
    other; where, is noted in its metadata. Statistics go where they let a reader skip row groups.

    Whoever reads a page compares it with its checksum. What no such checksum covers, the footer with its statistics
    by which rows are skipped, is what the seal covers; and the footer has a digest of the whole body.
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
        write_page_checksum=True,
    )
    writer.write_table(data, row_group_size=group_rows(data))
    if table == "images":
        writer.add_key_value_metadata({PLACES_KEY: json.dumps(_places(sink.pieces, data["image"]))})
    body, digest = len(sink.pieces), hashlib.sha256()
    for piece in sink.pieces:
        digest.update(piece)
    writer.add_key_value_metadata({BODY_KEY: digest.hexdigest()})
    writer.close()
    return sink.pieces, _seal(b"".join(sink.pieces[body:]))


def _seal(footer: bytes) -> str:
    """The seal of a part: 64 bits of the SHA-256 of its footer, as hexadecimal digits."""
    return hashlib.sha256(footer).hexdigest()[:16]


def broken_seal(name: str, file: pa.NativeFile) -> str | None:
    """What is wrong with the footer of an open part file; None where nothing is, or where its name has no seal."""
    sealed = SEALED.fullmatch(name)
    if sealed is None:
        return None
    size = file.size()
    ending = file.read_at(min(size, ENDING), max(0, size - ENDING))
    if not ending.endswith(b"PAR1"):
        return None  # it is cut off, or no Parquet file, which whoever opens it says
    length = int.from_bytes(ending[-8:-4], "little") + 8
    if length > len(ending):
        ending = file.read_at(min(size, length), max(0, size - length))
    if _seal(ending[-length:]) != sealed[1]:
        return "its footer is not what was written, by the digest in its name"
    return None


def changed_body(metadata: pq.FileMetaData, file: pa.NativeFile) -> str | None:
    """What is wrong with the body of an open part file, all of which is read; None where nothing is or nobody knows.

    Metadata is the file's, whose seal is whole.
    """
    noted = (metadata.metadata or {}).get(BODY_KEY)
    if noted is None:
        return None
    digest, left = hashlib.sha256(), file.size() - metadata.serialized_size - 8
    file.seek(0)
    while left > 0:
        piece = file.read(min(left, 2**23))
        if not piece:
            break
        digest.update(piece)
        left -= len(piece)
    if digest.hexdigest() != noted.decode():
        return "its bytes are not those that were written, by the digest in its footer"
    return None


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
