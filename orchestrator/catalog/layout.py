"""How a part file is laid out: one picture can be read without its neighbours, and metadata without any picture."""

import io
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.catalog.schema import REPEATED, SCHEMAS

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


def encode(table: str, data: pa.Table) -> pa.Buffer:
    """Rows as the content of a part file.

    Pictures are compressed already and stored as they are, so that their bytes stand in the file one after the
    other; where, is noted in its metadata. Statistics go where they let a reader skip row groups.
    """
    schema = SCHEMAS[table]
    leaves = [f"{name}.path" if name == "image" else name for name in schema.names]
    file = io.BytesIO()
    writer = pq.ParquetWriter(
        file,
        schema,
        compression={**dict.fromkeys(leaves, "zstd"), PICTURE: "none"},
        use_dictionary=[name for name in leaves if name in REPEATED],
        write_statistics=[
            field.name for field in schema if field.name in NAMES or not pa.types.is_string(field.type)
        ],
    )
    writer.write_table(data, row_group_size=group_rows(data))
    if table == "images":
        pictures = [image and image["bytes"] for image in data["image"].to_pylist()]
        writer.add_key_value_metadata({PLACES_KEY: json.dumps(_places(file.getvalue(), pictures))})
    writer.close()
    return pa.py_buffer(file.getbuffer())


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


def _places(content: bytes, pictures: Sequence[bytes | None]) -> Sequence[tuple[int, int] | None] | None:
    """Where pictures stand in a file, in their order; None where one does not."""
    places: list[tuple[int, int] | None] = []
    at = 0
    for picture in pictures:
        if picture is None:
            places.append(None)
            continue
        at = content.find(picture[:64], at)
        while at >= 0 and not content.startswith(picture, at):
            at = content.find(picture[:64], at + 1)
        if at < 0:
            return None
        places.append((at, len(picture)))
        at += len(picture)
    return places
