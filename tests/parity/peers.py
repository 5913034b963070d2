"""Brings up PyTorch, torchvision and transformers for the parity tests, or skips them with the reason."""

import pytest


def torch():
    """The `torch` module."""
    return pytest.importorskip("torch", reason="parity tests compare with PyTorch: pip install 'vlm_jax[parity]'")


def transformers():
    """The `transformers` module, ready to build models."""
    _torchvision_operators()
    return pytest.importorskip("transformers", reason="parity tests need it: pip install 'vlm_jax[parity]'")


def torchvision(module: str):
    """A module of torchvision, or of what is built on it."""
    _torchvision_operators()
    return pytest.importorskip(module, reason="parity tests need it: pip install 'vlm_jax[parity]'")


def _torchvision_operators() -> None:
    library = torch().library
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:  # a torchvision built for CUDA beside a CPU torch lacks operators that nothing here calls
        global _operators
        _operators = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor x) -> Tensor")
