import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlm_jax.checkpoint.fingerprint import differing, fingerprint

DTYPES = ["float32", "bfloat16", "float16", "float64", "int32", "int64", "uint8", "int8", "bool", "float8_e4m3fn"]


def of(array) -> str:
    return fingerprint({"x": array})["x"]


def some(dtype: str, shape=(6, 5)) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=shape)
    return (values > 0) if dtype == "bool" else (values * 50).astype(jnp.dtype(dtype))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([d for d in DTYPES if d != "bool"]))
def test_every_single_flipped_bit_changes_it(data, dtype):
    array = some(dtype)
    raw = bytearray(array.tobytes())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << (bit % 8)
    assert of(np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)) != of(array)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 5), min_size=2, max_size=2, unique=True), dtype=st.sampled_from(DTYPES))
def test_swapped_rows_change_it(rows, dtype):
    array = some(dtype)
    swapped = array.copy()
    swapped[rows] = swapped[rows[::-1]]
    if (swapped != array).any():  # rows of booleans may be equal
        assert of(swapped) != of(array)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_every_permutation_changes_it(seed):
    array = np.arange(30, dtype=np.int32)
    shuffled = np.random.default_rng(seed).permutation(array)
    assert (of(shuffled) == of(array)) == (shuffled == array).all()


@pytest.mark.parametrize(
    "spec",
    [("a",), (None, "b"), ("a", "b"), ("b", "a"), (("a", "b"),), (None, ("b", "a"))],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_no_sharding_changes_it(spec, dtype):
    array = some(dtype, (16, 8))
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert len(sharded.sharding.device_set) == 8
    assert of(sharded) == of(jnp.asarray(array)) == of(array)


def test_a_layer_has_the_fingerprint_of_its_slice():
    stacked = jnp.asarray(some("float32", (3, 4, 5)))
    assert of(stacked[1]) == of(np.asarray(stacked)[1])


def test_dtype_and_shape_change_it():
    zeros = [np.zeros((2, 3), "float32"), np.zeros((3, 2), "float32"), np.zeros(6, "int32"), np.zeros((2, 3), "int32")]
    assert len({of(z) for z in zeros}) == 4
    array = some("float32")
    assert of(array.T) != of(array.T.copy().reshape(array.shape))


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_64_bits_are_not_cut(dtype):
    array = some(dtype)
    near = array.copy()
    near.view(np.uint64)[3, 3] ^= 1  # lost in 32 bits of a float
    assert of(near) != of(array)
    with jax.enable_x64(True):
        assert of(jnp.asarray(array)) == of(array)


def test_scalars_empty_arrays_keys_and_numbers():
    key = jax.random.key(0)
    leaves = {
        "scalar": jnp.float32(3),
        "empty": jnp.zeros((0, 3)),
        "other_empty": jnp.zeros((0, 4)),
        "key": key,
        "next_key": jax.random.fold_in(key, 1),
        "int": 3,
        "float": 3.0,
        "numpy": np.uint8(3),
        "half": np.float16(3),
    }
    assert len(set(fingerprint(leaves).values())) == len(leaves)


def test_names_of_nested_trees():
    assert set(fingerprint({"a": [jnp.ones(2), {"b": jnp.ones(3)}]})) == {"a/0", "a/1/b"}


def test_equals_its_definition_in_whole_numbers():
    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    array = some("float32", (3, 4))
    low = high = 0
    for i, word in enumerate(array.view(np.uint32).ravel().tolist()):
        mixed = mix(word ^ mix(i))
        low += mixed
        high += mix((mixed + mix(i) * 0x9E3779B9) % 2**32)
    salt = zlib.crc32(b"float32[3, 4]")
    assert of(array) == f"{high % 2**32 ^ salt:08x}{low % 2**32:08x}"


def test_known_values_do_not_change_between_versions():
    assert fingerprint({"x": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int32(-1)}) == {
        "n": "d6f327bf81f16f39",
        "x": "db20f9f1dff8f712",
    }


def test_differing_names_what_one_of_the_two_lacks():
    assert differing({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "0", "d": "4"}) == ["b", "c", "d"]
