"""TFRecord files without TensorFlow: length, payload, and a masked CRC-32C of each.

A record is a little-endian u64 length, the masked checksum of these 8 bytes, the payload, the masked checksum of the
payload. Not here: what the payloads mean (`v1.py`), compressed TFRecord files, which Waymo does not use.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from mwsis.core.errors import DataError
from mwsis.core.files import atomic_write

__all__ = ["masked_crc32c", "read_at", "record_spans", "write_tfrecord"]

LENGTH = struct.Struct("<Q")
CHECKSUM = struct.Struct("<I")
HEADER_BYTES = LENGTH.size + CHECKSUM.size
MASK_DELTA = 0xA282EAD8


def masked_crc32c(content: bytes) -> int:
    """Return the CRC-32C of some bytes, rotated right by 15 bits and shifted by a constant.

    Masked because checksums of bytes that hold checksums are weak.

    Source: TensorFlow's record format; Castagnoli et al., IEEE Trans. Communications 41(6), 1993.
    """
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def record_spans(path: Path) -> Iterator[tuple[int, int]]:
    """Yield where the payload of each record starts and how many bytes it has, without reading payloads.

    Args:
        path: an uncompressed TFRecord file; an empty one has no records.

    Raises:
        DataError: the file is missing, is no TFRecord file, ends within a record, or the checksum of a length differs.
    """
    with _open(path) as file:
        size = path.stat().st_size
        position = number = 0
        while position < size:
            file.seek(position)
            name = f"record {number}"
            length = _length(path, name, file.read(HEADER_BYTES))
            end = position + HEADER_BYTES + length + CHECKSUM.size
            if end > size:
                raise DataError(f"{path}: {name}: expected {end} bytes up to its end, got a file of {size}: truncated")
            yield position + HEADER_BYTES, length
            position, number = end, number + 1


def read_at(path: Path, offset: int, length: int, name: str = "") -> bytes:
    """Return the payload of one record, both checksums verified.

    Args:
        path: a TFRecord file.
        offset: byte at which the payload starts, from `record_spans`.
        length: its bytes, likewise.
        name: what errors call the record; by default its offset.

    Raises:
        DataError: the file is missing or ends within the record, there is no record of this length at this offset, or
            a checksum differs.
    """
    name = name or f"record at byte {offset}"
    with _open(path) as file:
        file.seek(max(0, offset - HEADER_BYTES))
        found = _length(path, name, file.read(HEADER_BYTES))
        if found != length:
            raise DataError(f"{path}: {name}: length: expected {length} bytes, got {found}; the file was changed")
        payload, checksum = file.read(length), file.read(CHECKSUM.size)
    if len(payload) + len(checksum) < length + CHECKSUM.size:
        raise DataError(f"{path}: {name}: payload: expected {length} bytes and a checksum, got a truncated file")
    if CHECKSUM.unpack(checksum)[0] != masked_crc32c(payload):
        raise DataError(f"{path}: {name}: payload: its checksum differs, so its bytes are damaged")
    return payload


def write_tfrecord(path: Path, payloads: Iterable[bytes]) -> None:
    """Write a TFRecord file, atomically: a reader sees the old file or the complete new one.

    Args:
        path: file to write or replace.
        payloads: one per record; consumed one at a time.
    """
    with atomic_write(path) as unfinished, open(unfinished, "wb") as file:
        for payload in payloads:
            length = LENGTH.pack(len(payload))
            file.write(length + CHECKSUM.pack(masked_crc32c(length)))
            file.write(payload)
            file.write(CHECKSUM.pack(masked_crc32c(payload)))


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from None


def _length(path: Path, name: str, header: bytes) -> int:
    if len(header) < HEADER_BYTES:
        raise DataError(f"{path}: {name}: length: expected {HEADER_BYTES} bytes, got {len(header)}: truncated")
    length, checksum = header[: LENGTH.size], header[LENGTH.size :]
    if CHECKSUM.unpack(checksum)[0] != masked_crc32c(length):
        raise DataError(f"{path}: {name}: length: its checksum differs; damaged, or no uncompressed TFRecord file")
    return int(LENGTH.unpack(length)[0])
