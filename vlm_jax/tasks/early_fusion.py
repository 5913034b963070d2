"""Predicting the next token of documents whose images are tokens, and writing texts and drawing images with it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from vlm_jax.data.fusion import Fusion
from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling, generate, guide, guided, pairs, restricted
from vlm_jax.nn import shard
from vlm_jax.nn.positions import within_segments
from vlm_jax.tasks import next_token
from vlm_jax.tasks.autoencoding import Autoencoding
from vlm_jax.tasks.base import Batch, Context, Variables
from vlm_jax.tasks.language_model import LanguageModeling


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyFusion(LanguageModeling):
    """`LanguageModeling` of the rows of `data.fusion`: the mean cross-entropy over tokens of texts and of images.

    Metrics say `text_loss` and `image_loss` apart, the means over tokens of texts (and markers) and over codes.

    Attributes (besides those of `LanguageModeling`; `model` is a `Chameleon`, and `sampling` is that of texts):
      fusion: how texts and images become tokens.
      bos_id: what a document begins with.
      drawing: how codes of images are drawn; its `max_tokens` and `stop` are not used: an image has as many as it has.
      guidance: of what is drawn, see `generate.guided`; 1 for none.
      image_weight: what a code counts in the mean beside a token of a text; Emu3 (2024, arXiv:2409.18869) has 0.5.
    """

    fusion: Fusion
    bos_id: int
    drawing: Sampling = Sampling(temperature=1.0)
    guidance: float = 1.0
    image_weight: float = 1.0

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        ids, tokenizer = self.fusion.vocabulary, self.model.tokenizer
        if ids.size > self.model.vocab_size:
            raise UserError(
                f"decoder.vocab_size={self.model.vocab_size} is less than the {ids.size} tokens of texts and images; "
                "set it to late('fused_size')."
            )
        if self.fusion.pictures and tokenizer is None:
            raise UserError("Fusion.pictures=True needs a tokenizer of images: bind one at task.model.tokenizer.")
        if tokenizer is not None and tokenizer.bottleneck.vocab_size != ids.codes:
            raise UserError(
                f"the tokenizer of images has {tokenizer.bottleneck.vocab_size} codes, the decoder expects "
                f"{ids.codes}; set Vocabulary.codes to it."
            )
        if tokenizer is not None and tokenizer.grid != self.fusion.grid:
            raise UserError(
                f"the tokenizer makes {tokenizer.grid} x {tokenizer.grid} codes of an image, and Fusion.grid="
                f"{self.fusion.grid}; set it to {tokenizer.grid}."
            )
        if self.guidance != 1 and self.fusion.caption_first == 1:
            raise UserError(
                f"guidance={self.guidance} compares with images that no caption is before, and "
                "Fusion.caption_first=1.0 has none to learn from; lower it."
            )
        if not self.image_weight >= 0:
            raise UserError(f"image_weight={self.image_weight} must be at least 0.")
        if self.drawing.beams > 1:
            raise UserError(f"drawing.beams={self.drawing.beams}: images are drawn one token at a time; set 1.")

    def check_run(self, experiment: Any) -> None:
        """Raises UserError where rows are others than the task's, or the tokenizer would be trained."""
        if experiment.data.fusion != self.fusion:
            raise UserError(
                "config.data.fusion and config.task.fusion differ; set both to late('fusion'), and config.fusion."
            )
        if self.model.tokenizer is not None:
            params = jax.eval_shape(self.init, jax.random.key(0))["params"]
            if "tokenizer" in experiment.optimizer.split(params, self.stacks)[0]:
                raise UserError("the tokenizer of images would be trained: config.optimizer.freeze=('tokenizer/.*',).")

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what the task reads."""
        size = 0 if self.model.tokenizer is None else self.model.tokenizer.image_size
        rows = self.fusion.spec(size, self.length)
        return {name: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for name, (shape, dtype) in rows.items()}

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], dict]:
        """See `LanguageModeling.loss`; of packed rows, metrics also say how full they are."""
        loss, aux = super().loss(variables, self.tokenized(variables, batch), ctx)
        packed = self.fusion.metrics(batch) if self.fusion.examples > 1 else {}
        return loss, {**aux, "metrics": aux["metrics"] | packed}

    def weights(self, labels: Int[Array, "batch time"]) -> Float[Array, "batch time"]:
        """What each token counts in the mean, and those without a label nothing."""
        return jnp.where(self._are_codes(labels), self.image_weight, super().weights(labels))

    def parts_of(
        self, loss: Float[Array, ""], each: Float[Array, "batch time"], labels: Int[Array, "batch time"]
    ) -> dict[str, Array]:
        """Metrics: the mean over tokens of texts, and over codes."""
        codes = self._are_codes(labels)
        kinds = {"text_loss": ~codes & (labels != next_token.IGNORED), "image_loss": codes}
        return {name: each.sum(where=kind) / jnp.maximum(kind.sum(), 1) for name, kind in kinds.items()}

    def _are_codes(self, labels: Int[Array, "batch time"]) -> Bool[Array, "batch time"]:
        first = self.fusion.vocabulary.first_code
        return (labels >= first) & (labels < first + self.fusion.vocabulary.codes)

    def tokenized(self, variables: Variables, batch: Batch) -> Batch:
        """The batch with the codes of its pictures at their places among the tokens."""
        if "image" not in batch:
            return batch
        image, ids = batch["image"], batch["text_image_ids"]
        flat = shard.constrain(image.reshape(-1, *image.shape[2:]), "batch", None, None, None)
        codes = self.model.encode_tokens(variables, flat).reshape(image.shape[0], -1)
        index = (ids - 1) * self.fusion.image_tokens + within_segments(ids)
        found = jnp.take_along_axis(codes, jnp.maximum(index, 0), axis=1) + self.fusion.vocabulary.first_code
        return {**batch, "text": jnp.where(ids > 0, found, batch["text"])}

    def predict(self, variables: Variables) -> dict[str, Callable]:
        """`describe(codes, key=None)`, int32 [n, max_tokens]: texts about images [n, codes], up to the end token, then
        padding; `draw_codes(rows, key=None)`, int32 [n, codes]: images after rows as `Fusion.prompts` gives them.

        With a tokenizer also `generate(images, key=None)`, the texts about uint8 [n, H, W, 3], `draw(rows, key=None)`,
        uint8 images, and `tokens(images)` and `from_tokens(codes)`. A key, or one a row, is needed at a temperature.
        """
        mesh = shard.mesh_of(variables)
        names = ["describe", "draw_codes"]
        names += ["generate", "draw", "tokens", "from_tokens"] if self.model.tokenizer is not None else []
        return {name: functools.partial(_predicted, self, mesh, name, variables) for name in names}

    def describe(
        self, variables: Variables, codes: Int[Array, "n codes"], key: Array | None = None
    ) -> Int[Array, "n max_tokens"]:
        """Texts about images."""
        ids, n = self.fusion.vocabulary, codes.shape[0]
        before, after = (jnp.tile(jnp.array(part, jnp.int32), (n, 1)) for part in self.fusion.around_image(self.bos_id))
        text = jnp.concatenate([before, codes + ids.first_code, after], axis=1)
        stop = self.sampling.stop if self.end_id is None else (*self.sampling.stop, self.end_id)
        sampling = dataclasses.replace(self.sampling, stop=stop, pad=self.pad_id)
        rows = {"text": text, "text_segment_ids": jnp.ones_like(text)}
        logits, cache = self.model.start(variables, rows, text.shape[1] + sampling.max_tokens)
        extend = restricted(functools.partial(self.model.extend, variables), 0, ids.text)
        return generate(extend, logits[:, : ids.text], cache, sampling, key)

    def draw_codes(
        self, variables: Variables, rows: Mapping[str, Array], key: Array | None = None
    ) -> Int[Array, "n codes"]:
        """Codes of images; of each row a second stream, without its caption, where there is guidance."""
        ids, most = self.fusion.vocabulary, self.fusion.image_tokens
        batch = {name: rows[name] for name in ("text", "text_segment_ids")}
        if self.guidance != 1:
            free = jnp.array(self.fusion.before_image([], self.bos_id), jnp.int32)
            batch = {"text": _beside(batch["text"], free),
                     "text_segment_ids": _beside(batch["text_segment_ids"], jnp.ones_like(free))}  # fmt: skip
        logits, cache = self.model.start(variables, batch, batch["text"].shape[1] + most)
        extend = restricted(functools.partial(self.model.extend, variables), ids.first_code, ids.codes)
        logits = logits[:, ids.first_code : ids.first_code + ids.codes]
        if self.guidance != 1:
            extend, logits, cache = guided(extend, self.guidance), guide(logits, self.guidance), pairs(cache)
        sampling = dataclasses.replace(self.drawing, max_tokens=most, stop=(), pad=0)
        return generate(extend, logits, cache, sampling, key)

    def generate(
        self, variables: Variables, image: UInt8[Array, "n height width 3"], key: Array | None = None
    ) -> Int[Array, "n max_tokens"]:
        """Texts about pictures."""
        return self.describe(variables, self.model.encode_tokens(variables, image), key)

    def draw(
        self, variables: Variables, rows: Mapping[str, Array], key: Array | None = None
    ) -> UInt8[Array, "n height width 3"]:
        """Pictures after captions."""
        return self.from_tokens(variables, self.draw_codes(variables, rows, key))

    def tokens(self, variables: Variables, image: UInt8[Array, "n height width 3"]) -> Int[Array, "n codes"]:
        """The codes of pictures."""
        return self.model.encode_tokens(variables, image)

    def from_tokens(self, variables: Variables, codes: Int[Array, "n codes"]) -> UInt8[Array, "n height width 3"]:
        """Pictures of codes."""
        out = self.model.decode_tokens(variables, codes)
        reconstruction = "l2" if out.shape[-1] == 3 else "logit_laplace"
        return Autoencoding(self.model.tokenizer, reconstruction).pixels(out)


def _beside(rows: Int[Array, "n time"], row: Int[Array, " part"]) -> Int[Array, "two_n time"]:
    """Each row, and after it the same one, filled up with zeros."""
    again = jnp.broadcast_to(jnp.pad(row, (0, rows.shape[1] - len(row))), rows.shape)
    return jnp.stack([rows, again], axis=1).reshape(-1, rows.shape[1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _predicted(task: EarlyFusion, mesh: Mesh | None, method: str, variables: Variables, *arguments: Any) -> Array:
    with shard.under(mesh):
        return getattr(task, method)(variables, *arguments)
