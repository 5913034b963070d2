"""Autoencoding: an image from its latents, with what the bottleneck adds; nothing but images is needed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from vlm_jax import losses
from vlm_jax.errors import UserError
from vlm_jax.mesh import BATCH_AXES
from vlm_jax.models.autoencoder import Autoencoder, unit_interval
from vlm_jax.models.bottlenecks.base import Moment, Passed
from vlm_jax.models.tower import stacks_of
from vlm_jax.nn import shard
from vlm_jax.nn.functional import Params
from vlm_jax.tasks.base import Batch, Context, Variables
from vlm_jax.tasks.judges import Adversary, Images, Perceptual

LOSSES = ("l1", "l2", "logit_laplace")


@dataclasses.dataclass(frozen=True)
class Autoencoding:
    """The distance of images from what is decoded of them, the weighed losses of the bottleneck, and what judges say.

    Attributes:
      model: the autoencoder; its decoder gives 3 numbers for each pixel, and 6 with "logit_laplace".
      reconstruction: "l1" or "l2", of pixels in [0, 1], or "logit_laplace", DALL-E's density of them in nats (Ramesh et
        al. 2021, arXiv:2102.12092, appendix A.3). Each is a mean over all pixels and colours.
      perceptual: an encoder that compares images too; None for none.
      adversary: a discriminator that is to be deceived; None for none.
    """

    model: Autoencoder
    reconstruction: Literal["l1", "l2", "logit_laplace"] = "l2"
    perceptual: Perceptual | None = None
    adversary: Adversary | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        wanted = 6 if self.reconstruction == "logit_laplace" else 3
        if self.model.decoder.channels != wanted:
            raise UserError(
                f"reconstruction={self.reconstruction!r} needs decoder.channels={wanted}, "
                f"not {self.model.decoder.channels}."
            )
        if self.adversary is not None:
            self.adversary.discriminator.check_size(self.model.image_size)

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        judge = {} if self.perceptual is None else stacks_of(perceptual=self.perceptual.image)
        return self.model.stacks | judge

    def init(self, key: Array) -> Variables:
        """`params` and `state`; beside the model's parameters those of `perceptual` and `discriminator`."""
        variables, judges = self.model.init(key), {}
        if self.perceptual is not None:
            judges["perceptual"] = self.perceptual.image.init(jax.random.fold_in(key, 1))
        if self.adversary is not None:
            judges["discriminator"] = self.adversary.discriminator.init(jax.random.fold_in(key, 2))
        return {**variables, "params": variables["params"] | judges}

    def check_run(self, experiment: Any) -> None:
        """See `Task.check_run`."""
        if self.perceptual is None:
            return
        params = jax.eval_shape(self.init, jax.random.key(0))["params"]
        if "perceptual" in experiment.optimizer.split(params, self.stacks)[0]:
            raise UserError("the perceptual encoder would be trained: config.optimizer.freeze=('perceptual/.*',).")

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """`image` uint8 [batch, height, width, 3]."""
        size = self.model.image_size
        return {"image": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)}

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], dict]:
        """See `Task.loss`. Metrics are each loss by itself, and how the codes of the batch are used."""
        image = shard.constrain(batch["image"], "batch", None, None, None)
        features = self.model.features(variables, image)
        passed = self._through(variables, features.reshape(-1, features.shape[-1]), ctx)
        vectors = passed.vectors.reshape(*features.shape[:3], -1)
        total, metrics = self._judged(variables, unit_interval(image), vectors, ctx)
        total += sum(weight * value for weight, value in passed.losses.values())
        metrics |= {f"{name}_loss": value for name, (_, value) in passed.losses.items()} | passed.metrics
        return total, {"metrics": metrics, "state": passed.state}

    def _judged(self, variables: Variables, image: Images, vectors: Array, ctx: Context) -> tuple[Array, dict]:
        """Losses of what is decoded of vectors.

        Both of an adversary's sides learn in one pass: the discriminator's loss has no gradient to the decoder, and the
        decoder's none to the discriminator. The adaptive weight needs the gradients by what is decoded, which are then
        those that are sent back through the decoder: nothing is differentiated twice.
        """
        params = variables["params"]
        if self.adversary is None:
            return self._distances(params, image, self.model.decode(variables, vectors))
        out, pull = self.model.decode_and_pull(variables, vectors)
        still = jax.lax.stop_gradient(out)
        (total, metrics), by_out = jax.value_and_grad(lambda x: self._distances(params, image, x), has_aux=True)(still)
        decoded, back = jax.vjp(self._mean, still)
        judged = self.adversary.judged(params["discriminator"], image, decoded, ctx.step)
        (generator_by_out,) = back(judged.gradient)
        adaptive = losses.adaptive_weight(pull(by_out), pull(generator_by_out))
        weight = jnp.where(ctx.step >= self.adversary.start, self.adversary.weight * adaptive, 0)
        total = _with_gradient(total + weight * judged.generator, out, by_out + weight * generator_by_out)
        metrics |= {"generator_loss": judged.generator, "discriminator_loss": judged.discriminator}
        return total + judged.discriminator, metrics | {"adversarial_weight": weight}

    def _distances(self, params: Params, image: Images, out: Array) -> tuple[Float[Array, ""], dict]:
        """Of pixels, and of the features of the perceptual encoder; the weighed sum, and each."""
        total = self._distance(image, out)
        metrics = {"reconstruction_loss": total}
        if self.perceptual is not None:
            metrics["perceptual_loss"] = self.perceptual.loss(params["perceptual"], image, self._mean(out))
            total += self.perceptual.weight * metrics["perceptual_loss"]
        return total, metrics

    def _through(self, variables: Variables, features: Float[Array, "tokens dim"], ctx: Context) -> Passed:
        """The bottleneck on each device's rows: codebooks see the whole batch by sums over the devices.

        Random numbers are drawn by the row of the batch, and of a microbatch by its first row.
        """
        key = ctx.key if ctx.rows is None else jax.random.fold_in(ctx.key, ctx.rows[0])

        def local(variables, features, key, step):
            moment = Moment(key, step, ctx.total_steps, ctx.train, BATCH_AXES)
            return self.model.through(variables, features, moment)

        rows, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
        codes = None if self.model.bottleneck.vocab_size is None else rows
        out_specs = Passed(rows, codes, whole, whole, whole)
        arguments = {name: variables[name] for name in ("params", "state")}
        arguments["params"] = {"bottleneck": arguments["params"]["bottleneck"]}
        run = jax.shard_map(local, mesh=ctx.mesh, in_specs=(whole, rows, whole, whole), out_specs=out_specs)
        return run(arguments, features, key, jnp.asarray(ctx.step, jnp.int32))

    def _distance(self, image: Float[Array, "batch height width 3"], out: Array) -> Float[Array, ""]:
        if self.reconstruction == "logit_laplace":
            return losses.logit_laplace_loss(image, *jnp.split(out, 2, axis=-1))
        return (losses.l1_loss if self.reconstruction == "l1" else losses.l2_loss)(out, image)

    def pixels(self, out: Float[Array, "batch height width channels"]) -> UInt8[Array, "batch height width 3"]:
        """What the decoder says, as an image: of a density the mode of the logits."""
        return jnp.round(255 * jnp.clip(self._mean(out), 0, 1)).astype(jnp.uint8)

    def _mean(self, out: Float[Array, "batch height width channels"]) -> Images:
        """What the decoder says, as an image of floats, which may leave [0, 1]."""
        if self.reconstruction != "logit_laplace":
            return out
        return losses.unmap_pixels(jax.nn.sigmoid(jnp.split(out, 2, axis=-1)[0]))

    def constrain(self, params: Any) -> Any:
        """Nothing is bounded."""
        return params

    def predict(self, variables: Variables) -> dict[str, Callable]:
        """`reconstruct(uint8 [n, H, W, 3])`, uint8 of the same shape, and `latents`, what the decoder sees, f32 [n,
        rows, cols, dim]; `images` makes images of these. Where there are codes also `tokens(images)`, int32 [n, rows,
        cols] (with stages one axis more), `from_tokens(tokens)`, uint8 images, and `vocab_size()`."""
        mesh = shard.mesh_of(variables)
        bound = lambda method: functools.partial(_predicted, self, mesh, method, variables)
        found = {"reconstruct": bound("reconstructed"), "latents": bound("latents"), "images": bound("images")}
        if self.model.bottleneck.vocab_size is not None:
            found |= {"tokens": bound("tokens"), "from_tokens": bound("from_tokens")}
            found["vocab_size"] = lambda: self.model.bottleneck.vocab_size
        return found

    def latents(self, variables: Variables, image: Array) -> Float[Array, "n rows cols dim"]:
        """What the decoder sees of images, without noise."""
        features = self.model.features(variables, image)
        moment = Moment(jax.random.key(0), jnp.int32(0), 1, train=False)
        vectors = self.model.through(variables, features.reshape(-1, features.shape[-1]), moment).vectors
        return vectors.reshape(*features.shape[:3], -1).astype(jnp.float32)

    def images(self, variables: Variables, latents: Array) -> UInt8[Array, "n height width 3"]:
        """Images of what the decoder sees."""
        return self.pixels(self.model.decode(variables, latents))

    def reconstructed(self, variables: Variables, image: Array) -> UInt8[Array, "n height width 3"]:
        """Images of the latents of images."""
        return self.images(variables, self.latents(variables, image))

    def tokens(self, variables: Variables, image: Array) -> Int[Array, "n rows cols *stages"]:
        """The codes of images."""
        return self.model.encode_tokens(variables, image)

    def from_tokens(self, variables: Variables, tokens: Array) -> UInt8[Array, "n height width 3"]:
        """Images of codes."""
        return self.pixels(self.model.decode_tokens(variables, tokens))


def _with_gradient(value: Float[Array, ""], x: Array, gradient: Array) -> Float[Array, ""]:
    """A number whose gradient by `x` is the given one."""
    value, gradient, still = jax.lax.stop_gradient((value, gradient, x))
    return value + (gradient * (x - still)).sum()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _predicted(task: Autoencoding, mesh: Mesh | None, method: str, variables: Variables, x: Array) -> Array:
    with shard.under(mesh):
        return getattr(task, method)(variables, x)
