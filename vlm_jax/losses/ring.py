"""The way of the texts past the images: gathered within a group of devices, then around a ring of the groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

FULL_BLOCK = 2048  # texts that keep a matrix unit busy while the next ones arrive


class Ring(NamedTuple):
    """The devices of the flattened mesh axes; `group` consecutive ones make a group, and the groups the ring."""

    axes: tuple[str, ...]
    devices: int
    group: int

    @property
    def groups(self) -> int:
        return self.devices // self.group

    def total(self, x: jax.Array) -> jax.Array:
        """Sum of every device's `x`."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def gather(self, tree):
        """The rows of all devices of the group, in the order of `row_numbers`."""
        if self.group == 1:
            return tree
        if self.groups == 1:
            return jax.tree.map(lambda x: jax.lax.all_gather(x, self.axes, tiled=True), tree)
        return jax.tree.map(self._gather_in_group, tree)

    def scatter_sum(self, x: jax.Array) -> jax.Array:
        """The transpose of `gather`: of values of the whole group, this device's, summed over the group."""
        if 1 < self.group == self.devices:
            return jax.lax.psum_scatter(x, self.axes, tiled=True)
        return self._scatter_in_group(x, jnp.add)

    def scatter_log_sum_exp(self, x: jax.Array) -> jax.Array:
        """As `scatter_sum`, of values that are logarithms."""
        if 1 < self.group == self.devices:
            parts = jax.lax.all_to_all(x.reshape(self.devices, -1), self.axes, 0, 0)
            return jax.nn.logsumexp(parts, axis=0)
        return self._scatter_in_group(x, jnp.logaddexp)

    def go_round(self, visit: Callable, travels, stays, acc):
        """Takes every group's `travels` past every device, and an accumulator of theirs with them and back home.

        `visit(origin, travels, stays, acc) -> (stays, acc)` sees the rows whose home is the group `origin`.

        Returns:
          `stays` after all visits, and the accumulator of this device's own group.
        """
        if self.groups == 1:
            return visit(0, travels, stays, acc)
        here = jax.lax.axis_index(self.axes) // self.group
        to = [(i, (i + self.group) % self.devices) for i in range(self.devices)]
        shift = lambda tree: jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, to), tree)
        # Of full blocks the accumulator follows one hop behind, so that both messages are under way while the
        # products run. Gathered small blocks are bound by their messages whatever overlaps; two hops in one loop
        # body save them the copy of the rows that are used and passed on at once (by 1.5x, TPU's own estimate).
        behind = self.group == 1

        def hop(k, carry):
            stays, travels, acc = carry
            stays, travels = jax.lax.optimization_barrier((stays, travels))
            coming = shift(travels)
            stays, acc = visit((here - k) % self.groups, travels, stays, shift(acc) if behind else acc)
            return stays, coming, acc if behind else shift(acc)

        # Behind the barrier the zeros to start from are values; as constants they become a select in every hop.
        start = jax.lax.optimization_barrier((stays, travels, acc))
        stays, _, acc = jax.lax.fori_loop(0, self.groups, hop, start, unroll=1 if behind else 2)
        return stays, shift(acc) if behind else acc

    def row_numbers(self, batch: int) -> jax.Array:
        """Where in the group's part of the batch the gathered rows are, `batch` of each device."""
        member = jnp.arange(self.group)
        if 1 < self.group < self.devices:
            member = (jax.lax.axis_index(self.axes) - member) % self.group
        return (member[:, None] * batch + jnp.arange(batch)).reshape(-1)

    # An all-gather over groups that are no rectangle of the torus kills the TPU compiler (libtpu 0.0.42, v5e:16x16,
    # devices in snake order), hence neighbour to neighbour: part j of a block is that of the member j places before.

    def _gather_in_group(self, x: jax.Array) -> jax.Array:
        parts = [x]
        for _ in range(self.group - 1):
            parts.append(self._pass_on(parts[-1]))
        return jnp.concatenate(parts)

    def _scatter_in_group(self, x: jax.Array, merge: Callable) -> jax.Array:
        parts = jnp.split(x, self.group)
        total = parts[1 % self.group]
        for j in range(2, self.group + 1):
            total = merge(self._pass_on(total), parts[j % self.group])
        return total

    def _pass_on(self, x: jax.Array) -> jax.Array:
        to = [(i, i - i % self.group + (i + 1) % self.group) for i in range(self.devices)]
        return jax.lax.ppermute(x, self.axes, to)


def choose_group(devices: int, batch: int) -> int:
    """The smallest group whose texts, `batch` to a device, make a full block; all devices if none does."""
    groups = (g for g in range(1, devices + 1) if devices % g == 0 and g * batch >= FULL_BLOCK)
    return next(groups, devices)
