"""What would make a run fit: another remat policy, more microbatches, parameters split over `fsdp`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

from vlm_jax.experiment import Experiment
from vlm_jax.mesh import MOST_WAYS
from vlm_jax.nn.transformer import REMAT
from vlm_jax.plan import subject
from vlm_jax.plan.estimate import Compiler, Estimate
from vlm_jax.plan.subject import Change
from vlm_jax.plan.topologies import Topology
from vlm_jax.tasks.base import is_contrastive

MOST = 6  # variations that are compiled, a pair at a time
# Rows of a device that a microbatch begins with. What a compiler says is needed beyond the memory that there is, is
# after it has computed again what it could: far too low to tell how many microbatches it takes.
ROWS = 128


@dataclasses.dataclass(frozen=True)
class Way:
    """A variation that was tried. `passes` are its forward passes' worth of work: 3 without any recomputation."""

    change: Change
    passes: float
    estimate: Estimate


def passes(experiment: Experiment, remat: str, microbatches: int) -> float:
    """Forward passes a step is worth: one forward and a backward of two, and what is computed again.

    Cached features cost one more (`vlm_jax.accumulate.cached`); "block" computes almost a forward pass again.
    """
    again = {"none": 0.0, "attention": 0.15, "mlp": 0.33}.get(remat, 1.0)
    cached = 1.0 if microbatches > 1 and is_contrastive(experiment.task) else 0.0
    return 3.0 + again + cached


def search(
    compiler: Compiler, experiment: Experiment, topology: Topology, first: Estimate, say: Callable[[str], None]
) -> list[Way]:
    """Ways that fit, the least work first; compiles at low effort, and stops at the first that fits."""
    tried: dict[Change, Way] = {}
    limit = first.compiled.limit
    for change in _candidates(experiment, topology, first, tried, limit):
        if len(tried) >= MOST:
            break
        work = passes(experiment, change.remat or subject.remat_of(experiment), change.microbatches or 1)
        estimate = compiler(change, coarse=True)
        tried[change] = Way(change, work, estimate)
        needs = f"{estimate.needed / 2**30:.1f} GiB" if estimate.needed else "more than there is"
        named = " ".join(change.overrides(experiment)) or "as configured"
        say(f"tried {named}: {'fits' if estimate.fits else 'does not fit'}, {needs}")
        if estimate.fits:
            break
    return sorted((way for way in tried.values() if way.estimate.fits), key=lambda way: way.passes)


def _candidates(
    experiment: Experiment, topology: Topology, first: Estimate, tried: dict[Change, Way], limit: int
) -> Iterator[Change]:
    """In the order of the work they add; the number of microbatches follows what was needed so far."""
    values = first.compiled.values
    state = sum(values.get(name, 0.0) for name in ("params", "opt", "ema"))
    sizes = experiment.mesh.sizes(topology.size)
    now, fsdp = sizes["fsdp"], split(sizes, topology, state, limit)
    needed = first.needed or 8 * limit
    excess = (needed - state) / max(1.0, 0.9 * limit - state * now / (fsdp or now))
    stronger = policies(experiment)
    if fsdp:
        yield Change(fsdp=fsdp)
    if excess < 8:
        for policy in stronger:
            yield Change(remat=policy, fsdp=fsdp)
    rows = experiment.batch_size // topology.size / experiment.microbatches
    parts = experiment.microbatches * 2 ** max(1, math.ceil(math.log2(max(1.0, excess, rows / ROWS))))
    for policy in (None, *stronger):
        while allowed(experiment, topology, parts):
            change = Change(remat=policy, microbatches=parts, fsdp=fsdp)
            yield change
            more = tried[change].estimate.needed
            if more and more > 2 * limit and policy is None:
                break  # a policy that keeps less saves compiles
            parts *= 2


def policies(experiment: Experiment) -> list[str]:
    """Those that keep less than some tower does now; the kernels that bf16 runs with keep no weights of attention."""
    towers = list(subject.towers(experiment.task))
    now = min(REMAT.index(tower.remat) for tower in towers)
    half = all(tower.dtype == "bfloat16" for tower in towers)
    return [policy for policy in REMAT[now + 1 :] if not (half and policy == "attention")]


def allowed(experiment: Experiment, topology: Topology, parts: int) -> bool:
    """Whether the batch divides into so many microbatches of at least 8 rows a device."""
    rows = experiment.batch_size // topology.size
    return experiment.batch_size % (parts * topology.size) == 0 and rows // parts >= 8


def split(sizes: Mapping[str, int], topology: Topology, state: float, limit: int) -> int | None:
    """Ways to split parameters and what goes with them, of which a device has `state` bytes on a mesh of these sizes.

    As many as a free mesh has (`mesh.MOST_WAYS`), all that a slice has where that is too few; None where the state is
    not what takes the memory, or is split as much already.
    """
    tensor, now, chips = sizes["tensor"], sizes["fsdp"], math.prod(topology.shape)
    most = math.gcd(chips // math.gcd(chips, tensor), topology.size // tensor)
    few = math.gcd(most, MOST_WAYS)
    ways = few if state * now / few <= limit / 4 else most
    return ways if ways > now and state > limit / 4 else None
