"""What the real TPU compiler makes of a decoder's step, without a TPU: its memory, and what attention costs in a plan.

Needs libtpu, as `tests/losses/test_tpu_compiler.py`.
"""

import jax
import pytest

from vlm_jax.mesh import Layout, batch_sharding
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.models.multimodal import TextDecoder
from vlm_jax.nn import shard
from vlm_jax.partition import shardings
from vlm_jax.plan import hlo, kernels
from vlm_jax.plan.topologies import parse
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.language_model import LanguageModeling

ROWS, LENGTH, VOCAB, WIDTH = 4, 2048, 2**18, 256
LOGITS = LENGTH * VOCAB * 2  # of a device's row, in bf16


@pytest.fixture(scope="module")
def step(tpu):
    """The loss and all gradients of two layers under Fuyu's vocabulary, parameters split over four chips."""
    decoder = LanguageModel(width=WIDTH, depth=2, num_heads=2, mlp_dim=512, vocab_size=VOCAB, length=LENGTH)
    task = LanguageModeling(TextDecoder(decoder), LENGTH)
    layout = Layout(data=1, fsdp=4)
    mesh = layout.make(tpu("v5e:2x2"))
    variables = jax.eval_shape(task.init, jax.random.key(0))
    where = {"params": shardings(variables["params"], layout, mesh, task.stacks)}
    put = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    variables = jax.tree.map(put, variables, where)
    batch = {name: put(x, batch_sharding(mesh)) for name, x in task.batch_spec(ROWS).items()}

    def loss(variables, batch):
        with shard.under(mesh):
            return task.loss(variables, batch, Context(jax.random.key(0), 0, 1, mesh))[0]

    return hlo.read(jax.jit(jax.value_and_grad(loss), out_shardings=(None, where)).lower(variables, batch).compile())


def test_logits_are_never_in_memory(step):
    """They would be 1 GiB a chip. What there is, is the head, which is whole on each chip, and its gradient, in f32.

    The most that is alive at once: the size of the heap depends on the compiler's luck in packing it.
    """
    alive = step.peak - step.arguments - step.outputs
    assert alive < 2.2 * VOCAB * WIDTH * 4 < 0.6 * LOGITS


def test_the_head_is_gathered_once_in_half_precision_and_its_gradient_scattered(step):
    """Twice two bytes would be its embedding gathered as well: its rows are exchanged."""
    sent = step.by_kind()
    whole = VOCAB * WIDTH
    assert whole * 2 <= sent["all-gather"]["bytes"] <= 1.1 * whole * 2
    assert whole * 4 // 4 <= sent["reduce-scatter"]["bytes"] <= 1.1 * whole
    assert sent.get("all-reduce", {"bytes": 0})["bytes"] < 0.05 * whole


def test_attention_is_not_free_in_a_plan(step):
    """Its kernels have no estimate of their own: two products in the forward pass, on 10 tiles of 16."""
    forward = [k for k in step.kernels if k.name.startswith("splash_mqa_fwd")]
    assert {kernels.flops(k) for k in forward} == {2 * 2 * LENGTH**2 * WIDTH * 10 / 16}
    assert all(k.source == kernels.AT_PEAK for k in kernels.times(forward, parse("v5e:2x2")))
