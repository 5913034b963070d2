"""TensorBoard files, read back by code that shares nothing with the writer."""

from __future__ import annotations

import math
import struct

import pytest

from vlm_jax.report import events
from vlm_jax.report.writers import TensorBoardWriter


def crc32c_by_division(data: bytes) -> int:
    """CRC-32C by its definition: the remainder of the bit-reversed message divided by 0x1EDC6F41."""
    reflect = lambda value, width: int(f"{value:0{width}b}"[::-1], 2)
    bits = 0xFFFFFFFF << 8 * len(data)
    bits ^= int.from_bytes(bytes(reflect(byte, 8) for byte in data), "big") << 32
    for at in range(8 * len(data) + 31, 31, -1):
        if bits >> at & 1:
            bits ^= 0x11EDC6F41 << at - 32
    return reflect(bits, 32) ^ 0xFFFFFFFF


def records(data: bytes):
    """The payloads of a TFRecord file; checks both checksums of each."""
    while data:
        (length,), (crc_length,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        payload, (crc_payload,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        for part, crc in ((data[:8], crc_length), (payload, crc_payload)):
            found = crc32c_by_division(part)
            assert crc == (((found >> 15) | (found << 17)) + 0xA282EAD8) % 2**32
        yield payload
        data = data[16 + length :]


@pytest.fixture(scope="module")
def event_type():
    """`tensorflow.Event` by the field numbers of TensorFlow's own .proto files, decoded by Google's library."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    F = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event_for_test.proto", package="t", syntax="proto3")

    def message(name, *fields):
        declared = file.message_type.add(name=name)
        for number, field, kind, repeated, type_name in fields:
            label = F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL
            declared.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)

    message("Value", (1, "tag", F.TYPE_STRING, False, None), (2, "simple_value", F.TYPE_FLOAT, False, None))
    message("Summary", (1, "value", F.TYPE_MESSAGE, True, ".t.Value"))
    message("SessionLog", (1, "status", F.TYPE_INT32, False, None))
    message(
        "Event",
        (1, "wall_time", F.TYPE_DOUBLE, False, None),
        (2, "step", F.TYPE_INT64, False, None),
        (3, "file_version", F.TYPE_STRING, False, None),
        (5, "summary", F.TYPE_MESSAGE, False, ".t.Summary"),
        (7, "session_log", F.TYPE_MESSAGE, False, ".t.SessionLog"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def test_crc32c_of_known_strings():
    # RFC 3720, appendix B.4
    assert events.crc32c(bytes(32)) == 0x8A9136AA
    assert events.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert events.crc32c(bytes(range(32))) == 0x46DD794E
    assert events.crc32c(b"123456789") == 0xE3069283 == crc32c_by_division(b"123456789")


def test_events_are_read_back(tmp_path, event_type):
    writer = TensorBoardWriter(tmp_path)
    writer.write(0, {"train/loss": 3.25})
    writer.write(2**40, {"train/loss": math.nan, "train/größe": -0.5, "eval/huge": 1e300})
    (path,) = tmp_path.iterdir()
    found = [event_type.FromString(data) for data in records(path.read_bytes())]  # not closed: all is on disk
    assert [event.file_version for event in found] == ["brain.Event:2", "", ""]
    assert [event.step for event in found] == [0, 0, 2**40]
    assert all(event.wall_time > 1.6e9 for event in found)
    assert [(v.tag, v.simple_value) for v in found[1].summary.value] == [("train/loss", 3.25)]
    values = {v.tag: v.simple_value for v in found[2].summary.value}
    assert math.isnan(values["train/loss"]) and values["train/größe"] == -0.5 and values["eval/huge"] == math.inf


def test_a_resumed_run_hides_replayed_steps(tmp_path, event_type):
    for _ in range(2):
        writer = TensorBoardWriter(tmp_path)
        writer.truncate_after(20)
        for step in (10, 20, 30):
            writer.write(step, {"loss": step / 10})
        writer.close()
    first, second = sorted(tmp_path.iterdir())
    assert not any(event_type.FromString(data).HasField("session_log") for data in records(first.read_bytes())), (
        "nothing is hidden in a fresh folder"
    )
    start = [event_type.FromString(data) for data in records(second.read_bytes())][1]
    assert start.session_log.status == 1 and start.step == 21


def test_a_run_that_measures_nothing_leaves_no_file(tmp_path):
    writer = TensorBoardWriter(tmp_path / "events")
    writer.close()
    assert not (tmp_path / "events").exists()


def test_tensorboard_itself_reads_them(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for values in ((1.0, 2.0, 3.0), (4.0,)):
        writer = TensorBoardWriter(tmp_path)
        writer.truncate_after(2)
        for step, value in enumerate(values, start=4 - len(values)):
            writer.write(step, {"train/loss": value})
        writer.close()
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 4.0)]
