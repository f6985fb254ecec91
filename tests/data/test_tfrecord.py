from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwsis.core.errors import DataError
from mwsis.data.waymo.tfrecord import masked_crc32c, read_at, record_spans, write_tfrecord
from tests.reference import tfrecord as slow

PAYLOADS = [b"first record", b"", bytes(range(256)) * 3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tfrecord(tmp_path / "a.tfrecord", PAYLOADS)
    return tmp_path / "a.tfrecord"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(bytes(content))


def test_the_slow_checksum_has_the_published_check_values():
    assert slow.crc32c(b"123456789") == 0xE3069283
    assert slow.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert slow.crc32c(bytes([255] * 32)) == 0x62A8AB43


@given(st.binary(max_size=300))
def test_fast_and_slow_checksums_agree(content: bytes):
    assert masked_crc32c(content) == slow.masked_crc32c(content)


def test_file_is_the_format_byte_for_byte(path: Path):
    assert path.read_bytes() == slow.tfrecord_bytes(PAYLOADS)


def test_records_come_back_in_any_order(path: Path):
    spans = list(record_spans(path))
    assert [length for _, length in spans] == [len(payload) for payload in PAYLOADS]
    assert [read_at(path, *span) for span in reversed(spans)] == PAYLOADS[::-1]


def test_no_records(tmp_path: Path):
    write_tfrecord(tmp_path / "none.tfrecord", [])
    assert list(record_spans(tmp_path / "none.tfrecord")) == []


def test_a_failing_source_of_records_leaves_the_old_file(path: Path):
    def failing():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tfrecord(path, failing())
    assert path.read_bytes() == slow.tfrecord_bytes(PAYLOADS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("position", [0, 7, 8, 11])
def test_damaged_length(path: Path, position: int):
    flip(path, position)
    with pytest.raises(DataError, match=r"a\.tfrecord: record 0: length: its checksum differs"):
        list(record_spans(path))
    with pytest.raises(DataError, match=r"a\.tfrecord: record at byte 12: length: its checksum differs"):
        read_at(path, 12, len(PAYLOADS[0]))


def test_damaged_length_of_a_later_record(path: Path):
    flip(path, 12 + len(PAYLOADS[0]) + 4)
    with pytest.raises(DataError, match="record 1: length"):
        list(record_spans(path))


@pytest.mark.parametrize("position", [12, 12 + len(PAYLOADS[0]) - 1, 12 + len(PAYLOADS[0])])
def test_damaged_payload_or_checksum(path: Path, position: int):
    flip(path, position)
    spans = list(record_spans(path))
    with pytest.raises(DataError, match=r"a\.tfrecord: frame 7: payload: its checksum differs"):
        read_at(path, *spans[0], name="frame 7")
    assert read_at(path, *spans[2]) == PAYLOADS[2]


@pytest.mark.parametrize("missing", [1, 4, 5, 700, 768 + 4 + 1, 768 + 4 + 11])
def test_truncated_anywhere_in_the_last_record(path: Path, missing: int):
    offset, length = list(record_spans(path))[2]
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(DataError, match=r"a\.tfrecord: record 2: .*truncated"):
        list(record_spans(path))
    with pytest.raises(DataError, match=r"a\.tfrecord: record at byte \d+: .*truncated"):
        read_at(path, offset, length)


def test_not_a_tfrecord_file(tmp_path: Path):
    (tmp_path / "text").write_text("certainly something else")
    with pytest.raises(DataError, match=r"text: record 0: length: .*no uncompressed TFRecord file"):
        list(record_spans(tmp_path / "text"))
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(DataError, match="short: record 0: length: expected 12 bytes, got 1: truncated"):
        list(record_spans(tmp_path / "short"))


def test_files_that_cannot_be_read(tmp_path: Path):
    for call in (lambda path: list(record_spans(path)), lambda path: read_at(path, 12, 3)):
        with pytest.raises(DataError, match=r"gone: cannot be opened \(No such file or directory\)"):
            call(tmp_path / "gone")
        with pytest.raises(DataError, match="cannot be opened"):
            call(tmp_path)


def test_a_span_of_another_file(path: Path):
    with pytest.raises(DataError, match="record at byte 12: length: expected 11 bytes, got 12; the file was changed"):
        read_at(path, 12, 11)
