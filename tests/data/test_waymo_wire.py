from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waymo_open_dataset import dataset_pb2

from mwsis.data.waymo.wire import content_of, decode_matrix, fields, packed_int32, varint


def matrix(numbers: np.ndarray) -> bytes:
    message = dataset_pb2.MatrixInt32() if numbers.dtype == np.int32 else dataset_pb2.MatrixFloat()
    message.data.extend(numbers.ravel().tolist())
    message.shape.dims.extend(numbers.shape)
    return zlib.compress(message.SerializeToString())


@given(
    st.lists(
        st.sampled_from([0, 1, -1, 127, 128, 16_383, 16_384, 2**31 - 1, -(2**31)]) | st.integers(0, 300), min_size=1
    )
)
def test_int32_matrices_equal_the_message_classes(numbers: list[int]):
    decoded = decode_matrix(matrix(np.array([numbers], np.int32)), np.int32)
    assert decoded.dtype == np.int32
    assert decoded.tolist() == [numbers]


@pytest.mark.parametrize("content", [b"\x80", b"\x01\xff", b"\xff" * 10 + b"\x01", b"\x80" * 11])
def test_numbers_that_are_none(content: bytes):
    with pytest.raises(ValueError, match=r"does not end|longer than 64 bits"):
        packed_int32(np.frombuffer(content, np.uint8))


def test_float_matrices_larger_than_a_piece():
    numbers = np.random.default_rng(0).normal(size=(40, 700, 4)).astype(np.float32)
    decoded = decode_matrix(matrix(numbers), np.float32)
    assert (decoded.dtype, decoded.shape) == (numbers.dtype, numbers.shape)
    assert decoded.tobytes() == numbers.tobytes()
    assert decoded.flags.writeable
    assert decoded.flags.aligned


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x0a" + b"\xff" * 4 + b"\x7f", "expected a range image, got 34359738367 bytes of numbers"),
        (b"\x0a\x04" + bytes(10_000_000), "more than 1024 bytes behind the numbers"),
        (b"\x0a\x05" + bytes(5), "expected 4 bytes per number, got 5 bytes"),
        (b"\x0d" + bytes(4), "expected packed numbers first, got field 1 of wire type 5"),
        (b"\x0a\x04" + bytes(4) + b"\x12\x09", "a field that reaches beyond its message"),
    ],
)
def test_matrices_that_are_none(content: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        decode_matrix(zlib.compress(content), np.float32)


def test_walking_a_message():
    message = dataset_pb2.CameraImage(name=3, shutter=0.5, image=b"jpeg")
    message.velocity.v_x = 2.0
    content = message.SerializeToString()
    walked = {number: (kind, content[start:stop]) for number, kind, start, stop in fields(content, 0, len(content))}
    assert walked == {
        1: (0, b"\x03"),
        2: (2, b"jpeg"),
        4: (2, message.velocity.SerializeToString()),
        6: (1, np.float64(0.5).tobytes()),
    }
    start, stop = content_of(content, 0, len(content), 4, 1)
    assert content[start:stop] == np.float32(2).tobytes()
    assert content_of(content, 0, len(content), 4, 2) is None
    assert content_of(content, 0, len(content), 3, 1) is None


@given(st.integers(0, 2**64 - 1))
def test_varint_equals_the_message_classes(number: int):
    timestamp = number - 2**64 if number >= 2**63 else number
    content = dataset_pb2.Frame(timestamp_micros=timestamp).SerializeToString()
    assert varint(content, 1, len(content)) == (number, len(content))


@pytest.mark.parametrize("content", [b"\x08", b"\x08\x80", b"\x09\x00", b"\x0a\x02\x00", b"\x0b\x0c", b"\x80" * 11])
def test_bytes_that_are_no_message(content: bytes):
    with pytest.raises(ValueError, match=r"does not end|beyond its message|unknown wire type"):
        list(fields(content, 0, len(content)))
