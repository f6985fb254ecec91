"""Damage to files, as a function of a seed: bits, lengths and places, and for JSON its values."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, float("nan"), 2**63, "", "nothing", "../../outside", [], {}, [[]], "\x00", "ä" * 300,
)  # fmt: skip
ODD_NUMBERS = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63, 2**64 - 1)
DEEP = "[" * 5_000


def damaged(content: bytes, seed: int, is_json: bool = False) -> bytes:
    """Return other bytes; of JSON, half the time with one value changed and still JSON."""
    rng = random.Random(seed)
    if is_json and rng.random() < 0.7:
        return _other_json(content, rng)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        content = rng.choice((_flipped, _cut, _inserted, _repeated, _zeroed, _number))(content, rng)
    return content


def _other_json(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.03:
        return DEEP.encode()
    tree = json.loads(content)
    places = list(_places(tree))
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = rng.choice(places)
        if rng.random() < 0.25 and isinstance(holder, dict):
            holder.pop(key, None)
        else:
            holder[key] = rng.choice((*ODD_VALUES, holder.get(key) if isinstance(holder, dict) else holder[key]))
    return json.dumps(tree).encode()


def _places(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from _places(value)


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content or b"\x00")
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _inserted(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.choice((1, 4, 64))) + content[place:]


def _repeated(content: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:last] + content[first : first + 4096] + content[last:]


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    count = min(rng.choice((1, 8, 256)), len(content) - place)
    return content[:place] + bytes(count) + content[place + count :]


def _number(content: bytes, rng: random.Random) -> bytes:
    """Return the content with a number written over eight bytes of it: lengths and counts stand in such places."""
    place = rng.randrange(len(content) + 1)
    number = struct.pack("<Q", rng.choice(ODD_NUMBERS))[: rng.choice((1, 2, 4, 8))]
    return content[:place] + number + content[place + len(number) :]
