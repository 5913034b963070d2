"""The order of a source's examples: a permutation that is a pure function of (seed, name, epoch), in O(1) memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math

import numpy as np
from jaxtyping import Int64

# Four rounds of a Feistel network with random functions are indistinguishable from a random permutation of a large set
# (Luby and Rackoff 1988). Twelve make the orders of five elements equally likely too.
ROUNDS = 12


@dataclasses.dataclass(frozen=True)
class Permutation:
    """A permutation of range(n): a keyed Feistel network on an a x b grid just larger than n.

    Positions are (left, right) in range(a) x range(b), and each round adds a hash of one half to the other, modulo its
    size. What lands outside range(n) is sent through again until it lands inside ("cycle walking", Black and Rogaway
    2002), which is rare: a x b < n + a with a about sqrt(n).

    Attributes:
      n: how many.
      keys: one 64-bit number a round.
    """

    n: int
    keys: tuple[int, ...]

    def __call__(self, positions: Int64[np.ndarray, "k"]) -> Int64[np.ndarray, "k"]:
        """Indices at positions of the order, both in range(n)."""
        return self._walk(positions, self._forward)

    def inverse(self, indices: Int64[np.ndarray, "k"]) -> Int64[np.ndarray, "k"]:
        """Positions at which indices stand."""
        return self._walk(indices, self._backward)

    @property
    def _sides(self) -> tuple[np.uint64, np.uint64]:
        a = math.isqrt(self.n - 1) + 1
        a += a % 2  # sums modulo odd sides are even permutations: half of all would never occur
        return np.uint64(a), np.uint64(-(-self.n // a))

    def _walk(self, values, step) -> np.ndarray:
        values = np.array(values, np.int64).reshape(-1)
        if values.size and not (0 <= values.min() and values.max() < self.n):
            raise IndexError(f"positions must lie in range({self.n})")
        out = step(values.astype(np.uint64))
        while (outside := out >= np.uint64(self.n)).any():
            out[outside] = step(out[outside])
        return out.astype(np.int64)

    def _forward(self, values: np.ndarray) -> np.ndarray:
        a, b = self._sides
        left, right = np.divmod(values, b)
        for i, key in enumerate(self.keys):
            if i % 2 == 0:
                left = (left + _hash(right, key) % a) % a
            else:
                right = (right + _hash(left, key) % b) % b
        return left * b + right

    def _backward(self, values: np.ndarray) -> np.ndarray:
        a, b = self._sides
        left, right = np.divmod(values, b)
        for i, key in reversed(list(enumerate(self.keys))):
            if i % 2 == 0:
                left = (left + a - _hash(right, key) % a) % a
            else:
                right = (right + b - _hash(left, key) % b) % b
        return left * b + right


def _hash(values: np.ndarray, key: int) -> np.ndarray:
    """A keyed 64-bit mix: the finaliser of splitmix64 (Steele et al. 2014)."""
    values = values ^ np.uint64(key)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=256)
def permutation(n: int, *, seed: int, name: str, epoch: int) -> Permutation:
    """The order of the `n` examples of source `name` in an epoch."""
    if n < 1:
        raise ValueError(f"a permutation of {n} elements")
    digest = hashlib.shake_256(f"{seed}\0{name}\0{epoch}".encode()).digest(8 * ROUNDS)
    return Permutation(n, tuple(np.frombuffer(digest, "<u8").tolist()))
