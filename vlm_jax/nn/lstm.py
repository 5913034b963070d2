"""An LSTM that looks at a context before each of its steps (Xu et al. 2015, arXiv:1502.03044, section 3.1.2)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import lecun_normal, orthogonal
from jaxtyping import Array, Float, Int

from vlm_jax.nn.embed import take_rows
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import linear

# `h` and `c`, the LSTM's, and of each row's context the features and what attention compares them by.
State = dict[str, Array]


class AttentionLstm(nnx.Module):
    """Soft attention with a gate, one LSTM, and the paper's deep output (equation 7).

    Args:
      width: of the LSTM's state.
      embed_dim: of token embeddings, and of what the head is applied to.
      attention_dim: of the perceptron that scores features.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        embed_dim: int,
        context_width: int,
        attention_dim: int,
        *,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        layer = functools.partial(linear, init=lecun_normal(), dtype=dtype, rngs=rngs)
        self.token = nnx.Param(init.token(rngs.params(), (vocab_size, embed_dim)))
        self.init_h, self.init_c = layer(context_width, width), layer(context_width, width)
        self.of_context = layer(context_width, attention_dim)
        self.of_state = layer(width, attention_dim, bias=False)
        self.score = layer(attention_dim, 1, bias=False)
        self.gate = layer(width, 1)
        self.of_input = layer(embed_dim + context_width, 4 * width)
        self.of_hidden = linear(width, 4 * width, bias=False, init=orthogonal(), dtype=dtype, rngs=rngs)
        self.out_h, self.out_z = layer(width, embed_dim), layer(context_width, embed_dim, bias=False)
        self.dtype = dtype

    def start(self, context: Float[Array, "batch context context_dim"]) -> State:
        """The state before the first token, made from the mean of the features."""
        mean = context.mean(axis=1)
        first = {"h": jnp.tanh(self.init_h(mean)), "c": jnp.tanh(self.init_c(mean)).astype(jnp.float32)}
        return first | {"context": context, "keys": self.of_context(context)}

    def extend(
        self, text: Int[Array, "batch time"], state: State, count: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time embed_dim"], State]:
        """What the head is applied to, of each token, and the state after the first `count` of each row."""
        held = {name: state[name] for name in ("context", "keys")}

        def step(moving, inputs):
            token, index = inputs
            h, c, out = self._step(token, moving["h"], moving["c"], **held)
            goes_on = (index < count)[:, None]
            return {"h": jnp.where(goes_on, h, moving["h"]), "c": jnp.where(goes_on, c, moving["c"])}, out

        tokens = take_rows(self.token[...], text, self.dtype).astype(self.dtype).swapaxes(0, 1)
        moving, out = jax.lax.scan(step, {"h": state["h"], "c": state["c"]}, (tokens, jnp.arange(text.shape[1])))
        return out.swapaxes(0, 1), moving | held

    def _step(self, token: Array, h: Array, c: Array, context: Array, keys: Array) -> tuple[Array, Array, Array]:
        logits = self.score(jnp.tanh(keys + self.of_state(h)[:, None]))[..., 0]
        weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(context.dtype)
        z = jax.nn.sigmoid(self.gate(h)) * jnp.einsum("bs,bsd->bd", weights, context)
        gates = self.of_input(jnp.concatenate([token, z], axis=-1)) + self.of_hidden(h)
        enter, forget, out, new = jnp.split(gates.astype(jnp.float32), 4, axis=-1)
        c = jax.nn.sigmoid(forget + 1) * c + jax.nn.sigmoid(enter) * jnp.tanh(new)  # at first it forgets little
        h = (jax.nn.sigmoid(out) * jnp.tanh(c)).astype(token.dtype)
        return h, c, token + self.out_h(h) + self.out_z(z)
