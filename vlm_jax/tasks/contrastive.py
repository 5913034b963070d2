"""Contrastive pretraining of two towers: SigLIP (sigmoid) and CLIP (InfoNCE)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from vlm_jax import losses
from vlm_jax.data.packing import Packing
from vlm_jax.errors import UserError
from vlm_jax.mesh import BATCH_AXES
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.nn import shard
from vlm_jax.tasks.base import Batch, Context, Variables


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Pulls an image and its caption together and all other pairs of the global batch apart.

    Args:
      objective: `sigmoid` (Zhai et al. 2023, eq. 1; needs a `logit_bias`) or `infonce` (Radford et al. 2021, fig. 3).
      label_smoothing: mass spread over all pairs; InfoNCE only.
      equal_captions: pairs whose captions are the same tokens are `positives`, or `negatives` as in the papers,
        whose web captions are all but unique.
      group_size: devices that gather instead of passing blocks on; see `vlm_jax.losses`.
      packing: the batches are packed (`vlm_jax.data.packing`): features are [batch, images, dim], and the loss is over
        all pairs that there are.
    """

    model: TwoTower
    objective: Literal["sigmoid", "infonce"] = "sigmoid"
    label_smoothing: float = 0.0
    equal_captions: Literal["positives", "negatives"] = "negatives"
    group_size: int | None = None
    packing: Packing | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        if self.objective == "sigmoid" and self.model.logit_bias_init is None:
            raise UserError("objective=sigmoid needs a bias: set model.logit_bias_init (the paper's is -10).")
        if self.objective == "sigmoid" and self.label_smoothing:
            raise UserError("label_smoothing is for objective=infonce; set it to 0.")
        if self.packing is not None:
            self._validate_packed(self.packing)

    def _validate_packed(self, packing: Packing) -> None:
        image, text = self.model.image, self.model.text
        image.validate_packed()
        text.validate_packed()
        if image.patch_size != packing.patch_size:
            raise UserError(
                f"Packing.patch_size={packing.patch_size}, the model has {image.patch_size}; set both to one."
            )
        most = image.grid
        if image.posemb == "factorised" and (packing.longest or max(packing.budgets)) > most:
            raise UserError(
                f"Packing.longest={packing.longest}, the model has positions for {most} patches a side; "
                f"set it to {most}, or raise the model's image_size."
            )

    @property
    def stacks(self) -> dict[str, int]:
        return self.model.stacks

    def init(self, key) -> dict[str, Any]:
        return self.model.init(key)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        if self.packing is not None:
            spec = self.packing.spec().items()
            return {name: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for name, (shape, dtype) in spec}
        size, length = self.model.image.image_size, self.model.text.length
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch_size, length), jnp.int32),
            "caption_id": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }

    def group(self, devices: int, batch_size: int) -> int:
        """How many of so many devices gather each other's texts; see `vlm_jax.tasks.base.ring_group`."""
        return self.group_size or losses.choose_group(devices, max(1, batch_size // devices))

    def features(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[dict[str, Array], dict]:
        """Unit-norm embeddings `image` and `text`, both f32 [batch, dim], or [batch, images, dim] where packed."""
        if self.packing is not None:
            return self._packed_features(variables, batch), {"metrics": {}, "state": variables.get("state", {})}
        keys = ctx.row_keys(batch["text"].shape[0])
        image, _ = self.model.encode_image(variables, batch["image"], train=ctx.train, key=keys)
        text, _ = self.model.encode_text(variables, batch["text"], train=ctx.train, key=keys)
        return {"image": image, "text": text}, {"metrics": {}, "state": variables.get("state", {})}

    def _packed_features(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        ids = batch["image_segment_ids"], batch["text_segment_ids"]
        positions, grids = batch["patch_positions"], batch["image_grids"]
        return {
            "image": self.model.encode_packed_images(variables, batch["patches"], positions, grids, ids[0]),
            "text": self.model.encode_packed_texts(variables, batch["text"], ids[1], self.packing.images),
        }

    def feature_loss(
        self, variables: Variables, features: dict[str, Array], batch: Batch, ctx: Context
    ) -> tuple[Float[Array, ""], dict]:
        """The loss of embeddings, over the whole batch on all devices."""
        scale, bias = self.model.scale(variables), self.model.bias(variables)
        options = {"axis_name": BATCH_AXES, "group_size": self.group_size}

        def local(image, text, scale, bias, ids, mask=None):
            if mask is not None:  # packed: rows of pairs
                image, text = (x.reshape(-1, x.shape[-1]) for x in (image, text))
                ids, options["mask"] = ids.reshape(-1), mask.reshape(-1)
            ids = ids if self.equal_captions == "positives" else None
            if self.objective == "sigmoid":
                return losses.sigmoid_loss(image, text, scale, bias, ids=ids, **options)
            return losses.infonce_loss(image, text, scale, ids=ids, label_smoothing=self.label_smoothing, **options)

        rows, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
        arguments = [features["image"], features["text"], scale, bias, batch["caption_id"]]
        in_specs = [rows, rows, whole, whole, rows]
        metrics = {"logit_scale": scale}
        if self.packing is not None:
            arguments, in_specs = [*arguments, batch["pair_mask"]], [*in_specs, rows]
            metrics |= self._packing_metrics(batch)
        loss = jax.shard_map(local, mesh=ctx.mesh, in_specs=tuple(in_specs), out_specs=whole)(*arguments)
        if self.objective == "sigmoid":
            metrics["logit_bias"] = bias
        return loss, {"metrics": metrics, "state": variables.get("state", {})}

    def _packing_metrics(self, batch: Batch) -> dict[str, Array]:
        """Pairs in the batch, those that were left out of it, and what share of its tokens is not padding."""
        pairs = batch["pair_mask"].sum(dtype=jnp.float32)
        windows = batch["pair_mask"].shape[0] / self.packing.rows
        fill = {name: (batch[f"{name}_segment_ids"] > 0).mean(dtype=jnp.float32) for name in ("image", "text")}
        return {
            "packing/pairs": pairs,
            "packing/left_out": windows * self.packing.examples - pairs,
            "packing/image_fill": fill["image"],
            "packing/text_fill": fill["text"],
        }

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], dict]:
        """See `Task.loss`: `feature_loss` of `features`."""
        features, aux = self.features(variables, batch, ctx)
        loss, loss_aux = self.feature_loss(variables, features, batch, ctx)
        return loss, {"metrics": {**aux["metrics"], **loss_aux["metrics"]}, "state": aux["state"]}

    def constrain(self, params: Any) -> Any:
        return self.model.constrain(params)

    def predict(self, variables: Variables) -> dict[str, Callable]:
        """`image_embedding(uint8 [n, H, W, 3])` and `text_embedding(int32 [n, L])`, unit-norm f32 [n, dim].

        `logit_scale()` is what the model multiplies their products by.
        """
        return {
            "image_embedding": functools.partial(_image_embedding, self.model, shard.mesh_of(variables), variables),
            "text_embedding": functools.partial(_text_embedding, self.model, shard.mesh_of(variables), variables),
            "logit_scale": functools.partial(self.model.scale, variables),
        }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _image_embedding(model: TwoTower, mesh: Mesh | None, variables: Variables, image: Array) -> Float[Array, "n dim"]:
    with shard.under(mesh):
        return model.encode_image(variables, image)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _text_embedding(model: TwoTower, mesh: Mesh | None, variables: Variables, text: Array) -> Float[Array, "n dim"]:
    with shard.under(mesh):
        return model.encode_text(variables, text)[0]
