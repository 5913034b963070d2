"""Vector quantisation: the nearest of the vectors of a codebook, or a sum of several."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax import losses
from vlm_jax.errors import UserError
from vlm_jax.losses import codebook
from vlm_jax.models.bottlenecks.base import Axes, Bottleneck, Moment, Passed, State, project, projections
from vlm_jax.nn.functional import Params


@dataclasses.dataclass(frozen=True)
class VectorQuantiser(Bottleneck):
    """VQ-VAE's bottleneck (van den Oord et al. 2017, arXiv:1711.00937), with one codebook of running means a stage.

    State: that of `losses.codebook`, stacked over the stages, and `started`.

    Attributes:
      size, dim: codes, and their width.
      quantisers: stages, of which each quantises what those before it left over (residual VQ); 1 is plain VQ.
      beta: weight of the commitment loss.
      decay: of the running means.
      revive: a code that is used less often than this in a batch, by the running mean, is moved to a feature of the
        batch; 0 never. Of the mean use of a code in the first batch no more than this should be asked.
      kmeans: iterations of k-means over the first batch, from which the codebook starts; 0 for random codes.
      cosine: codes are compared by their angle.
      gradient: "straight_through" or "rotation", see `losses.quantise`.
    """

    size: int = 1024
    dim: int = 64
    quantisers: int = 1
    beta: float = 0.25
    decay: float = 0.99
    revive: float = 0.0
    kmeans: int = 0
    cosine: bool = False
    gradient: Literal["straight_through", "rotation"] = "straight_through"

    def __post_init__(self):
        for field in ("size", "dim", "quantisers"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 1.")
        if not 0 < self.decay < 1 or min(self.beta, self.revive, self.kmeans) < 0:
            raise UserError(
                f"decay={self.decay}, beta={self.beta}, revive={self.revive}, kmeans={self.kmeans}: wanted are "
                "0 < decay < 1, and no other below 0."
            )
        if self.cosine and self.quantisers > 1:
            raise UserError(f"cosine=True compares directions, of which quantisers={self.quantisers} cannot be summed.")

    @property
    def vocab_size(self) -> int:
        """Codes of a codebook."""
        return self.size

    @property
    def stages(self) -> int | None:
        """Codes that each place has, where they are several."""
        return self.quantisers if self.quantisers > 1 else None

    def init(self, key: Array, in_dim: int, out_dim: int) -> Params:
        """`in` and `out`: to the width of the codes and from it."""
        return projections(key, in_dim, (self.dim, self.dim), out_dim)

    def init_state(self, key: Array) -> State:
        """Codebooks as VQGAN starts them."""
        keys = jax.random.split(key, self.quantisers)
        books = jax.vmap(lambda key: codebook.init(key, self.size, self.dim))(keys)
        return {**books, "started": jnp.zeros((), bool)}

    def apply(self, params: Params, state: State, x: Float[Array, "tokens in_dim"], at: Moment) -> Passed:
        """See `Bottleneck.apply`. In training the codebooks of the next step are in the state."""
        z = project(params["in"], x)
        books = {name: state[name] for name in ("embedding", "count", "sum")}
        if at.train and self.kmeans:
            begin = lambda: self._started(z, at)
            books = jax.lax.cond(state["started"], lambda: books, begin)
        found = self._quantised(z, books)
        weighed = {}
        if at.train:
            commitment = losses.vq_losses(found.z, found.nearest, axis_name=at.axis_name)[1]
            weighed = {"commitment": (self.beta, commitment)}
            books = self._learned(books, found, at)
            state = {**books, "started": jnp.ones((), bool)}
        used, perplexity = codebook.usage(
            codebook.count_codes(self._first(found.codes), self.size, axis_name=at.axis_name)
        )
        vectors = project(params["out"], found.vectors).astype(x.dtype)
        return Passed(vectors, found.codes, weighed, state, {"codes_used": used, "perplexity": perplexity})

    def codes(self, params: Params, state: State, x: Float[Array, "tokens in_dim"]) -> Int[Array, "tokens *stages"]:
        """The nearest code of each feature, one a stage where there are several."""
        return self._quantised(project(params["in"], x), state).codes

    def vectors(self, params: Params, state: State, codes: Int[Array, "tokens *stages"]) -> Float[Array, "tokens dim"]:
        """The codes' vectors as the decoder gets them, f32."""
        if self.quantisers > 1:
            found = losses.residual_vectors(state["embedding"], codes)
        else:
            found = losses.look_up(state["embedding"][0], codes)
            found = losses.unit(found) if self.cosine else found
        return project(params["out"], found)

    def _first(self, codes: Int[Array, "tokens *stages"]) -> Int[Array, "tokens"]:
        return codes[:, 0] if self.quantisers > 1 else codes

    def _quantised(self, z: Float[Array, "tokens dim"], books: State) -> losses.Quantised:
        if self.quantisers > 1:
            return losses.residual_vq(z, books["embedding"], gradient=self.gradient)
        return losses.quantise(z, books["embedding"][0], gradient=self.gradient, cosine=self.cosine)

    def _started(self, z: Float[Array, "tokens dim"], at: Moment) -> State:
        """k-means of each stage over what those before it left over."""
        books = []
        for stage in range(self.quantisers):
            rows = losses.unit(z) if self.cosine else z
            key = jax.random.fold_in(at.key, stage)
            book = codebook.kmeans(rows, key, self.size, iterations=self.kmeans, axis_name=at.axis_name)
            z = z - losses.look_up(book["embedding"], losses.nearest_code(z, book["embedding"]))
            books.append(book)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *books)

    def _learned(self, books: State, found: losses.Quantised, at: Moment) -> State:
        z, codes = (found.z, found.codes.T) if self.quantisers > 1 else (found.z[None], found.codes[None])
        learned = []
        for stage in range(self.quantisers):
            book = {name: leaf[stage] for name, leaf in books.items()}
            learned.append(
                self._one_learned(book, z[stage], codes[stage], jax.random.fold_in(at.key, stage), at.axis_name)
            )
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *learned)

    def _one_learned(self, book: State, z: Array, codes: Array, key: Array, axis_name: Axes) -> State:
        book = codebook.update(book, z, codes, decay=self.decay, axis_name=axis_name)
        return codebook.revive(book, z, key, threshold=self.revive, axis_name=axis_name) if self.revive else book
