"""Imported models equal big_vision's, restated here in Flax Linen with its names of modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import interop, tree

from .peer_models import (
    BATCH,
    DEPTH,
    HEADS,
    IMAGE,
    LENGTH,
    MLP,
    PATCH,
    VOCAB,
    WIDTH,
    assert_close,
    assert_gradients,
    inputs,
)


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(MLP)(x))
        return nn.Dense(x.shape[-1])(hidden)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(y, y)
        return x + MlpBlock()(nn.LayerNorm()(x))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(DEPTH):
            x = Block(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class MAPHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        y = nn.MultiHeadDotProductAttention(HEADS)(jnp.tile(probe, (len(x), 1, 1)), x)
        return (y + MlpBlock()(nn.LayerNorm()(y)))[:, 0]


class Image(nn.Module):
    pool: str
    classes: int | None = None

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(WIDTH, (PATCH, PATCH), strides=(PATCH, PATCH), padding="VALID", name="embedding")(image)
        x = x.reshape(len(x), -1, WIDTH)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.1), (1, x.shape[1], WIDTH))
        if self.pool == "tok":
            cls = self.param("cls", nn.initializers.normal(1.0), (1, 1, WIDTH))
            x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        x = Encoder(name="Transformer")(x)
        x = {"map": lambda: MAPHead(name="MAPHead_0")(x), "gap": lambda: x.mean(1), "tok": lambda: x[:, 0]}[self.pool]()
        return x if self.classes is None else nn.Dense(self.classes, name="head")(x)


class Text(nn.Module):
    @nn.compact
    def __call__(self, text):
        x = nn.Embed(VOCAB, WIDTH)(text)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.1), (1, LENGTH, WIDTH))
        return nn.Dense(WIDTH, name="head")(Encoder()(x)[:, -1])


class TwoTowers(nn.Module):
    @nn.compact
    def __call__(self, image, text):
        unit = lambda z: z / jnp.linalg.norm(z, axis=1, keepdims=True)
        z_image, z_text = unit(Image("map", name="img")(image)), unit(Text(name="txt")(text))
        scale = jnp.exp(self.param("t", nn.initializers.constant(2.3), (1,)))
        return z_image, z_text, scale * z_text @ z_image.T + self.param("b", nn.initializers.constant(-10.0), (1,))


def randomised(module, *arguments):
    """Parameters, all of them moved from trivial values, as numpy arrays by name."""
    params = jax.jit(module.init)(jax.random.key(0), *arguments)["params"]
    rng = np.random.default_rng(0)
    leaves = tree.flatten(params)
    return {name: np.asarray(leaf + 0.2 * rng.normal(size=leaf.shape), np.float32) for name, leaf in leaves.items()}


def stacked(leaves):
    """With the layers of each encoder in one array, as scanned ones are saved."""
    out = {name: leaf for name, leaf in leaves.items() if "encoderblock_" not in name}
    for name in leaves:
        if "encoderblock_0" in name:
            layers = [leaves[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(DEPTH)]
            out[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    return out


def load(path, leaves):
    np.savez(path, **leaves)
    found = interop.read(path)
    return configs.build(found.model), found


@pytest.mark.parametrize("scanned", [False, True])
def test_siglip(scanned, tmp_path):
    image, text = inputs()
    leaves = randomised(TwoTowers(), image, text)
    saved = {f"params/{name}": leaf for name, leaf in (stacked(leaves) if scanned else leaves).items()}
    model, found = load(tmp_path / "siglip.npz", saved | {"opt/0": np.zeros(3)})
    variables = {"params": found.params}
    theirs = jax.jit(TwoTowers().apply)({"params": tree.unflatten(leaves)}, image, text)
    ours = jax.jit(model.encode_image)(variables, image)[0], jax.jit(model.encode_text)(variables, text)[0]
    for name, z, expected in zip(("image", "text"), ours, theirs):
        assert_close(z, expected, name)
    assert_close(ours[1] @ ours[0].T * model.scale(variables) + model.bias(variables), theirs[2], "logits")
    assert (found.family, found.text.length, found.image.size) == ("big_vision", LENGTH, IMAGE)


def test_gradients_of_siglip(tmp_path):
    image, text = inputs()
    leaves = randomised(TwoTowers(), image, text)
    weight = np.random.default_rng(1).uniform(size=(BATCH, BATCH)).astype(np.float32)
    theirs = jax.jit(jax.grad(lambda p: (TwoTowers().apply({"params": p}, image, text)[2] * weight).sum()))
    _, expected = load(tmp_path / "gradients.npz", tree.flatten(theirs(tree.unflatten(leaves))))
    model, found = load(tmp_path / "weights.npz", leaves)

    def objective(params):
        variables = {"params": params}
        z_image, z_text = model.encode_image(variables, image)[0], model.encode_text(variables, text)[0]
        weighted = (z_text @ z_image.T * model.scale(variables) + model.bias(variables)) * weight
        return weighted.sum(), abs(weighted).sum()

    gradient, terms = jax.jit(jax.grad(objective, has_aux=True))(found.params)
    assert_gradients(gradient, tree.flatten(expected.params), terms)


@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
def test_vit(pool, tmp_path):
    image, _ = inputs()
    module = Image(pool, classes=7)
    leaves = randomised(module, image)
    model, found = load(tmp_path / "vit.npz", leaves)
    theirs = jax.jit(module.apply)({"params": tree.unflatten(leaves)}, image)
    assert_close(jax.jit(model.apply)(found.params, image)[0], theirs, pool)
    assert found.text is None
    assert theirs.shape == (BATCH, 7)


def test_names_of_2020(tmp_path):
    """What the first ViT weights were saved as: positions include CLS's, and modules count on through a block."""
    image, _ = inputs()
    module = Image("tok", classes=7)
    leaves = randomised(module, image)
    old = {}
    for name, leaf in leaves.items():
        name = name.replace("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1")
        name = name.replace("LayerNorm_1", "LayerNorm_2").replace("MlpBlock_0", "MlpBlock_3")
        old[name.replace("pos_embedding", "Transformer/posembed_input/pos_embedding")] = leaf
    posemb = "Transformer/posembed_input/pos_embedding"
    old[posemb] = np.concatenate([np.full((1, 1, WIDTH), 0.5, np.float32), old[posemb]], axis=1)
    old["cls"] = old["cls"] - 0.5
    model, found = load(tmp_path / "vit.npz", old)
    theirs = jax.jit(module.apply)({"params": tree.unflatten(leaves)}, image)
    assert_close(jax.jit(model.apply)(found.params, image)[0], theirs, "logits")
