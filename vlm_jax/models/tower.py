"""What image and text towers share: sizes, transformer blocks, last norm, pooling, head."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import UserError, closest
from vlm_jax.nn.activations import ACTIVATIONS
from vlm_jax.nn.functional import Functional, Params
from vlm_jax.nn.initializers import STYLES, Initializers, initializers
from vlm_jax.nn.layers import layer_norm, linear
from vlm_jax.nn.pool import MapHead
from vlm_jax.nn.swiglu import SWIGLU
from vlm_jax.nn.transformer import REMAT, Transformer


class Size(NamedTuple):
    """Width of the residual stream, number of blocks, hidden width of the MLP, attention heads."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int


# Ti, S: Touvron et al. 2021; B, L: Dosovitskiy et al. 2021; So400m: Alabdulmohsin et al. 2023; g: Zhai et al. 2022.
SIZES = {
    "Ti": Size(192, 12, 768, 3),
    "S": Size(384, 12, 1536, 6),
    "B": Size(768, 12, 3072, 12),
    "L": Size(1024, 24, 4096, 16),
    "So400m": Size(1152, 27, 4304, 16),
    "g": Size(1408, 40, 6144, 16),
}


def check(field: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError with the nearest choices where `value` is none of them."""
    if value not in choices:
        raise UserError(f"unknown {field}={value!r}; {closest(str(value), choices)}")


def stacks_of(**parts: Any) -> dict[str, int]:
    """Names of the scanned groups of layers of a model's parts, under the parts' names, and their depth."""
    return {f"{name}/{group}": depth for name, part in parts.items() for group, depth in part.stacks.items()}


@dataclasses.dataclass(frozen=True)
class Stack(abc.ABC):
    """Pre-norm transformer blocks, their sizes and how they are computed.

    Attributes:
      size: Ti, S, B, L, So400m or g; `width`, `depth`, `mlp_dim`, `num_heads` replace parts of it. With a width of
        its own and nothing else said, the MLP is 4 widths and a head about 64 wide, as in the named sizes.
      activation: "gelu", "gelu_tanh", "quick_gelu", or "swiglu", whose two branches are `mlp_dim` wide each.
      layer_scale: where the learned factors of each branch start (Touvron et al. 2021; DINOv2); None for none.
      scan, remat: see `nn.transformer.Transformer`.
      dtype: of the computation, "bfloat16" or "float32"; parameters are f32.
      init_style: "jax" (big_vision's) or "clip" (open_clip's); see `nn.initializers`.
    """

    size: str = "B"
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    num_heads: int | None = None
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    layer_scale: float | None = None
    scan: bool = False
    remat: str = "none"
    dtype: str = "bfloat16"
    init_style: str = "jax"

    def __post_init__(self):
        self.validate()

    sizes: ClassVar[Mapping[str, Size]] = SIZES

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        check("size", self.size, self.sizes)
        for field, value in self.geometry._asdict().items():
            if value < 1:
                raise UserError(f"{field}={value} must be at least 1.")
        if self.geometry.width % self.geometry.num_heads:
            raise UserError(
                f"width={self.geometry.width} is not divisible by num_heads={self.geometry.num_heads}; set both."
            )
        check("activation", self.activation, (*ACTIVATIONS, SWIGLU))
        check("remat", self.remat, REMAT)
        check("dtype", self.dtype, ("bfloat16", "float32"))
        check("init_style", self.init_style, STYLES)

    @functools.cached_property
    def geometry(self) -> Size:
        """Width, depth, MLP width and heads, after the overrides."""
        size = self.sizes[self.size]
        if self.width is not None:
            size = size._replace(width=self.width, mlp_dim=4 * self.width, num_heads=max(1, self.width // 64))
        given = {field: getattr(self, field) for field in ("depth", "mlp_dim", "num_heads")}
        return size._replace(**{field: value for field, value in given.items() if value is not None})

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return {"blocks": self.geometry.depth} if self.scan else {}

    @property
    def _causal(self) -> bool:
        return False

    @property
    def _block_options(self) -> dict[str, Any]:
        """Arguments of `Transformer`."""
        return {
            **self.geometry._asdict(),
            "activation": self.activation,
            "norm_eps": self.norm_eps,
            "qkv_bias": self.qkv_bias,
            "causal": self._causal,
            "scan": self.scan,
            "remat": self.remat,
            "dtype": self.dtype,
            "init_style": self.init_style,
            "layer_scale": self.layer_scale,
        }

    @functools.cached_property
    def _init(self) -> Initializers:
        return initializers(self.init_style, width=self.geometry.width, depth=self.geometry.depth)

    @functools.cached_property
    def _blocks(self) -> Transformer:
        return Transformer(**self._block_options)

    def _norm(self, width: int | None = None) -> Functional:
        """Of the residual stream, or of another width."""
        return Functional(layer_norm, width or self.geometry.width, epsilon=self.norm_eps, dtype=self.dtype)

    @property
    @abc.abstractmethod
    def _parts(self) -> dict[str, Functional]:
        """Everything but the blocks, by the name of its parameters."""

    def init(self, key: Array) -> Params:
        """Parameters as nested dicts of f32 arrays; layers are stacked where they are scanned."""
        parts = {**self._parts, "blocks": self._blocks}
        keys = jax.random.split(key, len(parts))
        return {name: part.init(k) for (name, part), k in zip(parts.items(), keys)}


@dataclasses.dataclass(frozen=True)
class Tower(Stack):
    """A transformer encoder that gives one vector an example; subclasses add how inputs are embedded.

    Parameters: `embed/...`, `blocks/...`, `ln_post`, `pool/...` (pool="map"), `head` (with `out_dim`).

    Attributes (besides those of `Stack`):
      out_dim: width of the linear head; None for no head.
    """

    pool: str = "map"
    out_dim: int | None = None
    head_bias: bool = True

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        if self.activation == SWIGLU and self.pool == "map":
            raise UserError("activation='swiglu' has no pool='map'; take another pooling or activation.")

    @property
    def dim(self) -> int:
        """Width of the output."""
        return self.geometry.width if self.out_dim is None else self.out_dim

    @property
    def tap_names(self) -> tuple[str, ...]:
        """Names of the activations that `apply` can return."""
        return ("embed", *self._blocks.tap_names, "ln_post", "pool")

    @abc.abstractmethod
    def _embed(self, init: Initializers) -> Functional:
        """What makes tokens of the input."""

    @functools.cached_property
    def _parts(self) -> dict[str, Functional]:
        width, _, mlp_dim, num_heads = self.geometry
        parts = {"embed": self._embed(self._init), "ln_post": self._norm()}
        if self.pool == "map":
            options = {"activation": self.activation, "norm_eps": self.norm_eps, "dtype": self.dtype}
            parts["pool"] = Functional(MapHead, width, num_heads, mlp_dim, **options, init=self._init)
        if self.out_dim is not None:
            parts["head"] = self._head(width)
        return parts

    def _head(self, width: int) -> Functional:
        """From `width` to `out_dim`."""
        return Functional(linear, width, self.out_dim, bias=self.head_bias, init=self._init.head, dtype=self.dtype)

    def _check_taps(self, taps: Sequence[str]) -> None:
        for tap in taps:
            check("tap", tap, self.tap_names)

    def _encode(
        self,
        params: Params,
        x: Float[Array, "batch time dim"],
        pool: Callable[[Float[Array, "batch time dim"]], Float[Array, "batch dim"]],
        mask: Bool[Array, "batch time"] | None = None,
        *,
        taps: Sequence[str],
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """From embedded tokens to the output; tokens where `mask` is false are not attended to."""
        self._check_taps(taps)
        outputs = {"embed": x}
        mask_of_keys = None if mask is None else mask[:, None]
        stream, blocks = self._blocks.stream(params["blocks"], x, mask_of_keys, taps=taps)
        x = self._parts["ln_post"](params["ln_post"], *stream, method="of_sum")
        outputs["ln_post"] = x
        x = outputs["pool"] = self._parts["pool"](params["pool"], x, mask) if self.pool == "map" else pool(x)
        if self.out_dim is not None:
            x = self._parts["head"](params["head"], x)
        return x, {"taps": {tap: (outputs | blocks)[tap] for tap in taps}}

    def _encode_packed(
        self,
        params: Params,
        x: Float[Array, "batch time dim"],
        pool: Callable[[Float[Array, "batch time dim"]], Float[Array, "batch count dim"]],
        segment_ids: Int[Array, "batch time"],
        count: int,
    ) -> Float[Array, "batch count dim"]:
        """From embedded tokens of packed sequences to the outputs of segments 1, ..., `count` of each."""
        stream, _ = self._blocks.stream(params["blocks"], x, segment_ids)
        x = self._parts["ln_post"](params["ln_post"], *stream, method="of_sum")
        if self.pool == "map":
            x = self._parts["pool"](params["pool"], x, segment_ids, count, method="segments")
        else:
            x = pool(x)
        return x if self.out_dim is None else self._parts["head"](params["head"], x)
