"""Towers on a mesh compute what they compute on one device, and talk over `tensor` where products end, nowhere else."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import mesh as meshes
from vlm_jax import partition, tree
from vlm_jax.mesh import Layout
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard

SHAPE = {"width": 32, "depth": 2, "num_heads": 4, "dtype": "float32"}
MODEL = TwoTower(
    image=ViT(**SHAPE, patch_size=4, image_size=8, scan=True, remat="block"),
    text=TextTransformer(**SHAPE, vocab_size=16, length=6, pool="mean", pad_id=0, mask_padding=True),
)
BATCH = {
    "image": np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32),
    "text": np.random.default_rng(1).integers(0, 16, (8, 6)),
}


def loss(model, mesh, params, batch):
    with shard.under(mesh):
        image, _ = model.encode_image({"params": params}, batch["image"])
        text, _ = model.encode_text({"params": params}, batch["text"])
        return (jnp.arange(32.0) * image * text).sum()


@functools.cache
def on_one_device():
    params = jax.jit(MODEL.init)(jax.random.key(0))["params"]
    params = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(1), x.shape), params)  # no zero biases
    return params, jax.jit(jax.value_and_grad(functools.partial(loss, MODEL, None)))(params, BATCH)


def on_mesh(layout, model=MODEL):
    params = on_one_device()[0]
    mesh = layout.make(jax.devices())
    places = partition.shardings(params, layout, mesh, model.stacks)
    step = jax.jit(jax.value_and_grad(functools.partial(loss, model, mesh)), out_shardings=(None, places))
    return step, jax.device_put(params, places), jax.device_put(BATCH, meshes.batch_sharding(mesh))


LAYOUTS = [Layout(data=2, fsdp=2, tensor=2, min_size=1), Layout(data=1, fsdp=8, min_size=1), Layout(tensor=4)]
CASES = [pytest.param(LAYOUTS[0], id="2x2x2", marks=pytest.mark.full)]
CASES += [pytest.param(layout, id=name) for layout, name in zip(LAYOUTS[1:], ("fsdp", "tensor"))]


@pytest.mark.parametrize("layout", CASES)
def test_equals_one_device(layout):
    _, (wanted, wanted_grads) = on_one_device()
    step, params, batch = on_mesh(layout)
    value, grads = step(params, batch)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for name, grad in tree.flatten(jax.device_get(wanted_grads)).items():
        np.testing.assert_allclose(tree.flatten(grads)[name], grad, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.full
def test_bf16_kernels_run_on_each_devices_part():
    """The towers' bf16 paths inside `shard_map`: as one device computes them, but for the order of sums in bf16."""
    model = dataclasses.replace(
        MODEL, **{k: dataclasses.replace(getattr(MODEL, k), dtype="bfloat16") for k in ("image", "text")}
    )
    params = on_one_device()[0]
    wanted = jax.jit(jax.grad(functools.partial(loss, model, None)))(params, BATCH)
    step, params, batch = on_mesh(LAYOUTS[0], model)
    _, grads = step(params, batch)
    for name, grad in tree.flatten(jax.device_get(wanted)).items():
        difference = np.linalg.norm(tree.flatten(grads)[name] - grad)
        assert difference <= 0.05 * np.linalg.norm(grad) + 1e-2, name


def test_tensor_sums_twice_a_block_forward_and_twice_backward():
    """After out and fc2, and before qkv and fc1 on the way back; a vocabulary in parts costs one more, embedding."""
    step, params, batch = on_mesh(Layout(data=2, tensor=4, min_size=1))
    text = step.lower(params, batch).compile().as_text()
    messages = re.findall(r"= (.*?) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", text)
    summed = sum(shapes.count("f32[4,6,32]") for shapes, kind in messages if kind == "all-reduce")
    assert summed == 4 * MODEL.text.geometry.depth + 1
    # What else is sent are matrices: no activation (4 rows a device) of tokens changes its layout.
    assert not [shapes for shapes, kind in messages if kind != "all-reduce" and re.search(r"\[4,[46],", shapes)]


@pytest.mark.full
def test_what_dinov2_has_equals_one_device_too():
    """SwiGLU, whose two branches are columns of one matrix, LayerScale and registers."""
    tower = ViT(**SHAPE, patch_size=4, image_size=8, pool="cls", activation="swiglu", layer_scale=0.5, registers=2,
                mlp_dim=24, remat="mlp")  # fmt: skip
    model = dataclasses.replace(MODEL, image=tower)
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    params = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(1), x.shape), params)
    wanted = jax.jit(jax.grad(functools.partial(loss, model, None)))(params, BATCH)
    layout = LAYOUTS[0]
    mesh = layout.make(jax.devices())
    places = partition.shardings(params, layout, mesh, model.stacks)
    step = jax.jit(jax.grad(functools.partial(loss, model, mesh)), out_shardings=places)
    grads = step(jax.device_put(params, places), jax.device_put(BATCH, meshes.batch_sharding(mesh)))
    for name, grad in tree.flatten(jax.device_get(wanted)).items():
        np.testing.assert_allclose(tree.flatten(grads)[name], grad, rtol=1e-4, atol=1e-5, err_msg=name)
