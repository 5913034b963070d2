"""The whole suite on a model with random weights: the same on one device as on eight, at any batch size."""

import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.evaluate import suite
from vlm_jax.mesh import Layout, shardings
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT
from vlm_jax.tasks.contrastive import Contrastive

TEXT, IMAGE = Text(length=80), ImageTransform(size=16)
SMALL = dict(width=32, depth=1, num_heads=2, mlp_dim=32, out_dim=16, dtype="float32")
NETWORK = TwoTower(
    image=ViT(image_size=16, patch_size=4, pool="gap", **SMALL),
    text=TextTransformer(length=80, vocab_size=TEXT.vocab_size, pool="last", **SMALL),
)
SIZES = {"knn": (60, 200), "few_shot": (60, 300), "linear_probe": (60, 200)}


def evaluators(batch_size):
    evals = suite.get_config().evals
    for name, node in evals.items():
        node.batch_size = batch_size
        for part in node.get("parts", {"": node}).values():
            source = part.source.get("shapes", part.source)
            part.batch_size, source.size, source.image_size = batch_size, 33, 16
        if name in SIZES:
            node.source.size, node.train.size = SIZES[name]
            node.train.image_size = 16
            node.train.pairs = node.source.pairs = "held_out"  # eight classes: enough images of each
    evals.few_shot.update(shots=(1, 3), held_out=2)
    evals.linear_probe.l2 = (1e-2, 1e-1)
    return configs.build(evals, image=IMAGE, text=TEXT)


def results(devices, batch_size):
    mesh = Layout().make(jax.devices()[:devices])
    params = NETWORK.init(jax.random.key(0))["params"]
    variables = {"params": jax.device_put(params, shardings(params, Layout(), mesh, {}))}
    predict = Contrastive(NETWORK).predict(variables)
    return {name: evaluator(predict, mesh) for name, evaluator in evaluators(batch_size).items()}


@pytest.fixture(scope="module")
def expected():
    return results(1, 256)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (8, 40)])
def test_the_same_numbers(expected, devices, batch_size):
    for name, result in results(devices, batch_size).items():
        assert dict(result) == pytest.approx(dict(expected[name]), abs=1e-5), name
        for table, columns in result.rows.items():
            for column, values in columns.items():
                if values.dtype != np.float32 and values.dtype != np.float64:
                    assert np.array_equal(values, expected[name].rows[table][column]), (name, column)


def test_every_row_that_is_called_like_a_metric_is_what_it_is_the_mean_of(expected):
    seen = 0
    for name, result in expected.items():
        for columns in result.rows.values():
            lengths = {len(values) for values in columns.values()}
            assert len(lengths) == 1 and "index" in columns, name
            for column in set(columns) & set(result):
                assert np.mean(columns[column]) == pytest.approx(result[column]), (name, column)
                seen += 1
    assert seen > 20
