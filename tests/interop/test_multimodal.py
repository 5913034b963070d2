"""LLaVA, LLaVA-NeXT and Fuyu of transformers: logits, gradients of every parameter, places of images in the text."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import interop
from vlm_jax.data.conversation_images import TiledImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.data.tiles import GRIDS, best_grid, unpadded
from vlm_jax.errors import UserError
from vlm_jax.interop import hugging_face
from vlm_jax.models.llava import tile_places

from ..parity import peers
from . import peer_models as small
from .peer_models import assert_close, assert_gradients

IMAGE_ID, VOCAB, ROWS, LENGTH = 58, 60, 2, 24
NEWLINE = VOCAB - 1  # as a vocabulary that ends before Fuyu's newline is imported
TEXT = {**small.SIZES, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llava(kind="llama", name="Llava", **options):
    t = peers.transformers()
    vision = {
        **small.VISION,
        "num_hidden_layers": 3,
        "model_type": "clip_vision_model",
        "image_size": 16,
        "patch_size": 4,
    }
    config = getattr(t, f"{name}Config")(
        vision_config=vision,
        text_config=TEXT | {"model_type": kind, "num_key_value_heads": 2},
        image_token_index=IMAGE_ID,
        **options,
    )
    return small.randomise(getattr(t, f"{name}ForConditionalGeneration")(config))


def llava_next():
    return llava(name="LlavaNext", image_grid_pinpoints=[[16 * rows, 16 * columns] for rows, columns in GRIDS])


def fuyu():
    t = peers.transformers()
    config = t.FuyuConfig(text_config=TEXT | {"model_type": "persimmon"}, patch_size=4, image_token_id=IMAGE_ID)
    return small.randomise(t.FuyuForCausalLM(config))


def imported(model, folder):
    found = interop.source(small.save(model, folder))
    return configs.build(found.model), jax.tree.map(jnp.asarray, found.params())


def compare(theirs, batch, folder, **inputs):
    model, params = imported(theirs, folder / "weights")
    out = theirs(**inputs).logits
    weight = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    (out * peers.torch().tensor(weight)).sum().backward()
    expected = small.our_gradients(theirs, folder / "gradients")

    def objective(params):
        variables = {"params": params}
        hidden, _ = model.hidden(variables, batch)
        logits = model.decoder.logits(params["decoder"], hidden)
        return (logits * weight).sum(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert_close(logits, out.detach(), "logits")
    assert_gradients(gradient, expected)


def text_with_images(*begins, places):
    """Ids, and which image each place is of."""
    text = np.random.default_rng(0).integers(3, 50, (ROWS, LENGTH)).astype(np.int32)
    ids = np.zeros_like(text)
    for row, begin in enumerate(begins):
        ids[row, begin : begin + places] = 1
    return text, ids


@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen2", marks=pytest.mark.full)])
def test_llava(kind, tmp_path):
    torch = peers.torch()
    text, ids = text_with_images(2, 5, places=16)
    image = np.random.default_rng(2).normal(size=(ROWS, 1, 16, 16, 3)).astype(np.float32)
    batch = {"text": text, "text_image_ids": ids, "text_segment_ids": np.ones_like(text), "image": image}
    theirs = torch.tensor(np.where(ids, IMAGE_ID, text)).long()
    compare(llava(kind), batch, tmp_path, input_ids=theirs, pixel_values=small.channels_first(image[:, 0]))


def test_llava_next(tmp_path):
    """Two images of other shapes than each other's in a row of two conversations, by our data from pixels on."""
    torch, rng = peers.torch(), np.random.default_rng(2)
    sizes = [[(40, 31), (20, 60)], [(99, 25), (16, 16)]]
    pictures = [[rng.integers(0, 256, (*size, 3), np.uint8) for size in row] for row in sizes]
    asked = [{"role": "user", "content": "4<image>3<image>5"}]
    talks = Conversations(images=TiledImages(count=2, tiles=10, side=4))
    batch = talks.prompts(
        [{"messages": asked, "images": row} for row in pictures],
        image=ImageTransform(size=16, fill=(0, 0, 0)),
        text=Text(length=200, canonicalise="none", pad="pad"),
    )
    batch["text"] = rng.integers(3, 50, batch["text"].shape).astype(np.int32)
    shown = batch["image"] = rng.normal(size=batch["image"].shape).astype(np.float32)
    tiles = [1 + rows * columns for row in batch["tile_grids"] for rows, columns in row]
    starts = [0, tiles[0], 0, tiles[2]]
    each = [shown[row, start : start + count] for row, start, count in zip((0, 0, 1, 1), starts, tiles)]
    each = [np.pad(part, ((0, 5 - len(part)), *((0, 0),) * 3)) for part in each]
    pixels = torch.tensor(np.stack(each).transpose(0, 1, 4, 2, 3))
    theirs = torch.tensor(np.where(batch["text_image_ids"], IMAGE_ID, batch["text"])).long()
    batch["text_segment_ids"] = np.ones_like(batch["text"])
    image_sizes = torch.tensor([size for row in sizes for size in row])
    peer = llava_next()
    found = imported(peer, tmp_path / "model")[0]
    assert found.tiles == 5 and found.image.image_size == 16
    compare(peer, batch, tmp_path, input_ids=theirs, pixel_values=pixels, image_sizes=image_sizes)


def test_places_are_those_of_llava_next():
    """Of images of many shapes: how many places, and which token of which tile is at each; -1 is the newline."""
    torch, images, _ = peers.torch(), TiledImages(side=4), peers.transformers()
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    pixels = [[16 * rows, 16 * columns] for rows, columns in GRIDS]
    vision = types.SimpleNamespace(image_size=16, patch_size=4)
    model = types.SimpleNamespace(config=types.SimpleNamespace(image_grid_pinpoints=pixels, vision_config=vision))
    sizes = np.random.default_rng(0).integers(8, 200, (200, 2)).tolist()
    grids, boxes, expected = [], [], []
    for h, w in sizes:
        grids.append(best_grid(h, w, GRIDS, 16))
        boxes.append(unpadded(h, w, grids[-1], 4))
        tokens = torch.arange(16 * (1 + np.prod(grids[-1]))).reshape(-1, 16, 1).float()
        packed = LlavaNextModel.pack_image_features(
            model, [tokens], torch.tensor([[h, w]]), "default", torch.tensor([-1.0])
        )[0][0]
        expected.append(packed.numpy()[:, 0].astype(int))
        counted = LlavaNextProcessor._get_unpadded_features(None, h, w, 4, 4, *grids[-1])
        tiled = types.SimpleNamespace(size=(h, w), grid=grids[-1], tiles=tokens)
        assert len(packed) == 16 + sum(counted) == images.size(tiled).places
    ids = np.zeros((len(sizes), 16 + 8 * 9), np.int32)
    for row, packed in enumerate(expected):
        ids[row, : len(packed)] = 1
    token, ends = jax.jit(tile_places, static_argnums=3)(ids, np.array(grids)[:, None], np.array(boxes)[:, None], 4)
    for row, packed in enumerate(expected):
        np.testing.assert_array_equal(np.where(ends, -1, token)[row, : len(packed)], packed)


def test_fuyu(tmp_path):
    torch = peers.torch()
    grid = np.array([[[3, 4]], [[3, 4]]], np.int32)
    text, ids = text_with_images(1, 6, places=3 * 5)
    patches = np.random.default_rng(2).normal(size=(ROWS, 14, 48)).astype(np.float32)
    batch = {"text": text, "text_image_ids": ids, "text_segment_ids": np.ones_like(text)}
    batch |= {"patches": patches, "image_grids": grid}
    theirs = text.copy()
    for row, begin in enumerate((1, 6)):
        for line in range(3):
            at = begin + 5 * line
            theirs[row, at : at + 4], theirs[row, at + 4] = IMAGE_ID, NEWLINE
    shown = torch.tensor(patches[:, :12].copy())
    compare(fuyu(), batch, tmp_path, input_ids=torch.tensor(theirs).long(), image_patches=shown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": 1}, "vision_feature_layer=1"),
        ({"text_config": {"model_type": "gemma"}}, "gemma"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
    ],
)
def test_what_is_not_supported(change, message):
    with pytest.raises(UserError, match=message):
        hugging_face.FAMILIES["llava"].model({"model_type": "llava", **change}, "config.json")


def test_tiles_are_whole():
    config = {"model_type": "llava_next", "image_grid_pinpoints": [[224, 448], [300, 448]]}
    with pytest.raises(UserError, match=r"image_grid_pinpoints=.* are not whole numbers of tiles of 224 pixels\.$"):
        hugging_face.FAMILIES["llava_next"].model(config, "config.json")
