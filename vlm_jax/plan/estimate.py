"""Many compiles at a time, and a whole model from compiles of few layers.

Where layers are unrolled a compile takes as long as the model is deep, and everything that is counted here is linear
in depth: cycles, memory, messages, kernels. So towers of 2 and of 3 layers tell what one of 12 takes, with one more
compile for each other depth. At low effort, where only memory and messages are asked for, 1 and 2 layers do.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vlm_jax.errors import UserError
from vlm_jax.experiment import Experiment
from vlm_jax.plan import subject
from vlm_jax.plan.compile import Compiled, Request
from vlm_jax.plan.subject import Change


def shallow(coarse: bool) -> int:
    """Layers of the towers that are compiled first."""
    return 1 if coarse else 2


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the whole model needs and takes.

    Attributes:
      compiled: of the whole program, or extrapolated to it; `cached` where every part of it was.
      source: where the numbers come from, in words. extrapolated, coarse: the same for programs.
    """

    compiled: Compiled
    source: str
    extrapolated: bool
    coarse: bool

    @property
    def needed(self) -> int | None:
        """Bytes of a device's memory; None where the compiler gave up for another reason."""
        return self.compiled.needed

    @property
    def fits(self) -> bool:
        c = self.compiled
        return not c.error and (not c.limit or (c.needed or 0) <= c.limit)


@dataclasses.dataclass(frozen=True)
class Compiler:
    """Compiles variations of one experiment for one topology, `parallel` at a time."""

    experiment: Experiment
    config: str
    topology: str
    cache: str | None
    parallel: int = 2

    def __call__(self, change: Change = Change(), *, coarse: bool = False, whole: bool = False) -> Estimate:
        """Raises UserError where the change does not fit the machine, or the compiler is not installed."""
        return self.several([change], coarse=coarse, whole=whole)[0]

    def several(self, changes: Sequence[Change], *, coarse: bool = False, whole: bool = False) -> list[Estimate]:
        """One estimate for each change; all their compiles share the processes."""
        plans = [self._parts(change, coarse, whole) for change in changes]
        requests = [self._request(part, coarse) for parts in plans for part in parts]
        with concurrent.futures.ThreadPoolExecutor(self.parallel) as pool:
            answers = iter(list(pool.map(_compile, requests)))
        return [self._join(change, [next(answers) for _ in parts], coarse) for change, parts in zip(changes, plans)]

    def depths(self, change: Change) -> list[int]:
        """Depths that are extrapolated to."""
        unrolled = subject.unrolled_depths(subject.apply(self.experiment, change))
        return [depth for depth in unrolled if depth > shallow(False) + 1]

    def _parts(self, change: Change, coarse: bool, whole: bool) -> list[Change]:
        depths, few = self.depths(change), shallow(coarse)
        if whole or not depths:
            return [change]
        base = [(depth, few) for depth in depths]
        deeper = [[(d, few + (d == depth)) for d in depths] for depth in depths]
        return [dataclasses.replace(change, depths=tuple(part)) for part in (base, *deeper)]

    def _request(self, change: Change, coarse: bool) -> Request:
        return Request(self.config, self.topology, change, coarse, self.cache)

    def _join(self, change: Change, found: list[Compiled], coarse: bool) -> Estimate:
        effort = ", at low effort" if coarse else ""
        cached = " (compiled before)" if all(c.cached for c in found) else ""
        if len(found) == 1:
            (only,) = found
            needed = only.needed if only.error else int(_used(only))
            return Estimate(dataclasses.replace(only, needed=needed), f"compiled whole{effort}{cached}", False, coarse)
        depths = self.depths(change)
        few = shallow(coarse)
        source = f"extrapolated from {few} and {few + 1} layers{effort}{cached}"
        return Estimate(extrapolate(found[0], dict(zip(depths, found[1:])), few), source, True, coarse)


def extrapolate(base: Compiled, deeper: dict[int, Compiled], few: int = 2) -> Compiled:
    """From towers of `few` layers, and for each depth that there is, from those towers with one layer more."""
    parts = [base, *deeper.values()]
    failed = next((c for c in parts if c.error), None)
    linear = lambda get: get(base) + sum((d - few) * (get(c) - get(base)) for d, c in deeper.items())
    if failed:
        needed = None
        if all(c.needed for c in parts):
            needed = int(linear(lambda c: c.needed))
        return dataclasses.replace(failed, needed=needed)
    names = dict.fromkeys(name for c in parts for name in c.values)
    values = {name: max(0.0, linear(lambda c, n=name: c.values.get(n, 0.0))) for name in names}
    kernels = dict.fromkeys(name for c in parts for name in c.kernels)
    of = lambda name, i: lambda c: c.kernels.get(name, (0.0, 0.0))[i]
    kernels = {name: [max(0.0, linear(of(name, i))) for i in range(2)] for name in kernels}
    whole = Compiled(
        error="",
        needed=None,
        limit=base.limit,
        values=values,
        kernels={name: total for name, total in kernels.items() if total[0] > 0},
        seconds=sum(c.seconds for c in parts),
        cached=all(c.cached for c in parts),
        options=base.options,
    )
    return dataclasses.replace(whole, needed=int(_used(whole)))


def _used(compiled: Compiled) -> float:
    from vlm_jax.plan.compile import used

    return used(compiled.values)


def _compile(request: Request) -> Compiled:
    """In a process of its own; one that dies is a compiler that refuses."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "vlm_jax.plan.compile", str(answer)],
            input=request.to_json(),
            env=os.environ | request.environment,
            capture_output=True,
            text=True,
        )
        if 0 < done.returncode < 128 and not answer.is_file():  # beyond, a signal ended it
            raise RuntimeError(f"the process that compiles failed:\n{done.stderr[-4000:]}")
        if not answer.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            fatal = next((line for line in lines if "Check fail" in line or line.startswith("F0")), lines[-1])
            return Compiled(f"the compiler ended itself: {fatal.strip()[:300]}", None, 0, {}, {}, 0.0, False, {})
        text = answer.read_text()
    if done.returncode == 2:
        raise UserError(json.loads(text)["user_error"])
    return Compiled.from_json(text)
