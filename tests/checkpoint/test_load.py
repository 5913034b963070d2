import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint.small_runs import META, STACKS, bits, make_items
from vlm_jax import tree
from vlm_jax.checkpoint import Store, latest_step, load_params
from vlm_jax.errors import UserError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with Store(workdir, stacks=STACKS) as store:
        store.save(1, make_items(1), META)
        store.save(2, {name: item for name, item in make_items(2).items() if name != "ema"}, META)
    return workdir


def assert_layers(params: dict, live: dict) -> None:
    wanted = tree.unstack(live, STACKS)
    assert jax.tree.structure(params) == jax.tree.structure(wanted)
    for name, leaf in tree.flatten(params).items():
        assert type(leaf) is np.ndarray and bits(leaf) == bits(tree.flatten(wanted)[name]), name


def test_from_a_workdir(workdir):
    params, meta = load_params(workdir)
    assert_layers(params, make_items(2)["params"])
    assert meta["step"] == 2 and meta["config"] == META["config"]
    assert params["image"]["blocks"]["02"]["mlp"]["bias"].dtype == jnp.bfloat16


def test_from_one_step(workdir):
    assert_layers(load_params(workdir, step=1)[0], make_items(1)["params"])
    assert_layers(load_params(workdir / "checkpoints" / "1", "ema")[0], make_items(1)["ema"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"weights": "ema"}, "2 has no weights 'ema'; it has params"),
        ({"weights": "emma", "step": 1}, "1 has no weights 'emma'; it has ema and params"),
        ({"step": 7}, "no checkpoint of step 7; it has 2, 1"),
    ],
)
def test_what_is_not_there(workdir, arguments, message):
    with pytest.raises(UserError, match=message):
        load_params(workdir, **arguments)


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no workdir with checkpoints"):
        load_params(tmp_path)


def test_damage(tmp_path):
    with Store(tmp_path) as store:
        for step in (1, 2):
            store.save(step, {"params": {"x": jax.random.normal(jax.random.key(step), (50, 50))}}, {})
    for path in (tmp_path / "checkpoints" / "2" / "params").glob("ocdbt.process_*/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    lines = []
    params, meta = load_params(tmp_path, warn=lines.append)
    assert meta["step"] == 1 and len(lines) == 1
    np.testing.assert_array_equal(params["x"], jax.random.normal(jax.random.key(1), (50, 50)))
    assert latest_step(tmp_path) == 2  # its meta is good
    for arguments in ({"path": tmp_path, "step": 2}, {"path": tmp_path / "checkpoints" / "2"}):
        with pytest.raises(UserError, match="2 is damaged"):
            load_params(**arguments, warn=pytest.fail)


def test_importing_and_reading_meta_loads_no_orbax(workdir):
    code = (
        "import sys; from vlm_jax.checkpoint import latest_step, read_meta;"
        f"assert latest_step({str(workdir)!r}) == 2;"
        f"assert read_meta({str(workdir)!r} + '/checkpoints/2')['step'] == 2;"
        "sys.exit('orbax' in sys.modules or 'optax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
