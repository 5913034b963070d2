"""`python -m tests.sharding_program DEPTH FSDP TENSOR`: messages of a step of So400m on v5e:16x16, as JSON.

A process of its own, for libtpu describes one topology a process. Gives bytes and counts by kind, the bytes of the
parameters of one block of each tower, and the compiler's temporaries.
"""

import json
import math
import os
import sys

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies

from vlm_jax import mesh as meshes
from vlm_jax import tree
from vlm_jax.mesh import Layout
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT
from vlm_jax.plan import hlo
from vlm_jax.state import TrainState
from vlm_jax.step import StepOptions, make_train_step
from vlm_jax.tasks.contrastive import Contrastive

PAIRS = 16  # a chip; messages of parameters do not depend on it, those of activations over `tensor` do


def main(depth: int, fsdp: int, tensor: int) -> dict:
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16").devices
    tower = {"size": "So400m", "depth": depth, "scan": True, "remat": "block"}
    model = TwoTower(image=ViT(**tower, patch_size=14), text=TextTransformer(**tower, pool="last", out_dim=1152))
    task, layout = Contrastive(model), Layout(fsdp=fsdp, tensor=tensor)
    mesh = layout.make(devices)
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(mu_dtype="bfloat16"))
    opt = jax.eval_shape(tx.init, params)
    places = meshes.shardings(params, layout, mesh, task.stacks)
    whole = meshes.replicated(mesh)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, {}, {}, opt, {})
    where = TrainState(whole, places, {}, {}, meshes.follow(opt, params, places, mesh), {})
    state = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, where)
    rows = meshes.batch_sharding(mesh)
    batch = task.batch_spec(PAIRS * meshes.batch_devices(mesh))
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=rows) for k, v in batch.items()}
    update = make_train_step(task, tx, lambda step: jnp.float32(1e-3), mesh, StepOptions(1000))
    # Least effort: it schedules worse, and sends the same.
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    program = hlo.read(jax.jit(update, donate_argnums=0, out_shardings=(where, None)).lower(state, batch).compile())
    blocks = {name: leaf for name, leaf in tree.flatten(params).items() if "/blocks/" in name}
    return {
        "collectives": [[c.kind, c.count, c.bytes, c.groups, c.operation] for c in program.collectives],
        "block_parameters": sum(math.prod(leaf.shape[1:]) for leaf in blocks.values()),
        "temporaries": program.temporaries,
    }


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
