"""`hf:ORG/NAME`: a folder of the Hugging Face hub, fetched and kept by huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from vlm_jax.errors import UserError

PREFIX = "hf:"
# Weights in torch's format are fetched only where there are no others.
WANTED = ("*.json", "*.model", "*.txt", "*.safetensors")


def is_name(path: str | Path) -> bool:
    """Whether it is a name on the hub and not a path."""
    return str(path).startswith(PREFIX)


def fetch(path: str | Path) -> Path:
    """The local folder of `hf:ORG/NAME`; a path as it is. Raises UserError where it cannot be had."""
    if not is_name(path):
        if not Path(path).exists():
            raise UserError(f"{path}: no such file or folder.")
        return Path(path)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{path} needs the package huggingface_hub: pip install 'vlm_jax[hf]'") from None

    name = str(path).removeprefix(PREFIX)
    try:
        folder = Path(snapshot_download(name, allow_patterns=WANTED))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*WANTED, "*.bin", "*.bin.index.json"]))
    except Exception as error:  # it raises the errors of several libraries
        raise UserError(f"{path} cannot be fetched: {str(error).splitlines()[0]}") from error
    return folder
