"""`config.init_from` of a model of another library: it trains on, also at another size, or as a locked tower."""

import jax
import numpy as np
import pytest

from tests.helpers import Stepper, small_config
from vlm_jax import interop, startup, tree
from vlm_jax.errors import UserError
from vlm_jax.experiment import open_experiment
from vlm_jax.nn.positions import resample

from . import peer_models as small
from .peer_models import DEPTH, HEADS, LENGTH, MLP, PATCH, VOCAB, WIDTH

# siglip_tiny as the small models of transformers are.
TOWER = {"width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_dim": MLP}
SIGLIP = {
    **{f"task__model__{tower}__{field}": str(value) for tower in ("image", "text") for field, value in TOWER.items()},
    "task__model__image__stem_channels": "()",
    "task__model__image__patch_size": str(PATCH),
    "task__model__image__out_dim": "None",
    "task__model__text__out_dim": str(WIDTH),
    "task__model__text__vocab_size": str(VOCAB),
    "task__model__text__length": str(LENGTH),
    "text__length": str(LENGTH),
    "tokenizer": "train:40",
}


def begin(folder, source, **changes):
    config = small_config("siglip_tiny:plain", **SIGLIP | {"init_from": str(source)} | changes)
    experiment = open_experiment(config, folder / "assets")
    stepper = Stepper.make(experiment, jax.devices()[:2])
    lines = []

    class Empty:
        def restore_latest(self, wanted):
            return None

    start = startup.begin(stepper.plan, Empty(), lines.append)
    return stepper, start, lines


def flat(start):
    return {k: np.asarray(v) for k, v in tree.flatten(startup.to_items(start.state)["params"]).items()}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return small.save(small.randomise(small.siglip()), tmp_path_factory.mktemp("siglip"))


@pytest.mark.full
def test_it_trains_on(siglip, tmp_path):
    stepper, start, _ = begin(tmp_path, siglip)
    theirs = tree.flatten(interop.source(siglip).params())
    ours = flat(start)
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    assert start.message == f"parameters from {siglip} (siglip)"
    state, batch, losses = start.state, stepper.batch(), []
    for _ in range(8):
        state, metrics = jax.block_until_ready(stepper.update(state, batch))
        losses.append(float(metrics["train/loss"] if "train/loss" in metrics else metrics["loss"]))
    assert losses[-1] < losses[0]


def test_positions_at_another_size(siglip, tmp_path):
    size = {"image__size": "48", "task__model__image__image_size": "48", "data__source__image_size": "48"}
    evals = {f"evals__{e}__source__image_size": "48" for e in ("zero_shot_seen", "zero_shot_held_out", "retrieval")}
    bicubic = {"task__model__image__posemb_resize": "bicubic"}
    _, start, _ = begin(tmp_path, siglip, **size, **evals, **bicubic)
    # as transformers would resize them for images of this size
    expected = resample(interop.source(siglip).params()["image"]["embed"]["posemb"], (6, 6), method="bicubic")
    np.testing.assert_array_equal(flat(start)["image/embed/posemb"], expected)


@pytest.mark.full
def test_what_is_left_out_stays_as_initialised(siglip, tmp_path):
    stepper, start, _ = begin(
        tmp_path, siglip, init_from_skip="('text/.*', 'logit_.*')", task__model__text__vocab_size="60"
    )
    fresh = tree.flatten(startup.initialise(stepper.plan).params)
    ours, theirs = flat(start), tree.flatten(interop.source(siglip).params())
    for name, leaf in ours.items():
        expected = theirs[name] if name.startswith("image/") else fresh[name]
        np.testing.assert_array_equal(leaf, expected, err_msg=name)
    with pytest.raises(UserError, match=r"config\.init_from_skip: 'txt/\.\*' matches no whole name; "):
        begin(tmp_path, siglip, init_from_skip="('txt/.*',)")


@pytest.mark.full
def test_scanned_layers(siglip, tmp_path):
    scan = {"task__model__image__scan": "True", "task__model__text__scan": "True"}
    _, start, _ = begin(tmp_path, siglip, **scan)
    theirs = tree.flatten(interop.source(siglip).params())
    stacked = flat(start)["image/blocks/mlp/fc1/kernel"]
    np.testing.assert_array_equal(stacked[1], theirs["image/blocks/01/mlp/fc1/kernel"])


@pytest.mark.parametrize("field", ["activation", "norm_eps", "num_heads"])
def test_a_model_that_computes_differently_is_refused(siglip, tmp_path, field):
    value = {"activation": "quick_gelu", "norm_eps": "1e-3", "num_heads": "2"}[field]
    with pytest.raises(UserError) as raised:
        begin(tmp_path, siglip, **{f"task__model__image__{field}": value})
    assert f"its image tower has {field}=" in str(raised.value)
    assert f"--config.task.model.image.{field}=" in str(raised.value)


def test_an_image_tower_alone_and_locked(tmp_path):
    """LiT (Zhai et al. 2022): a published image tower that does not change, and a text tower that learns to fit it."""
    vit = small.save(small.randomise(small.vit(labels=7, hidden_act="gelu")), tmp_path / "vit")
    tower = {
        "task__model__image__pool": "cls",
        "task__model__image__activation": "gelu",
        "task__model__image__norm_eps": "1e-12",
        "optimizer__lock": "(('image', 'all'),)",
    }
    with pytest.raises(UserError, match=r"image/head/kernel: unknown.*config\.init_from_skip leaves parameters out"):
        begin(tmp_path, vit, **tower)
    stepper, start, _ = begin(tmp_path, vit, **tower, init_from_skip="('image/head/.*',)")
    theirs = tree.flatten(interop.source(vit).params())
    state, _ = jax.block_until_ready(stepper.update(start.state, stepper.batch()))
    after = {name: np.asarray(leaf) for name, leaf in tree.flatten(startup.to_items(state)["params"]).items()}
    for name, leaf in theirs.items():
        if not name.startswith("head"):
            np.testing.assert_array_equal(after[f"image/{name}"], leaf, err_msg=name)
    assert "image tower" in start.message


@pytest.mark.full
def test_a_dinov2_tower(tmp_path):
    dinov2 = small.save(small.randomise(small.dinov2(registers=4)), tmp_path / "dinov2")
    tower = {
        "task__model__image__pool": "cls",
        "task__model__image__activation": "gelu",
        "task__model__image__layer_scale": "1.0",
        "task__model__image__registers": "4",
        "task__model__image__mlp_dim": str(4 * WIDTH),
    }
    stepper, start, _ = begin(tmp_path, dinov2, **tower)
    _, metrics = jax.block_until_ready(stepper.update(start.state, stepper.batch()))
    assert np.isfinite(float(metrics["loss"] if "loss" in metrics else metrics["train/loss"]))
    assert flat(start)["image/blocks/01/ls1"].shape == (WIDTH,)
