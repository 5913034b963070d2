"""TensorBoard's event records, byte by byte: protocol buffers of `Event` inside TFRecord framing.

Field numbers are those of `tensorflow/core/util/event.proto` and `framework/summary.proto`; the framing is that of
`tsl/lib/io/record_writer.h`: length, masked CRC of the length, data, masked CRC of the data.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

VERSION = b"brain.Event:2"
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types


def _crc_table() -> tuple[int, ...]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)  # Castagnoli's polynomial, bits reversed
        table.append(entry)
    return tuple(table)


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4) of `data`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    """`data` framed as one TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF  # negative int64 are ten bytes of two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, wire: int, payload: bytes) -> bytes:
    length = _varint(len(payload)) if wire == _BYTES else b""
    return _varint(number << 3 | wire) + length + payload


def _event(wall_time: float, step: int, what: bytes) -> bytes:
    return _field(1, _DOUBLE, struct.pack("<d", wall_time)) + _field(2, _VARINT, _varint(step)) + what


def version(wall_time: float) -> bytes:
    """The event a file begins with; without it TensorBoard reads the old format and ignores `restart`."""
    return _event(wall_time, 0, _field(3, _BYTES, VERSION))


def scalars(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """One event with a scalar for each name of `values`."""
    summary = b""
    for tag, value in values.items():
        entry = _field(1, _BYTES, tag.encode()) + _field(2, _FLOAT, _float32(value))
        summary += _field(1, _BYTES, entry)
    return _event(wall_time, step, _field(5, _BYTES, summary))


def restart(wall_time: float, step: int) -> bytes:
    """A `SessionLog` START: TensorBoard hides what was written before it for `step` and later steps."""
    return _event(wall_time, step, _field(7, _BYTES, _field(1, _VARINT, _varint(1))))


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # finite in float64 but not in float32
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))
