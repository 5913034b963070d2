"""From pixels and token ids to the first activations of a tower."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, he_normal, lecun_normal, normal
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.nn import shard
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import project, repeat
from vlm_jax.nn.positions import resample, resample_at, sincos2d, sincos2d_at


def patchify(image: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch rows cols patch"]:
    """Non-overlapping `size` x `size` patches, each flattened in (row, column, channel) order."""
    batch, height, width, channels = image.shape
    patches = image.reshape(batch, height // size, size, width // size, size, channels)
    return patches.swapaxes(2, 3).reshape(batch, height // size, width // size, size * size * channels)


class PatchProjection(nnx.Module):
    """Linear embedding of patches: a convolution whose stride is its size, computed as one matmul.

    The kernel is stored as the convolution's, [size, size, channels, width], so that its fan and its layout are those
    of published weights.
    """

    def __init__(self, size: int, channels: int, width: int, *, bias: bool, dtype: str, rngs: nnx.Rngs):
        self.kernel = nnx.Param(lecun_normal()(rngs.params(), (size, size, channels, width)))
        self.bias = nnx.Param(jnp.zeros(width)) if bias else None
        self.size, self.dtype = size, dtype

    def __call__(self, image: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows cols dim"]:
        return self.packed(patchify(image.astype(self.dtype), self.size))

    def packed(self, patches: Float[Array, "*batch patch"]) -> Float[Array, "*batch dim"]:
        """The embedding of patches as `patchify` makes them."""
        kernel = self.kernel[...]
        patches = patches.astype(self.dtype)
        bias = None if self.bias is None else self.bias[...]
        return project(patches, kernel.reshape(-1, kernel.shape[-1]), bias, (None, "embed"))


class ConvStem(nnx.Module):
    """Stride-2 3x3 convolutions with GELU before the patch embedding (Xiao et al. 2021, arXiv:2106.14881).

    Each halves the image. A small model learns shapes from few images with it, where a linear patch embedding does not.
    """

    def __init__(self, channels: tuple[int, ...], *, dtype: str, rngs: nnx.Rngs):
        conv = functools.partial(
            nnx.Conv,
            kernel_size=(3, 3),
            strides=2,
            padding=1,
            kernel_init=he_normal(),
            dtype=jnp.dtype(dtype),
            rngs=rngs,
        )
        for i, (before, after) in enumerate(zip((3, *channels), channels)):
            setattr(self, f"conv{i}", conv(before, after))
        self.depth = len(channels)

    def __call__(self, image: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows cols channels"]:
        for i in range(self.depth):
            image = jax.nn.gelu(getattr(self, f"conv{i}")(image))
        return image


class ImageEmbed(nnx.Module):
    """Patches (after the optional stem) plus positions, with a CLS token in front where one is pooled, and registers.

    Learned positions are those of the trained `grid`; an image with another grid gets them resampled. They include one
    for CLS (as CLIP and the original ViT have it), which other positions leave at zero. Factorised ones are the sum of
    one for the row and one for the column (NaViT: Dehghani et al. 2023, section 2.1), as many of each as `grid`.
    """

    def __init__(
        self,
        width: int,
        *,
        patch_size: int,
        grid: int,
        stem_channels: tuple[int, ...],
        posemb: str,
        posemb_resize: str = "bilinear",
        cls_token: bool,
        registers: int = 0,
        trim: bool = False,
        bias: bool,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        self.stem = ConvStem(stem_channels, dtype=dtype, rngs=rngs) if stem_channels else None
        channels = stem_channels[-1] if stem_channels else 3
        self.patch = PatchProjection(
            patch_size >> len(stem_channels), channels, width, bias=bias, dtype=dtype, rngs=rngs
        )
        self.cls = nnx.Param(init.cls(rngs.params(), (width,))) if cls_token else None
        self.registers = nnx.Param(jnp.zeros((registers, width))) if registers else None
        learned = posemb == "learn"
        self.posemb = nnx.Param(init.image_posemb(rngs.params(), (cls_token + grid * grid, width))) if learned else None
        factorised = posemb == "factorised"
        self.posemb_row = nnx.Param(init.image_posemb(rngs.params(), (grid, width))) if factorised else None
        self.posemb_col = nnx.Param(init.image_posemb(rngs.params(), (grid, width))) if factorised else None
        self.patch_size, self.width, self.dtype = patch_size, width, dtype
        self.posemb_resize, self.trim = posemb_resize, trim

    def __call__(
        self,
        image: Float[Array, "batch height width 3"],
        masked: tuple[Float[Array, " dim"], Bool[Array, "batch patches"]] | None = None,
    ) -> Float[Array, "batch time dim"]:
        """`masked`: a vector, and the patches whose embedding it stands for (iBOT: Zhou et al. 2021, section 3.1)."""
        if self.trim:
            image = image[:, : image.shape[1] // self.patch_size * self.patch_size]
            image = image[:, :, : image.shape[2] // self.patch_size * self.patch_size]
        batch, *size, _ = image.shape
        if size[0] % self.patch_size or size[1] % self.patch_size:
            raise UserError(f"an image of {size[0]} x {size[1]} is not divisible by patch_size={self.patch_size}.")
        x = self.patch(image if self.stem is None else self.stem(image))
        rows, cols = x.shape[1:3]
        x = x.reshape(batch, rows * cols, self.width)
        if masked is not None:
            vector, where = masked
            x = jnp.where(where[..., None], repeat(vector[None], batch, self.dtype), x)
        prefix = 0 if self.cls is None else 1
        if prefix:
            x = jnp.concatenate([repeat(self.cls[...][None], batch, self.dtype), x], axis=1)
        x = x + repeat(self._positions((rows, cols), prefix), batch, self.dtype)
        if self.registers is not None:
            x = jnp.concatenate([x[:, :1], repeat(self.registers[...], batch, self.dtype), x[:, 1:]], axis=1)
        return shard.constrain(x, "batch", None, "embed")

    def _positions(self, grid: tuple[int, int], prefix: int) -> Float[Array, "time dim"]:
        if self.posemb is not None:
            return resample(self.posemb[...], grid, prefix=prefix, method=self.posemb_resize)
        if self.posemb_row is not None:
            if max(grid) > (most := self.posemb_row.shape[0]):
                raise UserError(f"an image of {grid[0]} x {grid[1]} patches, factorised positions are for {most}.")
            rows, cols = self.posemb_row[: grid[0], None], self.posemb_col[None, : grid[1]]
            return jnp.pad((rows + cols).reshape(-1, self.width), ((prefix, 0), (0, 0)))
        return jnp.pad(sincos2d(*grid, self.width), ((prefix, 0), (0, 0)))

    def packed(
        self,
        patches: Float[Array, "batch time patch"],
        positions: Int[Array, "batch time 2"],
        grids: Int[Array, "batch count 2"],
        segment_ids: Int[Array, "batch time"],
    ) -> Float[Array, "batch time dim"]:
        """The same for packed sequences of patches; a position beyond factorised tables gives NaN."""
        x = self.patch.packed(patches)
        if self.posemb is not None:
            own = jnp.take_along_axis(grids, jnp.maximum(segment_ids - 1, 0)[..., None], axis=1)
            posemb = resample_at(self.posemb[...], positions, jnp.maximum(own, 1))
        elif self.posemb_row is not None:
            posemb = take_rows(self.posemb_row[...], positions[..., 0], self.dtype)
            posemb += take_rows(self.posemb_col[...], positions[..., 1], self.dtype)
        else:
            posemb = sincos2d_at(positions, self.width)
        return shard.constrain(x + posemb.astype(self.dtype), "batch", None, "embed")


def take_rows(
    table: Float[Array, "vocab dim"], ids: Int[Array, "batch time"], dtype: str
) -> Float[Array, "batch time dim"]:
    """The rows of an embedding table, in f32; an id outside it gives NaN.

    Of a table that rests in parts, devices look up each other's ids in their columns and exchange what they found;
    where that is more than the table, the table is gathered. Either is sent in `dtype`. Gradients of rows go back in
    f32, and are summed in it on a device, for tokens are frequent; between devices in `shard.grad_dtype()`.
    """
    return _rows(table, ids, dtype, shard.grad_dtype())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rows(table, ids, dtype, grad_dtype):
    if _exchanged(table, ids):
        rows = jnp.take(table.astype(dtype), shard.constrain(ids, "replica", None), axis=0)
        rows = shard.constrain(rows, "replica", None, "embed", table=shard.AT_REST)
    else:
        if shard.ways("part") > 1:
            table = shard.constrain(table.astype(dtype), "vocab", None)
        rows = jnp.take(table, ids, axis=0)
    return shard.constrain(rows, "batch", None, "embed").astype(jnp.float32)


def _exchanged(table: Float[Array, "vocab dim"], ids: Int[Array, "batch time"]) -> bool:
    """Whether the table's columns are split, and a device has fewer ids than it has rows."""
    parts = shard.ways("part")
    return parts > 1 and table.shape[1] % parts == 0 and ids.size // shard.ways("batch") < table.shape[0]


def _rows_forward(table, ids, dtype, grad_dtype):
    return _rows(table, ids, dtype, grad_dtype), (table, ids)


def _rows_backward(dtype, grad_dtype, kept, rows):
    table, ids = kept
    rows = shard.constrain(rows, "batch", None, "embed")
    if _exchanged(table, ids):
        ids = shard.constrain(ids, "replica", None)
        rows = shard.constrain(rows, "replica", None, "embed", table=shard.AT_REST)
    summed = jnp.zeros(table.shape, jnp.float32).at[ids].add(rows)
    summed = summed.astype(jnp.promote_types(grad_dtype, dtype))
    return shard.constrain(summed, "vocab", "embed", table=shard.AT_REST).astype(table.dtype), None


_rows.defvjp(_rows_forward, _rows_backward)


class TextEmbed(nnx.Module):
    """Token embeddings plus learned positions. An id outside the vocabulary gives NaN, not another token's vector.

    A CLS token comes after the text, with a position more (CoCa), so that a causal one sees all of it.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        width: int,
        *,
        cls_token: bool = False,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        self.token = nnx.Param(init.token(rngs.params(), (vocab_size, width)))
        self.posemb = nnx.Param(init.text_posemb(rngs.params(), (length + cls_token, width)))
        self.cls = nnx.Param(init.text_posemb(rngs.params(), (width,))) if cls_token else None
        self.length, self.dtype = length, dtype

    def __call__(self, text: Int[Array, "batch time"]) -> Float[Array, "batch time_and_cls dim"]:
        if text.shape[1] > self.length:
            raise UserError(f"texts of {text.shape[1]} tokens are longer than the model's length={self.length}.")
        x = take_rows(self.token[...], text, self.dtype)
        if self.cls is not None:
            x = jnp.concatenate([x, repeat(self.cls[...][None], text.shape[0], "float32")], axis=1)
        x = x + shard.constrain(self.posemb[: x.shape[1]], None, "embed")
        return shard.constrain(x.astype(self.dtype), "batch", None, "embed")

    def packed(
        self, text: Int[Array, "batch time"], positions: Int[Array, "batch time"]
    ) -> Float[Array, "batch time dim"]:
        """The same for packed texts; a position beyond the model's length gives NaN."""
        x = take_rows(self.token[...], text, self.dtype) + take_rows(self.posemb[...], positions, self.dtype)
        return shard.constrain(x.astype(self.dtype), "batch", None, "embed")


class TokenEmbed(nnx.Module):
    """Token embeddings without positions. An id outside the vocabulary gives NaN, not another token's vector."""

    def __init__(self, vocab_size: int, width: int, *, dtype: str, init: Initializers, rngs: nnx.Rngs):
        self.token = nnx.Param(init.token(rngs.params(), (vocab_size, width)))
        self.dtype = dtype

    def __call__(self, text: Int[Array, "batch time"]) -> Float[Array, "batch time dim"]:
        return shard.constrain(take_rows(self.token[...], text, self.dtype).astype(self.dtype), "batch", None, "embed")


class VocabularyHead(nnx.Module):
    """The matrix of a linear classifier over a vocabulary, a row a token; losses apply it block by block."""

    def __init__(self, vocab_size: int, width: int, *, init: Initializer | None = None, rngs: nnx.Rngs):
        init = init or normal(width**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (vocab_size, width)))
