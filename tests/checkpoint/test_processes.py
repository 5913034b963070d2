"""Two processes of four devices: each writes and reads its shards, and both go back to the same step."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = """
import os, sys
index, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, index)
import numpy as np
from jax.experimental import multihost_utils
from tests.checkpoint.small_runs import META, STACKS, make_items, over, shapes
from tests.checkpoint.test_damage import flips_everywhere
from pathlib import Path
from vlm_jax.checkpoint import Store

place = over(data=2, fsdp=4)

def spread(step):
    host = jax.tree.map(np.asarray, make_items(step))
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, place(x), lambda at: x[at]), host)

abstract, lines = shapes(make_items(), place), []
with Store(workdir, stacks=STACKS) as store:
    for step in (1, 2):
        store.save(step, spread(step), META)
multihost_utils.sync_global_devices("saved")
if index == 0:
    flips_everywhere(Path(workdir) / "checkpoints" / "2")
multihost_utils.sync_global_devices("damaged")
with Store(workdir, stacks=STACKS, warn=lines.append) as store:
    step, items, _ = store.restore_latest(abstract)
    assert step == 1 and len(lines) == 1, (step, lines)
    wanted = jax.tree.leaves(jax.tree.map(np.asarray, make_items(1)))
    for leaf, host in zip(jax.tree.leaves(items), wanted, strict=True):
        for shard in leaf.addressable_shards:
            assert np.asarray(shard.data).tobytes() == host[shard.index].tobytes()
    store.save(2, spread(2), META)
assert Store(workdir, stacks=STACKS).restore_latest(abstract)[0] == 2
print("done")
"""


@pytest.mark.full
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    arguments = [[sys.executable, "-c", PROCESS, str(index), port, str(tmp_path)] for index in (0, 1)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": Path(__file__).parents[2]}
    processes = [subprocess.Popen(command, **pipes) for command in arguments]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(output.rstrip().endswith("done") for output in outputs), "\n".join(outputs)
    assert (tmp_path / "checkpoints" / "2.damaged").is_dir()
