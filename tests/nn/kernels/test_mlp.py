"""The perceptron's kernels, interpreted, beside its formula in f64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from vlm_jax.nn.activations import ACTIVATIONS
from vlm_jax.nn.kernels import mlp_tpu, perceptron, perceptron_gradients
from vlm_jax.nn.kernels.mlp import options_for

WAYS = pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "plain"])
# One step; several, of rows that do not fill a register; sequences cut into steps; hidden units in parts.
SHAPES = [(4, 24, 128, 256), (9, 50, 128, 128), (3, 2080, 128, 128), (2, 200, 128, 1536)]


def case(batch, time, width, hidden, dtype=jnp.float32):
    random = np.random.default_rng(0)
    normal = lambda *s: jnp.asarray(random.normal(size=s), jnp.float32)
    kernel1, kernel2 = normal(width, hidden) / width**0.5, normal(hidden, width) / hidden**0.5
    x, y_bar = normal(batch, time, width).astype(dtype), normal(batch, time, width).astype(dtype)
    return x, y_bar, kernel1, normal(hidden), kernel2, normal(width)


def in_f64(x, y_bar, kernel1, bias1, kernel2, bias2, activation):
    with jax.enable_x64(True):
        x, y_bar, *weights = (jnp.asarray(v, jnp.float64) for v in (x, y_bar, kernel1, bias1, kernel2, bias2))
        f = lambda x, k1, b1, k2, b2: ACTIVATIONS[activation](x @ k1 + b1) @ k2 + b2
        y, pull = jax.vjp(f, x, *weights)
        return [np.asarray(v) for v in (y, *pull(y_bar))]


def ours(x, y_bar, kernel1, bias1, kernel2, bias2, **options):
    y = perceptron(x, kernel1, bias1, kernel2, bias2, **options)
    return y, *perceptron_gradients(x, y_bar, kernel1, bias1, kernel2, **options)


@WAYS
@pytest.mark.parametrize(
    "shape, activation", [(SHAPES[0], name) for name in ACTIVATIONS] + [(shape, "gelu_tanh") for shape in SHAPES[1:]]
)
def test_equals_the_formula(shape, activation, interpret):
    """Sums over all rows grow with their number; so does the rounding."""
    arrays = case(*shape)
    rows = (shape[0] * shape[1]) ** 0.5
    for a, b in zip(ours(*arrays, activation=activation, interpret=interpret), in_f64(*arrays, activation)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 if a.ndim == 3 else 5e-6 * rows)


@WAYS
@pytest.mark.parametrize("casts", [True, False], ids=["f32 weights", "bf16 weights"])
def test_bf16(casts, interpret):
    """Gradients of weights are f32 sums; what goes into them is rounded to bf16."""
    x, y_bar, kernel1, bias1, kernel2, bias2 = case(4, 40, 128, 256, jnp.bfloat16)
    rounded = [kernel.astype(jnp.bfloat16) for kernel in (kernel1, kernel2)]
    given = (kernel1, kernel2) if casts else rounded
    got = ours(x, y_bar, given[0], bias1, given[1], bias2, activation="gelu_tanh", interpret=interpret)
    assert [a.dtype for a in got] == [jnp.bfloat16] * 2 + [jnp.float32] * 4
    for a, b in zip(got, in_f64(x, y_bar, rounded[0], bias1, rounded[1], bias2, "gelu_tanh")):
        assert np.linalg.norm(a.astype(jnp.float32) - b) < 0.01 * np.linalg.norm(b)


@pytest.mark.parametrize("interpret", [pltpu.InterpretParams(), False], ids=["kernel", "plain"])
def test_inside_shard_map(interpret):
    x, y_bar, *weights = case(4, 24, 128, 128)
    options = {"activation": "gelu_tanh", "interpret": interpret}
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, whole, sums = P(("data", "fsdp")), P(), P(("data", "fsdp"))

    def each(x, y_bar, *weights):
        y, x_bar, *bars = ours(x, y_bar, *weights, **options)
        return y, x_bar, *(bar[None] for bar in bars)

    f = jax.shard_map(each, mesh=mesh, in_specs=(rows, rows, *[whole] * 4), out_specs=(rows, rows, *[sums] * 4))
    y, x_bar, *bars = jax.block_until_ready(f(x, y_bar, *weights))
    expected = in_f64(x, y_bar, *weights, "gelu_tanh")
    for a, b in zip((y, x_bar, *(bar.sum(axis=0) for bar in bars)), expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("chip", "width", "hidden", "takes"),
    [
        ("TPU_V5E", 1024, 4096, True),
        ("TPU_V5E", 1408, 6144, False),  # its gradients alone fill the vector memory
        ("TPU_V5E", 1152, 4304, False),  # hidden units that do not fill registers
        ("TPU_V5P", 768, 3072, True),
        ("TPU_V4", 768, 3072, False),
    ],
)
def test_which_shapes_a_chip_takes(chip, width, hidden, takes):
    chip = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion[chip], 1)
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((128, 196, width), (width, hidden)))
    assert bool(mlp_tpu.cut("backward", x, kernel, chip)) == takes


def test_without_a_tpu_it_is_the_formula():
    assert options_for("forward", jnp.zeros((2, 8, 128)), jnp.zeros((128, 256)), "gelu") is None


def test_two_cores_sum_for_themselves():
    chip = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5P, 2)
    x, y_bar, *weights = case(6, 24, 128, 128)
    cut = mlp_tpu.cut("backward", x, weights[0], chip)
    assert cut.cores == 2
    options = mlp_tpu.Options(cut, "gelu_tanh", "float32", mlp_tpu.limit(chip), True)
    got = mlp_tpu.backward(x, y_bar, *weights[:3], options=options)
    for a, b in zip(got, in_f64(x, y_bar, *weights, "gelu_tanh")[1:]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
