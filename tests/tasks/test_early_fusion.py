"""Texts and image tokens in one stream: the loss, what is written and drawn, and what does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.data.fused_vocabulary import Vocabulary
from vlm_jax.data.fusion import Fusion
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling
from vlm_jax.mesh import Layout
from vlm_jax.models.autoencoder import Autoencoder
from vlm_jax.models.bottlenecks.continuous import Deterministic
from vlm_jax.models.bottlenecks.scalar import FSQ
from vlm_jax.models.bottlenecks.vq import VectorQuantiser
from vlm_jax.models.chameleon import Chameleon
from vlm_jax.models.codecs import VitDecoder, VitEncoder
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.nn import shard
from vlm_jax.optim import Optimizer
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.early_fusion import EarlyFusion

from ..nn.random_parameters import random_parameters

TEXT = Text(length=24, canonicalise="none", bos=True, pad="pad")
IDS = Vocabulary(text=TEXT.vocab_size, codes=16)
FUSION = Fusion(IDS, grid=2, pictures=True)
SIZES = dict(width=8, depth=1, num_heads=2, patch_size=4, image_size=8, dtype="float32")
TOKENIZER = Autoencoder(VitEncoder(**SIZES), FSQ(levels=(4, 4)), VitDecoder(**SIZES), image_size=8)
DECODER = LanguageModel(
    width=16, depth=1, num_heads=2, num_kv_heads=2, mlp_dim=24, vocab_size=IDS.size, length=64, dtype="float32",
    scan=False, remat="none", qk_norm="layer_per_head",
)  # fmt: skip
MODEL = Chameleon(DECODER, tokenizer=TOKENIZER)
SPECIAL = dict(bos_id=TEXT.bos_id, end_id=TEXT.eos_id, pad_id=TEXT.pad_id)
GREEDY = Sampling(temperature=0.0)
TASK = EarlyFusion(MODEL, 24, fusion=FUSION, **SPECIAL, sampling=Sampling(max_tokens=5), drawing=GREEDY)
PICTURES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def variables():
    return random_parameters(MODEL)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pictures, or their codes."""

    codes_of: bytes | None = None
    name = fingerprint = "pairs"
    class_names = ()

    def __len__(self):
        return len(PICTURES)

    def __getitem__(self, index):
        if self.codes_of is None:
            return {"image": PICTURES[index], "text": f"no {index}"}
        return {"image_codes": np.frombuffer(self.codes_of, np.int32).reshape(8, 4)[index], "text": f"no {index}"}


def batch_of(source, **options):
    fusion = dataclasses.replace(FUSION, **options)
    pipeline = Pipeline(source, ImageTransform(size=8), TEXT, threads=0, fusion=fusion)
    batch = next(pipeline.batches(seed=0, batch_size=8, rows=np.arange(8)))
    return {name: array for name, array in batch.items() if name != "example_id"}


def value_of(task, variables, batch, devices=1, **axes):
    mesh = Layout(**axes).make(jax.devices()[:devices])
    ctx = Context(key=jax.random.key(1), step=jnp.int32(0), total_steps=10, mesh=mesh)
    with shard.under(mesh):
        return task.loss(variables, batch, ctx)


def loss_of(task, variables, batch, devices=1, **axes):
    def loss(decoder):
        params = {**variables["params"], "decoder": decoder}
        return value_of(task, {**variables, "params": params}, batch, devices, **axes)[0]

    return jax.jit(jax.value_and_grad(loss))(variables["params"]["decoder"])


def test_pictures_are_learnt_as_their_codes(variables):
    """Of the same rows, with codes that were written before; and of each, the mean over all tokens but the first."""
    codes = np.asarray(TASK.predict(variables)["tokens"](PICTURES))
    assert codes.shape == (8, 4) and len(np.unique(codes)) > 2
    pictures, written = batch_of(Pairs()), batch_of(Pairs(codes.tobytes()), pictures=False)
    assert set(pictures) == set(TASK.batch_spec(8)) and set(written) < set(pictures)
    alone = EarlyFusion(Chameleon(DECODER), 24, fusion=dataclasses.replace(FUSION, pictures=False), **SPECIAL)
    one, gradient = loss_of(TASK, variables, pictures)
    other, expected = loss_of(alone, variables, written)
    np.testing.assert_allclose(one, other, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, expected)
    params = variables["params"]["decoder"]
    logits = DECODER.logits(params, DECODER.apply(params, written["text"], written["text_segment_ids"])[0])
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), written["text"][:, 1:, None], axis=-1)[..., 0]
    there = written["text_segment_ids"][:, 1:] > 0
    np.testing.assert_allclose(one, (each * there).sum() / there.sum(), rtol=1e-5)
    weights = np.where(written["text"][:, 1:] >= IDS.first_code, 0.25, 1) * there
    loss, aux = value_of(dataclasses.replace(TASK, image_weight=0.25), variables, pictures)
    np.testing.assert_allclose(loss, (each * weights).sum() / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(aux["weight"], weights.sum(), rtol=1e-6)
    parts = {"text_loss": weights == 1, "image_loss": weights == 0.25}
    for name, part in parts.items():
        np.testing.assert_allclose(aux["metrics"][name], each[part].mean(), rtol=1e-5)


@pytest.mark.full
def test_devices_do_not_change_it(variables):
    packed = dict(examples=2, rows=2, per_row=2)
    batch, task = batch_of(Pairs(), **packed), dataclasses.replace(TASK, fusion=dataclasses.replace(FUSION, **packed))
    one, gradient = loss_of(task, variables, batch)
    other, of_eight = loss_of(task, variables, batch, 8, data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(one, other, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, of_eight)


def likeliest(params, rows, allowed, count, guidance=1.0, free=None):
    """Greedy tokens by the whole sequence anew each time."""
    written = [list(row) for row in rows]
    frees = [list(free) for _ in rows] if free else written
    logits = lambda row: np.asarray(DECODER.logits(params, DECODER.apply(params, np.array([row], np.int32))[0]))[0, -1]
    for row, other in zip(written, frees):
        for _ in range(count):
            found = logits(row)
            if free:
                base = logits(other)
                found = base + guidance * (found - base)
            token = allowed[int(found[np.array(allowed)].argmax())]
            row.append(token)
            if free:
                other.append(token)
    return [row[len(begin) :] for row, begin in zip(written, rows)]


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.full), 3.0])
def test_what_is_drawn_are_codes_of_one_image(variables, guidance):
    """The likeliest codes, or those of the logits that guidance combines, for captions of unequal length."""
    task = dataclasses.replace(TASK, guidance=guidance)
    captions = ["a", "four"]
    codes = np.asarray(task.predict(variables)["draw_codes"](FUSION.prompts(captions, TEXT)))
    rows = [[TEXT.bos_id, *TEXT.model.encode(caption), IDS.image_begin] for caption in captions]
    free = [TEXT.bos_id, IDS.image_begin] if guidance != 1 else None
    allowed = list(range(IDS.first_code, IDS.size))
    expected = likeliest(variables["params"]["decoder"], rows, allowed, 4, guidance, free)
    np.testing.assert_array_equal(codes + IDS.first_code, expected)


def test_what_is_written_are_tokens_of_texts(variables):
    predict = TASK.predict(variables)
    written = np.asarray(predict["generate"](PICTURES[:2]))
    codes = np.asarray(predict["tokens"](PICTURES[:2]))
    np.testing.assert_array_equal(predict["describe"](codes), written)
    rows = [[TEXT.bos_id, IDS.image_begin, *(found + IDS.first_code), IDS.image_end] for found in codes]
    expected = likeliest(variables["params"]["decoder"], rows, list(range(IDS.text)), 5)
    for found, wanted in zip(written.tolist(), expected):
        end = wanted.index(TEXT.eos_id) + 1 if TEXT.eos_id in wanted else 5
        assert found == wanted[:end] + [TEXT.pad_id] * (5 - end)


def test_drawings_are_images_of_their_codes_and_of_their_own_keys(variables):
    task = dataclasses.replace(TASK, drawing=Sampling(temperature=1.0))
    predict, rows = task.predict(variables), FUSION.prompts(["a"] * 3, TEXT)
    keys = lambda numbers: jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.array(numbers))
    codes = np.asarray(predict["draw_codes"](rows, keys([0, 1, 2])))
    assert len(np.unique(codes, axis=0)) > 1 and 0 <= codes.min() and codes.max() < 16
    np.testing.assert_array_equal(predict["draw_codes"](rows, keys([2, 1, 0])), codes[::-1])
    images = np.asarray(predict["draw"](rows, keys([0, 1, 2])))
    assert images.dtype == np.uint8 and images.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(images, predict["from_tokens"](codes))
    whole = TOKENIZER.decode_tokens({"params": variables["params"]["tokenizer"], "state": {}}, codes.reshape(3, 2, 2))
    np.testing.assert_allclose(images, np.round(255 * np.clip(whole, 0, 1)), atol=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": Fusion(Vocabulary(TEXT.vocab_size, 15), 2)}, "has 16 codes, the decoder expects 15"),
        ({"fusion": Fusion(IDS, 3)}, "makes 2 x 2 codes of an image, and Fusion.grid=3; set it to 2"),
        ({"fusion": Fusion(Vocabulary(TEXT.vocab_size + 1, 16), 2)}, "is less than the 280 tokens of texts and images"),
        ({"model": Chameleon(DECODER)}, "needs a tokenizer of images"),
        ({"drawing": Sampling(beams=2)}, "drawing.beams=2"),
        ({"guidance": 2.0, "fusion": dataclasses.replace(FUSION, caption_first=1.0)}, "guidance=2.0 compares with"),
        ({"length": 65}, "length=65: the model takes sequences of 2 to 64"),
    ],
)
def test_what_does_not_fit(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TASK, **change)


def test_tokenizers_that_give_no_code_for_a_place():
    with pytest.raises(UserError, match="Deterministic has no codes"):
        Chameleon(DECODER, tokenizer=dataclasses.replace(TOKENIZER, bottleneck=Deterministic(dim=2)))
    several = VectorQuantiser(size=8, dim=2, quantisers=3)
    with pytest.raises(UserError, match="VectorQuantiser has 3 codes for each place; wanted is one"):
        Chameleon(DECODER, tokenizer=dataclasses.replace(TOKENIZER, bottleneck=several))


@dataclasses.dataclass
class Run:
    data: Pipeline
    optimizer: Optimizer


def test_a_tokenizer_that_would_be_trained_and_rows_of_another_kind():
    data = Pipeline(Pairs(), ImageTransform(size=8), TEXT, fusion=FUSION)
    TASK.check_run(Run(data, Optimizer(freeze=("tokenizer/.*",))))
    with pytest.raises(UserError, match=r"would be trained: config.optimizer.freeze=\('tokenizer/\.\*',\)"):
        TASK.check_run(Run(data, Optimizer()))
    other = dataclasses.replace(FUSION, caption_first=1.0)
    with pytest.raises(UserError, match=r"config\.data\.fusion and config.task.fusion differ"):
        TASK.check_run(Run(dataclasses.replace(data, fusion=other), Optimizer(freeze=("tokenizer/.*",))))
