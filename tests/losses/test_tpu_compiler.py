"""What the real TPU compiler makes of the losses, without a TPU: memory, collectives, and its estimate of the cycles.

Needs libtpu (`pip install "libtpu==0.0.42.*"` for jax 0.10.2), which compiles for any number of chips on a CPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import codebook, cross_entropy, gumbel_softmax, infonce_loss, nearest_code, sigmoid_loss
from vlm_jax.plan import hlo
from vlm_jax.ring import ring_order

DIM = 768
FLOPS_A_CYCLE = {"v5e": 197e12 / 1.5e9}  # peak bf16 of a chip by its clock
MIB = 2**20


def compiled(loss, devices, batch: int, scalars: int, **options):
    """The program of a contrastive loss with all its gradients, bf16 features split over all devices."""
    mesh = Mesh(np.array(ring_order(devices)), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda *a: loss(*a, axis_name="data", **options),
        mesh=mesh,
        in_specs=(P("data"), P("data"), *(P(),) * scalars),
        out_specs=P(),
    )
    features = jax.ShapeDtypeStruct((batch, DIM), jnp.bfloat16, sharding=NamedSharding(mesh, P("data")))
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    gradients = jax.jit(jax.value_and_grad(mapped, tuple(range(2 + scalars))))
    return gradients.lower(features, features, *(number,) * scalars).compile()


def floor(chip: str, batch: int, devices: int, products: int) -> float:
    """Cycles of so many products of a device's rows with the whole batch, at peak."""
    return products * 2 * (batch / devices) * batch * DIM / FLOPS_A_CYCLE[chip]


@pytest.mark.full
def test_sigmoid_of_a_million_pairs(tpu):
    """A plain all-gather does not fit in the chip; a differentiated ring takes 1,723 MiB and 1.8 x the floor."""
    program = compiled(sigmoid_loss, tpu("v5e:16x16"), 2**20, scalars=2)
    found = hlo.read(program)
    assert found.temporaries <= 16 * MIB
    kinds = found.by_kind()
    assert set(kinds) == {"collective-permute", "all-reduce"}
    assert kinds["collective-permute"]["asynchronous"] == kinds["collective-permute"]["count"] > 0
    assert found.cycles <= 1.2 * floor("v5e", 2**20, 256, products=3)


@pytest.mark.full
def test_sigmoid_of_small_local_batches(tpu):
    program = compiled(sigmoid_loss, tpu("v5e:16x16"), 2**15, scalars=2)
    assert hlo.read(program).cycles <= 3 * floor("v5e", 2**15, 256, products=3)


@pytest.mark.full
def test_infonce(tpu):
    """Dense, it takes 1,120 MiB."""
    program = compiled(infonce_loss, tpu("v6e:16x16"), 2**17, scalars=1)
    found = hlo.read(program)
    assert found.temporaries <= 8 * MIB
    assert "all-gather" not in found.by_kind()


@pytest.mark.full
@pytest.mark.parametrize("loss, scalars", [(sigmoid_loss, 2), (infonce_loss, 1)])
def test_memory_does_not_grow_with_the_number_of_chips(tpu, loss, scalars):
    few, many = (compiled(loss, tpu(name), 512 * n, scalars) for name, n in (("v5e:4x8", 32), ("v5e:16x16", 256)))
    assert few.memory_analysis().temp_size_in_bytes == many.memory_analysis().temp_size_in_bytes
    assert few.memory_analysis().peak_memory_in_bytes == many.memory_analysis().peak_memory_in_bytes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.full)])
def test_cross_entropy_over_a_large_vocabulary(tpu, dtype):
    """8,192 tokens, 262,144 entries: the logits would be 8 GiB, and an f32 embedding cast at once 384 MiB."""
    sharding = NamedSharding(Mesh(np.array(tpu("v5e:1x1")), ("data",)), P())
    shapes = [((8192, DIM), jnp.bfloat16), ((262144, DIM), dtype), ((8192,), jnp.int32)]
    gradients = jax.jit(jax.value_and_grad(cross_entropy, (0, 1)))
    program = gradients.lower(*(jax.ShapeDtypeStruct(*s, sharding=sharding) for s in shapes)).compile()
    assert hlo.read(program).temporaries <= 200 * MIB


TOKENS, CODES = 256 * 1024, 16_384  # 256 images of 1024 tokens: distances, or weights, of all pairs would be 16 GiB


def temporaries(f, device, *shapes) -> int:
    sharding = NamedSharding(Mesh(np.array(device), ("data",)), P())
    arguments = (jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes)
    return hlo.read(jax.jit(f).lower(*arguments).compile()).temporaries


def test_nearest_code(tpu):
    shapes = ((TOKENS, 256), jnp.float32), ((CODES, 256), jnp.float32)
    assert temporaries(nearest_code, tpu("v5e:1x1"), *shapes) <= 300 * MIB


@pytest.mark.full
def test_codebook_update(tpu):
    def update(embedding, count, z, codes):
        return codebook.update({"embedding": embedding, "count": count, "sum": embedding}, z, codes)

    shapes = ((CODES, 256), jnp.float32), ((CODES,), jnp.float32), ((TOKENS, 256), jnp.float32), ((TOKENS,), jnp.int32)
    assert temporaries(update, tpu("v5e:1x1"), *shapes) <= 300 * MIB


def gumbel_softmax_and_gradients(tpu, tokens: int, codes: int, **options) -> int:
    """Temporaries. A small tile compiles fast, and takes as many rounds."""

    def forward_and_backward(hidden, head, bias, codebook, temperature, key, d_vectors, d_kl):
        def relaxed(*arguments):
            found = gumbel_softmax(*arguments, jax.random.wrap_key_data(key), **options)
            return (found.vectors, found.kl), found.codes

        found, pullback, codes = jax.vjp(relaxed, hidden, head, bias, codebook, temperature, has_aux=True)
        return found, codes, pullback((d_vectors, d_kl))

    shapes = [((tokens, 256), jnp.bfloat16), ((codes, 256), jnp.float32), ((codes,), jnp.float32)]
    shapes += [((codes, 128), jnp.float32), ((), jnp.float32), ((2,), jnp.uint32)]
    shapes += [((tokens, 128), jnp.bfloat16), ((tokens,), jnp.float32)]
    return temporaries(forward_and_backward, tpu("v5e:1x1"), *shapes)


@pytest.mark.full
@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_softmax_with_its_gradients(tpu, hard):
    assert gumbel_softmax_and_gradients(tpu, TOKENS, CODES, hard=hard) <= 300 * MIB


def test_gumbel_softmax_of_fewer_tokens_and_codes(tpu):
    """The weights would be 256 MiB, more than the vector memory of a chip."""
    assert gumbel_softmax_and_gradients(tpu, TOKENS // 16, CODES // 4, tile=(128, 256)) <= 16 * MIB
