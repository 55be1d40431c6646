"""Rows found by their ids: a million in 24 MB and half a second, where dictionaries take ten times that."""

import hashlib
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Keys = npt.NDArray[np.uint64]
"""128 bits for each row, of shape (rows, 2)."""

NO_KEYS: Keys = np.empty((0, 2), np.uint64)


def keys(ids: pa.ChunkedArray, *texts: pa.ChunkedArray) -> Keys:
    """The key of each row: of its image_id, or of its image_id together with texts. Nothing is null."""
    found = np.concatenate(
        [NO_KEYS, *map(_id_words, ids.chunks)]
    )  # piece by piece, which takes little memory
    for number, column in enumerate(texts, 1):
        words = (
            column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        )
        for_each = [
            np.array([_text_word(text, number) for text in chunk.dictionary.to_pylist()], np.uint64)[
                chunk.indices.to_numpy()
            ]
            for chunk in words.chunks
            if len(chunk)
        ]
        found = found ^ np.concatenate([*for_each, np.array([], np.uint64)])[:, None]
    return found


def _id_words(ids: pa.Array) -> Keys:
    try:
        digits = ids.cast(pa.binary()).cast(pa.binary(32))
        start = 32 * digits.offset
        raw = bytes.fromhex(str(memoryview(digits.buffers()[1])[start : start + 32 * len(digits)], "ascii"))
    except (pa.ArrowInvalid, ValueError):  # something that is no id of ours lies between them
        raw = b"".join(map(_id_bytes, ids.to_pylist()))
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)


def key(image_id: str, *texts: str) -> tuple[int, int]:
    """The key of one image_id, or of one together with texts."""
    salt = 0
    for number, text in enumerate(texts, 1):
        salt ^= _text_word(text, number)
    raw = _id_bytes(image_id)
    return int.from_bytes(raw[:8]) ^ salt, int.from_bytes(raw[8:]) ^ salt


def _id_bytes(image_id: str) -> bytes:
    try:
        raw = bytes.fromhex(image_id)
    except ValueError:
        raw = b""
    return raw if len(raw) == 16 else hashlib.sha256(image_id.encode()).digest()[:16]


@cache
def _text_word(text: str, position: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{position} {text}".encode()).digest()[:8])


class Index:
    """Row numbers by key; of rows with one key, the first."""

    def __init__(self, of: Keys) -> None:
        self._order = np.argsort(of[:, 0], kind="stable")
        self._high, self._low = of[self._order, 0], of[self._order, 1]

    def __len__(self) -> int:
        """How many rows it knows."""
        return len(self._order)

    def row(self, of: tuple[int, int]) -> int | None:
        """The first row of a key; None where there is none."""
        high, low = np.uint64(of[0]), np.uint64(of[1])
        place = int(np.searchsorted(self._high, high))
        while place < len(self._order) and self._high[place] == high:
            if self._low[place] == low:
                return int(self._order[place])
            place += 1
        return None

    def rows(self, of: Keys) -> npt.NDArray[np.int64]:
        """The first row of each key, -1 where there is none."""
        start = np.searchsorted(self._high, of[:, 0])
        found = np.full(len(of), -1, np.int64)
        open_ = np.arange(len(of))
        while True:  # once round, but for keys that share half of their bits
            open_ = open_[start[open_] < len(self._order)]
            open_ = open_[self._high[start[open_]] == of[open_, 0]]
            hit = self._low[start[open_]] == of[open_, 1]
            found[open_[hit]] = self._order[start[open_[hit]]]
            open_ = open_[~hit]
            if not len(open_):
                return found
            start[open_] += 1


def firsts(of: Keys) -> npt.NDArray[np.int64]:
    """The rows that are the first of their key, ascending."""
    rows = Index(of).rows(of)
    distinct: npt.NDArray[np.int64] = np.unique(rows)
    return distinct
