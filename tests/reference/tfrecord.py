"""CRC-32C and TFRecord framing as their definitions say, one bit and one record at a time."""

CASTAGNOLI = 0x82F63B78
"""The polynomial, lowest power in the highest bit."""


def crc32c(content: bytes) -> int:
    """Return the checksum of some bytes: the remainder of a division of polynomials over two elements."""
    remainder = 0xFFFFFFFF
    for byte in content:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (CASTAGNOLI if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def masked_crc32c(content: bytes) -> int:
    """Return it rotated right by 15 bits, plus a constant."""
    bits = f"{crc32c(content):032b}"
    return (int(bits[-15:] + bits[:-15], 2) + 0xA282EAD8) % 2**32


def tfrecord_bytes(payloads: list[bytes]) -> bytes:
    """Return the file that holds these records."""
    parts = []
    for payload in payloads:
        length = len(payload).to_bytes(8, "little")
        for content in (length, payload):
            parts += [content, masked_crc32c(content).to_bytes(4, "little")]
    return b"".join(parts)
