"""Batches of pairs, and the three ways to take a gradient of a loss over a mesh."""

from __future__ import annotations

import importlib.util
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these programs are tiny: compiling is all the time they take
SPECIAL = ("ids", "mask")  # keyword arguments that are split as the batch is


def make_mesh(**sizes: int) -> Mesh:
    devices = np.array(jax.devices()[: int(np.prod(list(sizes.values())))]).reshape(*sizes.values())
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def random_pairs(batch: int, dim: int, seed: int = 0, dtype=np.float32):
    """Unit-norm features whose partners are near each other, ids with repeats, and a mask with gaps."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((batch, dim))
    text = image + rng.standard_normal((batch, dim))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    ids = rng.integers(0, max(2, batch // 2), batch).astype(np.int32)
    mask = rng.random(batch) < 0.7
    return jnp.asarray(image, dtype), jnp.asarray(text, dtype), jnp.asarray(ids), jnp.asarray(mask)


def dense_gradients(loss, args, **kwargs):
    """Loss and gradients with respect to every one of `args`, without a mesh."""
    split, static = _split(kwargs)
    f = jax.value_and_grad(lambda *a: loss(*a, **split, **static), tuple(range(len(args))))
    return jax.jit(f, compiler_options=FAST_COMPILE)(*args)


def gradient_outside(loss, mesh, axes, args, **kwargs):
    """`grad(shard_map(loss))`."""
    split, static = _split(kwargs)
    specs = (*_specs(args, axes), {name: P(axes) for name in split})

    @jax.jit(compiler_options=FAST_COMPILE)
    def f(args, split):
        def mapped(*args):
            body = lambda *a: loss(*a[:-1], **a[-1], axis_name=axes, **static)
            return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=P())(*args, split)

        return jax.value_and_grad(mapped, tuple(range(len(args))))(*args)

    return f(args, split)


def gradient_inside(loss, mesh, axes, args, **kwargs):
    """`shard_map(grad(loss))`: features' gradients come back split, those of the scalars the same everywhere."""
    split, static = _split(kwargs)
    specs = _specs(args, axes)

    def body(args, split):
        return jax.value_and_grad(lambda *a: loss(*a, **split, axis_name=axes, **static), tuple(range(len(args))))(
            *args
        )

    in_specs = (specs, {name: P(axes) for name in split})
    f = jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=(P(), specs))
    return jax.jit(f, compiler_options=FAST_COMPILE)(args, split)


def assert_close(got, want, tolerance: float = 1e-5, floor: float = 1e-7):
    """Relative to the largest entry of each array, and no finer than the rounding of terms that cancel (`floor`)."""
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        assert g.shape == w.shape
        assert np.isfinite(g).all()
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * np.abs(w).max() + floor)


def open_clip_losses():
    """The loss file of the installed open_clip, loaded alone: the whole package needs a matching torchvision."""
    pytest.importorskip("torch")
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("needs open_clip_torch")
    path = pathlib.Path(package.submodule_search_locations[0], "loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _split(kwargs):
    given = {name: value for name, value in kwargs.items() if value is not None}
    split = {name: value for name, value in given.items() if name in SPECIAL}
    return split, {name: value for name, value in given.items() if name not in SPECIAL}


def _specs(args, axes):
    return tuple(P(axes) if jnp.ndim(x) else P() for x in args)


@pytest.fixture(scope="session")
def pairs() -> types.SimpleNamespace:
    """The helpers above, so that the tests need no import path between folders."""
    names = (
        open_clip_losses,
        make_mesh,
        random_pairs,
        dense_gradients,
        gradient_outside,
        gradient_inside,
        assert_close,
    )
    return types.SimpleNamespace(**{f.__name__: f for f in names})
