"""Protocol buffers at the level of bytes, where message objects would be too slow.

Used for two things only: looking at a few fields of a frame without parsing the rest, and turning compressed range
images into arrays. Everything else goes through Waymo's own message classes, see `v1.py`. Problems are `ValueError`s
with half a sentence; who knows the file and the frame makes a `DataError` of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from mmap import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Buffer", "content_of", "decode_matrix", "fields", "packed_int32", "varint"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
CONTINUES = 128
"""A byte of a variable-length number from here on is followed by another."""
VALUE_BITS = 127
MATRIX_DATA, MATRIX_SHAPE, SHAPE_DIMS = 1, 2, 1
MAX_NUMBERS, MAX_REST = 1 << 28, 1 << 10
"""Bytes; the numbers of the largest range image of the data set have a hundredth of it, its shape twelve."""
PIECE = 1 << 16
"""Compressed bytes inflated at a time."""

Array = npt.NDArray[Any]
Buffer = bytes | mmap


def varint(buffer: Buffer, at: int, stop: int) -> tuple[int, int]:
    """Return the unsigned number that starts at a byte, and where the next field starts.

    Raises:
        ValueError: it reaches ``stop`` or is longer than 64 bits.
    """
    value = shift = 0
    while at < stop and shift < 64:
        byte = buffer[at]
        value |= (byte & VALUE_BITS) << shift
        at, shift = at + 1, shift + 7
        if byte < CONTINUES:
            return value, at
    raise ValueError("a number that does not end")


def fields(buffer: Buffer, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, and first and last byte (exclusive) of the content of each field of a message.

    Args:
        buffer: bytes, or a memory-mapped file.
        start: first byte of the message.
        stop: first byte behind it.

    Raises:
        ValueError: these bytes are no message.
    """
    at = start
    while at < stop:
        key, at = varint(buffer, at, stop)
        kind = key & 7
        if kind == VARINT:
            end = varint(buffer, at, stop)[1]
        elif kind == BYTES:
            size, at = varint(buffer, at, stop)
            end = at + size
        elif kind in FIXED_SIZES:
            end = at + FIXED_SIZES[kind]
        else:
            raise ValueError(f"a field of the unknown wire type {kind}")
        if end > stop:
            raise ValueError("a field that reaches beyond its message")
        yield key >> 3, kind, at, end
        at = end


def content_of(buffer: Buffer, start: int, stop: int, *path: int) -> tuple[int, int] | None:
    """Return first and last byte (exclusive) of the first field at a path of field numbers; None where it is absent.

    Raises:
        ValueError: these bytes are no message.
    """
    for number, kind, begin, end in fields(buffer, start, stop):
        if number == path[0]:
            if len(path) == 1:
                return begin, end
            if kind != BYTES:
                raise ValueError(f"field {number} of the wrong kind")
            return content_of(buffer, begin, end, *path[1:])
    return None


def decode_matrix(compressed: bytes, dtype: type[np.float32] | type[np.int32]) -> Array:
    """Return the array of a compressed ``MatrixFloat`` or ``MatrixInt32``, writable and aligned.

    Numbers come first in the message, so they are inflated piece by piece into their array: touching fresh memory twice
    costs as much as decoding.

    Args:
        compressed: zlib stream of the serialised message.
        dtype: ``numpy.float32`` for ``MatrixFloat``, ``numpy.int32`` for ``MatrixInt32``.

    Raises:
        ValueError: the stream is damaged or larger than any range image, or holds no matrix, or its dimensions do not
            match the count of its numbers.
    """
    octets, rest = _inflate(compressed)
    if dtype is np.int32:
        numbers = packed_int32(octets)
    elif len(octets) % 4:
        raise ValueError(f"expected 4 bytes per number, got {len(octets)} bytes")
    else:
        numbers = octets.view("<f4").astype(np.float32, copy=False)
    dims = [
        varint(rest, *span)[0]
        for number, kind, start, stop in fields(rest, 0, len(rest))
        if (number, kind) == (MATRIX_SHAPE, BYTES)
        for key, _, *span in fields(rest, start, stop)
        if key == SHAPE_DIMS
    ]
    if not dims or math.prod(dims) != len(numbers):
        raise ValueError(f"expected as many numbers as the dimensions {dims} say, got {len(numbers)}")
    return numbers.reshape(dims)


def packed_int32(octets: Array) -> Array:
    """Return the (N,) int32 numbers of a packed field of type int32, given as uint8.

    A negative number is written as the ten bytes of its 64-bit two's complement; the lower 32 bits are the number.
    A variable-length number starts with its lowest 7 bits, so bytes are shifted in from the last one backwards, one
    byte of all numbers that still have one at a time; in range images most numbers have one byte, the rest two.

    Raises:
        ValueError: the last number does not end, or one is longer than 64 bits.
    """
    continues = octets >= CONTINUES
    if len(octets) and continues[-1]:
        raise ValueError("a number that does not end")
    values = octets[~continues].astype(np.uint32)
    at = np.flatnonzero(continues)
    owner = at - np.arange(len(at))
    low = octets[at] & VALUE_BITS
    for _ in range(9):
        if not len(owner):
            return values.view(np.int32)
        last = np.append(owner[1:] != owner[:-1], True)
        here = slice(None) if last.all() else last
        values[owner[here]] = (values[owner[here]] << np.uint32(7)) | low[here]
        owner, low = owner[~last], low[~last]
    if len(owner):
        raise ValueError("a number longer than 64 bits")
    return values.view(np.int32)


def _inflate(compressed: bytes) -> tuple[Array, bytes]:
    """Return the content of the message's first field as (N,) uint8, and what follows it."""
    stream, source = zlib.decompressobj(), memoryview(compressed)
    octets, filled, rest = np.empty(0, np.uint8), 0, b""
    try:
        for begin in range(0, len(source), PIECE):
            part = stream.decompress(source[begin : begin + PIECE])
            if begin == 0:
                size, start = _first_field(part)
                octets, part = np.empty(size, np.uint8), part[start:]
            taken = min(len(part), len(octets) - filled)
            octets[filled : filled + taken] = np.frombuffer(part, np.uint8, taken)
            filled, rest = filled + taken, rest + part[taken:]
            if len(rest) > MAX_REST:
                raise ValueError(f"expected numbers and a shape, got more than {MAX_REST} bytes behind the numbers")
    except zlib.error as error:
        raise ValueError(f"cannot be decompressed ({error})") from None
    if not stream.eof or filled < len(octets):
        raise ValueError(f"cannot be decompressed (expected {len(octets)} bytes, got {filled})")
    return octets, rest


def _first_field(content: bytes) -> tuple[int, int]:
    """Return the size of the packed numbers at the start of a matrix, and where they start."""
    key, at = varint(content, 0, len(content))
    if key != MATRIX_DATA << 3 | BYTES:
        raise ValueError(f"expected packed numbers first, got field {key >> 3} of wire type {key & 7}")
    size, at = varint(content, at, len(content))
    if size > MAX_NUMBERS:
        raise ValueError(f"expected a range image, got {size} bytes of numbers")
    return size, at
