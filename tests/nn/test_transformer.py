import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.nn.transformer import REMAT, Transformer

from .random_parameters import random_parameters

PLAIN = Transformer(
    width=16,
    depth=2,
    num_heads=2,
    mlp_dim=32,
    activation="gelu_tanh",
    norm_eps=1e-6,
    qkv_bias=True,
    causal=False,
    scan=False,
    remat="none",
    dtype="float32",
    init_style="jax",
)
X = jax.random.normal(jax.random.key(1), (2, 5, 16))
MASK = jnp.array([[[True] * 5], [[True] * 3 + [False] * 2]])
STACKS = {"blocks": 2}


def initial(model):
    return jax.jit(model.init)(jax.random.key(0))


def apply(model, params, x, mask=None, taps=()):
    return jax.jit(lambda params, x: model.apply(params, x, mask, taps=taps))(params, x)


def value_and_grad(model, params, mask=MASK):
    def loss(params):
        return jnp.square(model.apply(params, X, mask)[0]).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_trees_close(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


def test_names():
    names = {"ln1/scale", "ln1/bias", "ln2/scale", "ln2/bias"}
    for matrix in ("attn/qkv", "attn/out", "mlp/fc1", "mlp/fc2"):
        names |= {f"{matrix}/kernel", f"{matrix}/bias"}
    params = jax.eval_shape(PLAIN.init, jax.random.key(0))
    assert set(params) == {"00", "01"}
    assert set(tree.flatten(params["00"])) == names
    assert params["00"]["attn"]["qkv"]["kernel"].shape == (16, 48)
    scanned = jax.eval_shape(dataclasses.replace(PLAIN, scan=True).init, jax.random.key(0))
    assert set(tree.flatten(scanned)) == names
    assert scanned["attn"]["qkv"]["kernel"].shape == (2, 16, 48)


def test_scanned_and_unrolled_start_from_the_same_numbers():
    unrolled, stacked = initial(PLAIN), initial(dataclasses.replace(PLAIN, scan=True))
    assert_trees_close(tree.stack({"blocks": unrolled}, STACKS)["blocks"], stacked, rtol=0)


@pytest.fixture(scope="module")
def plain():
    params = random_parameters(PLAIN)
    return params, *value_and_grad(PLAIN, params)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", REMAT)
def test_scan_and_remat_change_no_number(plain, scan, remat):
    params, value, grad = plain
    if scan:
        params, grad = (tree.stack({"blocks": leaves}, STACKS)["blocks"] for leaves in (params, grad))
    model = dataclasses.replace(PLAIN, scan=scan, remat=remat)
    assert_trees_close(value_and_grad(model, params), (value, grad), atol=1e-6, rtol=1e-5)


def saved(remat):
    """Last two dimensions of what the backward pass keeps."""
    model = dataclasses.replace(PLAIN, remat=remat)
    params = jax.eval_shape(model.init, jax.random.key(0))
    backward = jax.eval_shape(lambda params: jax.vjp(lambda params: model.apply(params, X)[0], params)[1], params)
    return [leaf.shape[-2:] for leaf in jax.tree.leaves(backward)]


def test_remat_keeps_less():
    weights, hidden = (5, 5), (5, 32)
    assert weights in saved("none") and hidden in saved("none")
    assert weights not in saved("attention") and hidden in saved("attention")
    assert weights not in saved("block") and hidden not in saved("block")


@pytest.mark.parametrize("scan", [False, True])
def test_taps_are_the_outputs_of_blocks(scan):
    model = dataclasses.replace(PLAIN, scan=scan)
    params = random_parameters(model)
    assert model.tap_names == ("blocks/00", "blocks/01")
    out, taps = apply(model, params, X, taps=("blocks/00", "blocks/01"))
    assert set(taps) == {"blocks/00", "blocks/01"}
    np.testing.assert_allclose(taps["blocks/01"], out, atol=1e-6)
    first = dataclasses.replace(PLAIN, depth=1)
    layers = {"00": jax.tree.map(lambda leaf: leaf[0], params)} if scan else {"00": params["00"]}
    np.testing.assert_allclose(taps["blocks/00"], apply(first, layers, X)[0], atol=1e-5)
    assert apply(model, params, X)[1] == {}


@pytest.mark.parametrize(("scan", "error"), [(False, UserError), (True, ValueError)])
def test_another_number_of_layers_is_refused(scan, error):
    model = dataclasses.replace(PLAIN, scan=scan)
    with pytest.raises(error):
        apply(model, random_parameters(dataclasses.replace(model, depth=3)), X)


def test_more_than_a_hundred_layers_keep_their_order():
    deep = dataclasses.replace(PLAIN, depth=101, width=2, num_heads=1, mlp_dim=2)
    assert deep.tap_names[100] == "blocks/100" and deep.tap_names[7] == "blocks/007"
    assert list(jax.eval_shape(deep.init, jax.random.key(0))) == [f"{i:03d}" for i in range(101)]


def test_masked_tokens_are_not_seen():
    params = random_parameters(PLAIN)
    out = apply(PLAIN, params, X, MASK)[0]
    np.testing.assert_allclose(out[1, :3], apply(PLAIN, params, X[1:, :3])[0][0], atol=1e-5)


def test_causal_tokens_do_not_see_the_future():
    model = dataclasses.replace(PLAIN, causal=True)
    params = random_parameters(model)
    out, other = (apply(model, params, x)[0] for x in (X, X.at[:, 3].multiply(-1.0)))
    np.testing.assert_allclose(out[:, :3], other[:, :3], atol=1e-6)
    assert (np.abs(out[:, 3:] - other[:, 3:]) > 1e-3).any(axis=-1).all()


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("jax", {"attn/qkv": (3 / 256) ** 0.5 / 3**0.5, "attn/out": 256**-0.5, "mlp/fc1": (2 / 1280) ** 0.5}),
        ("clip", {"attn/qkv": 256**-0.5, "attn/out": (256 * 4) ** -0.5, "mlp/fc1": 512**-0.5}),
    ],
)
def test_initial_standard_deviations(style, expected):
    model = dataclasses.replace(PLAIN, width=256, mlp_dim=1024, init_style=style)
    params = tree.flatten(initial(model)["01"])
    assert {name: float(params[f"{name}/kernel"].std()) for name in expected} == pytest.approx(expected, rel=0.02)


def test_bf16_compute_keeps_f32_parameters_and_matmuls_in_bf16():
    model = dataclasses.replace(PLAIN, dtype="bfloat16")
    params = random_parameters(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    lowered = jax.jit(lambda params, x: model.apply(params, x)[0]).lower(params, X.astype(jnp.bfloat16))
    assert lowered.out_info.dtype == jnp.bfloat16
    products = re.findall(r"stablehlo\.dot_general .* : \(tensor<.*x(\w+)>, tensor<.*x(\w+)>\)", lowered.as_text())
    # Four products in each block, and attention's two, which the blocks share as one function.
    assert products == [("bf16", "bf16")] * (2 * 4 + 2)
