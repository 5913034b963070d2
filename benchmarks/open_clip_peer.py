"""One rank of open_clip's losses, on a CPU, without its network: what the other ranks would send is handed to it."""

from __future__ import annotations

import importlib.util
import itertools
import pathlib
from types import ModuleType
from typing import Any


def load() -> ModuleType | None:
    """The loss file of the installed `open_clip_torch`, alone, as the package needs a matching torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None or importlib.util.find_spec("torch") is None:
        return None
    path = pathlib.Path(package.submodule_search_locations[0], "loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rank_loss(module: ModuleType, loss: str, rank: int, images: list, texts: list, scale, bias=None) -> Any:
    """What `rank` computes: for the sigmoid loss by its default exchange; for InfoNCE by `local_loss`.

    The mean over the ranks is the loss of the global batch.
    """
    ranks, image, text = len(images), images[rank], texts[rank]
    if loss == "sigmoid":
        others = itertools.cycle(texts[:rank] + texts[rank + 1 :])
        module.neighbour_exchange_bidir_with_grad = lambda *_: (next(others), next(others))
        module.neighbour_exchange_with_grad = lambda *_: next(others)
        return module.SigLipLoss(rank=rank, world_size=ranks)(image, text, scale, bias)
    import torch

    module.gather_features = lambda *_, **__: (torch.cat(images), torch.cat(texts))
    clip = module.ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=ranks)
    return clip(image, text, scale)


def kept_for_backward(module: ModuleType, loss: str, ranks: int, batch: int, dim: int) -> int:
    """Bytes that a rank with `batch` f32 pairs keeps for its backward pass, every buffer counted once."""
    import torch

    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images, texts = ([torch.zeros(batch, dim, requires_grad=True) for _ in range(ranks)] for _ in range(2))
    scale, bias = (torch.tensor(x, requires_grad=True) for x in (10.0, -10.0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = rank_loss(module, loss, 0, images, texts, scale, bias)  # alive, so that no address comes twice
    assert value.requires_grad
    return sum(kept.values())
