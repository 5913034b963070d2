"""A small run that can go wrong on purpose; see `tests/faults/spoilt.py` for how."""

from tests.helpers import small_config
from vlm_jax.config import bind


def get_config(variant=""):
    config = small_config()
    plain = config.task.to_dict()
    config.task = bind("tests.faults.spoilt.Spoilt", **{k: config.task[k] for k in plain if not k.startswith("_")})
    source = {k: v for k, v in config.data.source.to_dict().items() if not k.startswith("_")}
    config.data.source = bind("tests.faults.spoilt.Hanging", **source)
    config.data.shuffle = False
    config.evals = {}
    config.checkpoint_percent, config.checkpoint_steps, config.log_steps = None, 4, 1
    return config
