"""Contrast and captioning together (CoCa: Yu et al. 2022, arXiv:2205.01917, equation 4)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling
from vlm_jax.models.coca import CoCa
from vlm_jax.nn import shard
from vlm_jax.tasks import captions, next_token
from vlm_jax.tasks.base import Batch, Context, Variables
from vlm_jax.tasks.contrastive import Contrastive


@dataclasses.dataclass(frozen=True)
class Captioning(Contrastive):
    """`contrastive_weight` times a contrastive loss, and `caption_weight` times the captions' cross-entropy.

    A caption is predicted token by token, each from the image and the tokens before it; padding does not count. The
    first token is given, so texts should begin with one of their own (`Text.bos`).

    Attributes (besides those of `Contrastive`):
      contrastive_weight, caption_weight: the paper's are 1 and 2; 0 leaves a loss out.
      z_loss: see `losses.cross_entropy`.
      bos_id: the tokenizer's, with which captions are begun that have no other prompt.
      sampling: how captions are written; they stop at the text tower's end token unless it says otherwise.
    """

    model: CoCa
    objective: Literal["sigmoid", "infonce"] = "infonce"
    contrastive_weight: float = 1.0
    caption_weight: float = 2.0
    z_loss: float = 0.0
    bos_id: int | None = None
    sampling: Sampling = Sampling()

    def validate(self) -> None:
        super().validate()
        weights = self.contrastive_weight, self.caption_weight
        if min(weights) < 0 or not any(weights):
            raise UserError(
                f"contrastive_weight={weights[0]}, caption_weight={weights[1]}: wanted is at least 0, and not both 0."
            )
        if self.model.text.length < 2:
            raise UserError(
                f"model.text.length={self.model.text.length}: a caption of one token has nothing to be predicted."
            )

    def check_run(self, experiment: Any) -> None:
        """See `Task.check_run`."""
        if self.caption_weight:
            captions.check_begin(experiment)

    def features(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[dict[str, Array], dict]:
        """Unit-norm embeddings `image` and `text` [batch, dim]; `caption`, each row's part of the captions' loss, and
        `tokens`, how many tokens of each were predicted, both f32 [batch]."""
        keys = ctx.row_keys(batch["text"].shape[0])
        image, image_aux = self.model.encode_image(variables, batch["image"], train=ctx.train, key=keys)
        text, text_aux = self.model.encode_text(variables, batch["text"], train=ctx.train, key=keys)
        features = {"image": image, "text": text}
        if self.caption_weight:
            hidden = self.model.decode(variables, image_aux["tokens"], text_aux["tokens"][:, :-1])
            labels = self.labels(batch["text"])
            mean = next_token.mean_loss(hidden, self.model.head(variables), labels, ctx.mesh, z_loss=self.z_loss)
            tokens = (labels != next_token.IGNORED).sum(axis=1, dtype=jnp.float32)
            # Rows of microbatches are put together again: equal parts of the sum over all tokens of one.
            features |= {"caption": jnp.broadcast_to(mean * tokens.mean(), tokens.shape), "tokens": tokens}
        return features, {"metrics": {}, "state": variables.get("state", {})}

    def labels(self, text: Int[Array, "batch time"]) -> Int[Array, "batch time_less_one"]:
        """The token after each, where it is not padding."""
        return jnp.where(self.model.text.real(text), text, next_token.IGNORED)[:, 1:]

    def feature_loss(
        self, variables: Variables, features: dict[str, Array], batch: Batch, ctx: Context
    ) -> tuple[Float[Array, ""], dict]:
        """The weighted sum, over the whole batch on all devices; each loss is a metric."""
        loss, metrics, state = jnp.float32(0), {}, variables.get("state", {})
        if self.contrastive_weight:
            contrastive, aux = super().feature_loss(variables, features, batch, ctx)
            loss += self.contrastive_weight * contrastive
            metrics |= {**aux["metrics"], "contrastive_loss": contrastive}
        if self.caption_weight:
            caption = features["caption"].sum() / jnp.maximum(features["tokens"].sum(), 1)
            loss += self.caption_weight * caption
            metrics["caption_loss"] = caption
        return loss, {"metrics": metrics, "state": state}

    def predict(self, variables: Variables) -> dict[str, Callable]:
        """Those of `Contrastive`, and `log_likelihood(uint8 [n, H, W, 3], int32 [n, L])`, f32 [n].

        It is the sum over a caption's tokens, but for the first and padding, of the logarithm of their probability.
        And `generate`, see `captions.writer`.
        """
        of_captions = functools.partial(_log_likelihood, self, shard.mesh_of(variables), variables)
        begin = None if self.bos_id is None else (self.bos_id,)
        write = captions.writer(self.model, self.model.text, self.sampling, begin, variables)
        return super().predict(variables) | {"log_likelihood": of_captions, "generate": write}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihood(
    task: Captioning, mesh: Mesh | None, variables: Variables, image: Array, text: Int[Array, "n time"]
) -> Float[Array, " n"]:
    model = task.model
    with shard.under(mesh):
        image_tokens = model.encode_image(variables, image)[1]["tokens"]
        text_tokens = model.encode_text(variables, text)[1]["tokens"]
        hidden = model.decode(variables, image_tokens, text_tokens[:, :-1])
        return next_token.log_likelihood(hidden, model.head(variables), task.labels(text))
