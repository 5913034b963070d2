"""Vision-language pretraining in JAX: pure functions, sharded losses, runs that resume exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_jax.library import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, which brings jax along, is imported when it is asked for."""
    if name == "load":
        from vlm_jax.library import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
