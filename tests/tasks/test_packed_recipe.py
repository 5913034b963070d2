"""What a packed recipe refuses before a device is touched, and what its durations count."""

import pytest

from vlm_jax import config as configs
from vlm_jax.errors import UserError
from vlm_jax.experiment import open_experiment


def experiment(tmp_path, **changes):
    config = configs.load("navit_tiny:short")
    config.tokenizer = "bytes"
    config.update_from_flattened_dict(changes)
    return open_experiment(config, tmp_path / "assets")


def test_batch_size_counts_rows_and_durations_count_examples(tmp_path):
    packed = experiment(tmp_path)
    assert packed.examples == 12 // packed.packing.rows * packed.packing.examples == 60
    assert packed.clock.total == 60


def test_without_packing_it_is_a_dense_recipe(tmp_path):
    dense = experiment(tmp_path, packing=None)
    assert dense.examples == dense.batch_size == 12
    assert set(dense.task.batch_spec(12)) == {"image", "text", "caption_id"}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"batch_size": 10}, r"config.batch_size=10 is not a multiple of config.packing.rows=4"),
        ({"data.packing": None}, r"config.data.packing and config.task.packing differ"),
        ({"text.length": 20}, r"config.text.length=20, the model takes 24 tokens"),
    ],
)
def test_mistakes_are_told(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        experiment(tmp_path, **changes)
