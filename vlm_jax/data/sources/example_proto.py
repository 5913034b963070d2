"""`tf.train.Example`: the records of TFDS and of most TPU users, read and written without TensorFlow.

The message, from tensorflow/core/example/feature.proto: a map from names to lists of bytes, floats or integers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

Value = bytes | str | float | int
LISTS = (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))


def decode_example(data: bytes) -> dict[str, list]:
    """The lists of an Example by name.

    Raises: ValueError for bytes that are none.
    """
    from google.protobuf.message import DecodeError

    try:
        features = _message().FromString(data).features.feature
    except DecodeError as error:
        raise ValueError("the record is no tf.train.Example") from error
    kinds = ((name, feature, feature.WhichOneof("kind")) for name, feature in features.items())
    return {name: list(getattr(feature, kind).value) if kind else [] for name, feature, kind in kinds}


def encode_example(values: Mapping[str, Value | Iterable[Value]]) -> bytes:
    """An Example of bytes, strings (as UTF-8), integers and floats, or lists of one kind of them."""
    example = _message()()
    for name, value in values.items():
        items = [value] if isinstance(value, Value) else list(value)
        items = [item.encode() if isinstance(item, str) else item for item in items]
        feature = example.features.feature[name]
        if all(isinstance(item, bytes) for item in items):
            feature.bytes_list.value.extend(items)
        elif all(isinstance(item, int) for item in items):
            feature.int64_list.value.extend(items)
        else:
            feature.float_list.value.extend(items)
    return example.SerializeToString(deterministic=True)


@functools.cache
def _message() -> type:
    """The class of the message; in a pool of its own, so that TensorFlow's may be loaded beside it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def add(message, name: str, number: int, kind: int, type_name: str | None = None, repeated: bool = False, **more):
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, type_name=type_name, label=label, **more)

    kinds = (field.TYPE_BYTES, field.TYPE_FLOAT, field.TYPE_INT64)
    for (_, name), kind in zip(LISTS, kinds):
        add(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(LISTS, 1):
        add(feature, name, number, field.TYPE_MESSAGE, f".tensorflow.{kind}", oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, ".tensorflow.Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, ".tensorflow.Features.FeatureEntry", repeated=True)
    example = file.message_type.add(name="Example")
    add(example, "features", 1, field.TYPE_MESSAGE, ".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
