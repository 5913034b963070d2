import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import mesh as meshes
from vlm_jax import partition, tree
from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout
from vlm_jax.models.coca import CaptionDecoder, CoCa, ImageTower, TextTower
from vlm_jax.nn import shard

SHAPE = {"width": 16, "depth": 2, "num_heads": 2, "dtype": "float32"}
TINY = CoCa(
    image=ImageTower(**SHAPE, patch_size=4, image_size=8, out_dim=8, queries=4, pool_heads=2),
    text=TextTower(**SHAPE, vocab_size=10, length=6, out_dim=8),
    decoder=CaptionDecoder(**SHAPE, vocab_size=10, context_width=8, scan=True),
)
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
TEXT = np.array([[3, 4, 5, 6, 7, 8], [3, 4, 5, 0, 0, 0]] * 4, np.int32)


@pytest.fixture
def variables(parameters):
    return parameters(TINY)


def of_part(name, **changes):
    return dataclasses.replace(TINY, **{name: dataclasses.replace(getattr(TINY, name), **changes)})


def test_variables():
    params = jax.eval_shape(TINY.init, jax.random.key(0))["params"]
    assert set(params) == {"image", "text", "decoder", "logit_scale"}
    assert TINY.stacks == {"decoder/blocks": 2}
    names = tree.flatten(tree.unstack(params, TINY.stacks))
    assert {"image/pool/query", "text/embed/cls", "decoder/blocks/01/cross/attn/kv/kernel"} <= set(names)
    assert names["text/embed/posemb"].shape == (7, 16) and names["decoder/head/embedding"].shape == (10, 16)


@pytest.mark.parametrize(("pooler", "tokens"), [("first", 3), ("cascade", 4), ("parallel", 4)])
def test_poolers(pooler, tokens, parameters):
    model = of_part("image", pooler=pooler)
    z, aux = jax.jit(lambda v: model.encode_image(v, IMAGE, taps=("ln_post", "blocks/01")))(parameters(model))
    assert z.shape == (8, 8) and aux["tokens"].shape == (8, tokens, 8)
    assert aux["taps"]["blocks/01"].shape == (8, 5, 16)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1, atol=1e-5)


def test_the_decoder_may_have_the_tokens_themselves(parameters):
    image = dataclasses.replace(TINY.image, pooler="parallel", queries=0)
    model = dataclasses.replace(TINY, image=image, decoder=dataclasses.replace(TINY.decoder, context_width=16))
    variables = parameters(model)
    z, aux = jax.jit(lambda v: model.encode_image(v, IMAGE, taps=("ln_post",)))(variables)
    assert "pool" not in variables["params"]["image"] and z.shape == (8, 8)
    np.testing.assert_array_equal(aux["tokens"], aux["taps"]["ln_post"])
    assert aux["tokens"].shape == (8, 5, image.token_width)


def test_padding_changes_no_text(variables):
    encode = jax.jit(TINY.encode_text)
    short, aux = encode(variables, TEXT)
    longer = TEXT.copy()
    longer[:, 3:] = 0
    np.testing.assert_allclose(encode(variables, longer)[0][1], short[1], atol=1e-6)
    assert np.abs(encode(variables, longer)[0][0] - short[0]).max() > 1e-3
    np.testing.assert_allclose(encode(variables, longer)[1]["tokens"][:, :3], aux["tokens"][:, :3], atol=1e-6)


def test_the_published_mask_is_shifted_by_one(variables):
    """It hides the last token of a full row from no one, and CLS from itself where a row ends in padding."""
    right = jax.jit(TINY.encode_text)(variables, TEXT)[0]
    legacy = jax.jit(of_part("text", correct_cls_mask=False).encode_text)(variables, TEXT)[0]
    np.testing.assert_allclose(legacy[0], right[0], atol=1e-6)
    assert np.abs(legacy[1] - right[1]).max() > 1e-3


@pytest.mark.parametrize("pooler", ["first", "cascade"])
def test_cached_logits_are_those_of_whole_texts(pooler, parameters):
    """Of prompts of three and one tokens, and of every token after them; one row's text ends in padding."""
    model = of_part("image", pooler=pooler)
    variables, text = parameters(model), jnp.array(TEXT[:2])
    prompt = text[:, :3].at[1, 1:].set(0)

    @jax.jit
    def whole(variables):
        image = model.encode_image(variables, IMAGE[:2])[1]["tokens"]
        hidden = model.decode(variables, image, model.encode_text(variables, text)[1]["tokens"])
        return hidden @ model.head(variables).T

    @jax.jit
    def cached(variables):
        image = model.encode_image(variables, IMAGE[:2])[1]["tokens"]
        logits, cache = model.start_captions(variables, image, prompt, 6)
        found = [logits]
        for _ in range(2):
            following = text[jnp.arange(2), cache["length"]]
            logits, cache = model.extend(variables, following, cache)
            found.append(logits)
        return jnp.stack(found, axis=1), cache

    wanted = whole(variables)
    found, cache = cached(variables)
    np.testing.assert_allclose(found[0], wanted[0, 2:5], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1, :3], rtol=1e-5, atol=1e-5)
    assert cache["length"].tolist() == [5, 3]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(cache)} == {2}


@pytest.mark.parametrize("size", [2, 7])
def test_texts_that_have_no_room_are_refused(size, variables):
    with pytest.raises(UserError, match=f"prompts of 3 tokens in texts of {size}: the model has length=6"):
        TINY.start_captions(variables, np.zeros((8, 3, 8), np.float32), TEXT[:, :3], size)


def test_what_is_predicted_comes_from_the_image_and_the_tokens_before(variables):
    def hidden(image, text):
        image_tokens = TINY.encode_image(variables, image)[1]["tokens"]
        return TINY.decode(variables, image_tokens, TINY.encode_text(variables, text)[1]["tokens"])

    hidden = jax.jit(hidden)
    before = hidden(IMAGE, TEXT)
    assert before.shape == (8, 6, 16) and TINY.head(variables).shape == (10, 16)
    text = TEXT.copy()
    text[0, 4] = 9
    changed = np.abs(hidden(IMAGE, text) - before).max(2)[0] > 1e-4
    assert changed.tolist() == [False] * 4 + [True] * 2
    assert (np.abs(hidden(IMAGE[::-1], TEXT) - before).max((0, 2)) > 1e-4).all()


def test_bf16_and_scanned_layers(variables):
    """Everything in bf16 with scanned layers is near the unrolled f32 model; embeddings stay f32."""
    parts = {
        name: dataclasses.replace(getattr(TINY, name), dtype="bfloat16", scan=True)
        for name in ("image", "text", "decoder")
    }
    model = dataclasses.replace(TINY, **parts)
    params = tree.stack(tree.unstack(variables["params"], TINY.stacks), model.stacks)

    def run(model, variables):
        z, aux = model.encode_image(variables, IMAGE)
        text_tokens = model.encode_text(variables, TEXT)[1]["tokens"]
        return z, model.decode(variables, aux["tokens"], text_tokens)

    z, hidden = jax.jit(functools.partial(run, model))({"params": params})
    wanted, wanted_hidden = jax.jit(functools.partial(run, TINY))(variables)
    assert z.dtype == jnp.float32 and hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(z, wanted, atol=0.05)
    difference = np.linalg.norm(hidden.astype(np.float32) - wanted_hidden)
    assert difference < 0.05 * np.linalg.norm(wanted_hidden)


def loss(mesh, params, image, text):
    with shard.under(mesh):
        v = {"params": params}
        z, aux = TINY.encode_image(v, image)
        z_text, text_aux = TINY.encode_text(v, text)
        hidden = TINY.decode(v, aux["tokens"], text_aux["tokens"])
        return (jnp.arange(8.0) * z * z_text).sum() + jnp.square(hidden @ TINY.head(v).T).mean()


@pytest.mark.full
@pytest.mark.parametrize("layout", [Layout(data=2, fsdp=2, tensor=2, min_size=1)], ids=["2x2x2"])
def test_on_a_mesh_equals_one_device(layout, variables):
    params = variables["params"]
    wanted, wanted_grads = jax.jit(jax.value_and_grad(functools.partial(loss, None)))(params, IMAGE, TEXT)
    mesh = layout.make(jax.devices())
    places = partition.shardings(params, layout, mesh, TINY.stacks)
    step = jax.jit(jax.value_and_grad(functools.partial(loss, mesh)), out_shardings=(None, places))
    batch = jax.device_put((IMAGE, TEXT), meshes.batch_sharding(mesh))
    value, grads = step(jax.device_put(params, places), *batch)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted_grads))
    for name, grad in tree.flatten(jax.device_get(wanted_grads)).items():
        np.testing.assert_allclose(tree.flatten(grads)[name], grad, rtol=1e-4, atol=1e-6 * scale, err_msg=name)


def test_matrices_of_cross_attention_are_split_by_heads_and_the_head_by_the_vocabulary():
    mesh = Layout(data=2, fsdp=2, tensor=2, min_size=1).make(jax.devices())
    shapes = jax.eval_shape(of_part("decoder", scan=False).init, jax.random.key(0))
    places = partition.shardings(shapes["params"], Layout(data=2, fsdp=2, tensor=2, min_size=1), mesh, {})
    found = {name: tuple(s.spec) for name, s in tree.flatten(places).items()}
    cross = "decoder/blocks/00/cross/attn"
    assert found[f"{cross}/q/kernel"] == ("fsdp", "tensor")
    assert found[f"{cross}/out/kernel"] == ("tensor", "fsdp")
    assert found[f"{cross}/kv/kernel"] == (("fsdp", "tensor"), None)
    assert found["decoder/head/embedding"] == ("tensor", "fsdp")


PARTS = {
    "queries": ("image", {"queries": 1}, "queries=1 must be at least 2"),
    "heads": ("image", {"pool_heads": 3}, "out_dim=8 is not divisible by pool_heads=3"),
    "pooler": ("image", {"pooler": "casade"}, "unknown pooler='casade'; .*cascade"),
    "no dim": ("image", {"out_dim": None}, "out_dim is the width of the attentional pooler"),
    "causal": ("text", {"causal": False}, "is causal and masks padding"),
    "width": ("decoder", {"width": 32}, "width=32 of one and 16 of the other"),
    "vocabulary": ("decoder", {"vocab_size": 11}, "vocab_size=11 of the decoder is 10"),
    "context": ("decoder", {"context_width": None}, r"decoder\.context_width=16, .* are 8 wide \(image\.out_dim\)"),
    "no queries": ("image", {"queries": 0, "pooler": "cascade"}, "queries=0 must be at least 1 for pooler='cascade'"),
    "unpooled": ("image", {"queries": 0, "pooler": "parallel"}, r"are 16 wide \(image\.width\)"),
}


@pytest.mark.parametrize("name", PARTS)
def test_mistakes_are_named(name):
    part, changes, message = PARTS[name]
    with pytest.raises(UserError, match=message):
        of_part(part, **changes)


@pytest.mark.parametrize("part", ["image", "text"])
def test_packing_is_refused(part):
    with pytest.raises(UserError, match="leave packing out"):
        getattr(TINY, part).validate_packed()
