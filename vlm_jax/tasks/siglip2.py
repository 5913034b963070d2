"""The objective of SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786, sections 2.2 and 2.3).

A weighted sum of four losses, all of them metrics:

- SigLIP's, of images and captions (`tasks.contrastive`);
- a decoder's, which predicts captions, boxes of descriptions and descriptions of boxes (`data.sources.located`);
- from a share of the run on, self-distillation: local crops of an image are to score prototypes as the moving
  average of the model scores them for the whole image (SILC: Naeem et al. 2023, arXiv:2310.13355);
- and masked prediction: so are masked patches of the whole image (TIPS: Maninis et al. 2024, arXiv:2410.16512).

Where the paper leaves details out, or they were not read again, this is what was chosen. Weights are the paper's, 1 and
1/4, times its 1/4 for B (recalled). The decoder predicts in parallel with the paper's probability of 1/2, here for all
three tasks, with the prompt in sight. Crops are eight as in the paper (recalled), cut on the device from the image as
the towers get it, of 5% to 40% of its area, and are not varied in colour; the teacher sees that image too. Heads,
temperatures and centring are DINO's (Caron et al. 2021, arXiv:2104.14294), the teacher's temperature without a warm-up.
The teacher is the run's own moving average (`config.ema`), which is kept from the first step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from vlm_jax.data.prompted import Prompted
from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling
from vlm_jax.models.siglip2 import SigLIP2
from vlm_jax.models.two_tower import normalize
from vlm_jax.nn import shard
from vlm_jax.nn.crops import random_crops
from vlm_jax.nn.functional import Params
from vlm_jax.tasks import captions, next_token
from vlm_jax.tasks.base import Batch, Context, Variables
from vlm_jax.tasks.contrastive import Contrastive

CROP, MASK, PARALLEL = 1, 2, 3  # streams of random numbers of a row


@dataclasses.dataclass(frozen=True)
class SigLIP2Pretraining(Contrastive):
    """See above.

    Attributes (besides those of `Contrastive`):
      prompted: reads the decoder's texts, as the pipeline does.
      decoder_weight, distill_weight, masked_weight: of the losses beside the contrastive one; 0 leaves one out.
      parallel: share of the decoder's texts whose answers are predicted all at once.
      begin: share of the run after which distillation and masked prediction begin.
      crops, crop_size, crop_area: how many crops an image, their side in pixels, and their share of its area.
      masked: share of the patches.
      student_temperature, teacher_temperature: scores are divided by them.
      centre_momentum: of the teacher's mean score, which is taken off.
      prompt: of captions that are written without another one.
      sampling: how they are.
    """

    model: SigLIP2
    prompted: Prompted | None = None
    decoder_weight: float = 1.0
    distill_weight: float = 0.25
    masked_weight: float = 0.0625
    parallel: float = 0.5
    begin: float = 0.8
    crops: int = 8
    crop_size: int = 96
    crop_area: tuple[float, float] = (0.05, 0.4)
    masked: float = 0.5
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    centre_momentum: float = 0.9
    prompt: str = "cap"
    sampling: Sampling = Sampling()

    def validate(self) -> None:
        super().validate()
        if min(self.decoder_weight, self.distill_weight, self.masked_weight) < 0:
            raise UserError("decoder_weight, distill_weight and masked_weight must be at least 0.")
        for name in ("parallel", "begin", "centre_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is a share, from 0 to 1.")
        if not 0 < self.masked < 1:
            raise UserError(f"masked={self.masked} is a share of the patches, between 0 and 1.")
        if min(self.student_temperature, self.teacher_temperature) <= 0:
            raise UserError("student_temperature and teacher_temperature must be above 0.")
        if self.decoder_weight and (self.prompted is None or self.prompted.text.length != self.model.decoder.length):
            length = None if self.prompted is None else self.prompted.text.length
            raise UserError(
                f"prompted.text.length={length}, model.decoder.length={self.model.decoder.length}: give both the same."
            )
        if self.parallel and not self.model.decoder.mask_token:
            raise UserError(f"parallel={self.parallel} needs a MASK token: set model.decoder.mask_token=True.")
        if self.crops < 1 or self.crop_size % self.model.image.patch_size:
            raise UserError(
                f"crops={self.crops} of crop_size={self.crop_size}: wanted is at least one, of whole patches of "
                f"{self.model.image.patch_size}."
            )
        if self.packing is not None:
            raise UserError("SigLIP 2's crops do not come in packed images; leave packing out.")

    def check_run(self, experiment: Any) -> None:
        """See `Task`."""
        if self._distills and experiment.ema is None:
            raise UserError("distill_weight and masked_weight need a teacher: set config.ema, for example 0.9999.")
        if self.decoder_weight and experiment.data.prompted != self.prompted:
            raise UserError("config.data.prompted and config.task.prompted differ; bind the same in both.")

    @property
    def _distills(self) -> bool:
        return bool(self.distill_weight or self.masked_weight)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        spec = super().batch_spec(batch_size)
        if not self.decoder_weight:
            return spec
        rows = (batch_size, self.model.decoder.length)
        own = {"decoder_text": jnp.int32, "decoder_target": jnp.bool_}
        return spec | {name: jax.ShapeDtypeStruct(rows, dtype) for name, dtype in own.items()}

    def features(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[dict[str, Array], dict]:
        """Unit-norm embeddings `image` and `text` [batch, dim], and each row's part of the other losses, [batch]."""
        keys = ctx.row_keys(batch["text"].shape[0])
        image, aux = self.model.encode_image(variables, batch["image"], train=ctx.train, key=keys)
        text, _ = self.model.encode_text(variables, batch["text"], train=ctx.train, key=keys)
        features, state = {"image": image, "text": text}, variables.get("state", {})
        if self.decoder_weight:
            features |= self._decoder(variables, aux["tokens"], batch, ctx, keys)
        if self._distills and ctx.train:
            features_of, state = self._distillation(variables, batch["image"], ctx, keys)
            features |= features_of
        return features, {"metrics": {}, "state": state}

    def _decoder(
        self, variables: Variables, image_tokens: Array, batch: Batch, ctx: Context, keys: Key[Array, " batch"]
    ) -> dict[str, Array]:
        text, target = batch["decoder_text"], batch["decoder_target"]
        options = {}
        if self.parallel and ctx.train:
            draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, PARALLEL), self.parallel)
            options["hidden"] = answers(target)[:, :-1] & jax.vmap(draw)(keys)[:, None]
        hidden = self.model.decode(variables, image_tokens, text[:, :-1], **options)
        labels = jnp.where(target, text, next_token.IGNORED)[:, 1:]
        mean = next_token.mean_loss(hidden, self.model.head(variables), labels, ctx.mesh)
        tokens = (labels != next_token.IGNORED).sum(axis=1, dtype=jnp.float32)
        # Rows of microbatches are put together again: equal parts of the sum over all tokens of one.
        return {"decoder": jnp.broadcast_to(mean * tokens.mean(), tokens.shape), "tokens": tokens}

    def _distillation(
        self, variables: Variables, image: Array, ctx: Context, keys: Key[Array, " batch"]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """`distill` and `masked`, f32 [batch], and the new state. Before it begins, zeros without the work."""
        if ctx.ema is None:
            raise UserError("self-distillation needs a teacher: set config.ema, for example 0.9999.")
        state = dict(variables["state"])
        teacher = jax.lax.stop_gradient(overlaid(variables["params"], ctx.ema))
        pixels = normalize(image, self.model.image_mean, self.model.image_std)
        zeros = jnp.zeros(image.shape[0], jnp.float32)

        def work(params: Params):
            return self._distilled(params, teacher, state, pixels, keys)

        def rest(params: Params):
            return {"distill": zeros, "masked": zeros}, state

        active = ctx.step >= min(math.ceil(self.begin * ctx.total_steps), 2**31 - 1)
        if isinstance(active, bool):  # of a step that is known, as where FLOPs are counted
            return (work if active else rest)(variables["params"])
        return jax.lax.cond(active, work, rest, variables["params"])

    def _distilled(
        self, params: Params, teacher: Params, state: dict[str, Array], pixels: Array, keys: Key[Array, " batch"]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        model, rows = self.model, pixels.shape[0]
        stream = lambda number: jax.vmap(jax.random.fold_in, (0, None))(keys, number)

        def against(scores: Array, wanted: Array, centre: Array) -> Array:
            """Cross-entropy of the student's prototypes with the teacher's, over the last axis."""
            target = jax.nn.softmax((wanted - centre) / self.teacher_temperature)
            return -(target * jax.nn.log_softmax(scores / self.student_temperature)).sum(axis=-1)

        pooled, tokens = model.features(teacher, pixels)
        crop_wanted, patch_wanted = model.crop_scores(teacher, pooled), model.patch_scores(teacher, tokens)

        options = {"count": self.crops, "size": self.crop_size, "area": self.crop_area}
        crops = random_crops(pixels, stream(CROP), **options).reshape(-1, self.crop_size, self.crop_size, 3)
        pooled, _ = model.features(params, shard.constrain(crops, "batch", None, None, None))
        scores = model.crop_scores(params, pooled).reshape(rows, self.crops, -1)
        distill = against(scores, crop_wanted[:, None], state["crop_centre"]).mean(axis=1)

        where = random_patches(stream(MASK), tokens.shape[1], self.masked)
        _, tokens = model.features(params, pixels, where)
        each = against(model.patch_scores(params, tokens), patch_wanted, state["patch_centre"])
        masked = jnp.where(where, each, 0).sum(axis=1) / where.sum(axis=1)

        means = {"crop_centre": crop_wanted.mean(axis=0), "patch_centre": patch_wanted.mean(axis=(0, 1))}
        keep = self.centre_momentum
        state = state | {name: keep * state[name] + (1 - keep) * mean for name, mean in means.items()}
        return {"distill": distill, "masked": masked}, state

    def feature_loss(
        self, variables: Variables, features: dict[str, Array], batch: Batch, ctx: Context
    ) -> tuple[Float[Array, ""], dict]:
        """The weighted sum, over the whole batch on all devices; each loss is a metric."""
        loss, aux = super().feature_loss(variables, features, batch, ctx)
        metrics = {**aux["metrics"], "contrastive_loss": loss}
        if "decoder" in features:
            metrics["decoder_loss"] = features["decoder"].sum() / jnp.maximum(features["tokens"].sum(), 1)
            loss += self.decoder_weight * metrics["decoder_loss"]
        if "distill" in features:
            metrics["distill_loss"], metrics["masked_loss"] = features["distill"].mean(), features["masked"].mean()
            loss += self.distill_weight * metrics["distill_loss"] + self.masked_weight * metrics["masked_loss"]
        return loss, {"metrics": metrics, "state": aux["state"]}

    def predict(self, variables: Variables) -> dict[str, Callable]:
        """Those of `Contrastive`; `generate`, see `captions.writer`, whose prompts are those of `prompted`; and
        `log_likelihood(uint8 [n, H, W, 3], int32 [n, L])`, f32 [n], of captions between begin and end token, after
        the prompt of that task.
        """
        found = super().predict(variables)
        if not self.decoder_weight:
            return found
        begin = tuple(self.prompted.prompt(self.prompt))
        of_captions = functools.partial(_log_likelihood, self.model, begin, shard.mesh_of(variables), variables)
        write = captions.writer(self.model, self.model.decoder, self.sampling, begin, variables)
        return found | {"generate": write, "log_likelihood": of_captions}


def answers(target: Bool[Array, "batch time"]) -> Bool[Array, "batch time"]:
    """Where an answer stands, and all that comes after it: what is hidden, so that padding does not tell its length."""
    return jnp.cumsum(target, axis=1) > 0


def random_patches(keys: Key[Array, " batch"], patches: int, share: float) -> Bool[Array, "batch patches"]:
    """So large a share of each row's patches, and at least one, drawn by its own key."""
    count = max(1, round(share * patches))
    noise = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(keys)
    return jnp.argsort(jnp.argsort(noise, axis=1), axis=1) < count


def overlaid(params: Params, average: Params) -> Params:
    """The average, and of what is frozen, and so not averaged, the parameters themselves."""
    return {
        name: value if name not in average
        else overlaid(value, average[name]) if isinstance(value, dict) else average[name]
        for name, value in params.items()
    }  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _log_likelihood(
    model: SigLIP2,
    begin: tuple[int, ...],
    mesh: Mesh | None,
    variables: Variables,
    image: Array,
    text: Int[Array, "n time"],
) -> Float[Array, " n"]:
    prompt = jnp.tile(jnp.array(begin, jnp.int32), (text.shape[0], 1))
    text = jnp.concatenate([prompt, text[:, 1:]], axis=1)[:, : model.decoder.length]
    with shard.under(mesh):
        tokens = model.encode_image(variables, image)[1]["tokens"]
        hidden = model.decode(variables, tokens, text[:, :-1])
        counts = model.decoder.real(text) & (jnp.arange(text.shape[1]) >= len(begin))
        labels = jnp.where(counts, text, next_token.IGNORED)[:, 1:]
        return next_token.log_likelihood(hidden, model.head(variables), labels)
