"""Reading one item of a step with Orbax, and making sure that it is what was written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlm_jax import tree
from vlm_jax.checkpoint.fingerprint import differing, fingerprint
from vlm_jax.checkpoint.folder import Damaged, hindrance, patiently
from vlm_jax.checkpoint.quiet import all_reads_finished, silence_log


def read_item(folder: Path, targets: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """The arrays of `STEP/ITEM` by per-layer name, verified.

    Args:
      folder: of the item.
      targets: by name, a `ShapeDtypeStruct` with the sharding wanted, or None for a numpy array.
      fingerprints: by name, as `meta` has them.

    Raises:
      Damaged: something is missing, makes no sense, or has another fingerprint.
      Fault: the system does not let it be read.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    silence_log()
    item = tree.unflatten({name: 0 if target is None else target for name, target in targets.items()})
    how = tree.unflatten({name: _restore_args(target) for name, target in targets.items()})

    def read():
        try:
            # The handler by itself: a checkpointer would wait for processes that have raised.
            with all_reads_finished():
                return ocp.PyTreeCheckpointHandler().restore(
                    epath.Path(folder), args=ocp.args.PyTreeRestore(item, restore_args=how)
                )
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # says nothing about the files
        except Exception as error:
            if hindrance(error):
                raise
            raise Damaged(f"{folder.name} cannot be read ({gist(error)})") from error

    found = tree.flatten(agree(lambda: patiently(folder, read)))
    if wrong := differing(fingerprints, fingerprint(found)):
        others = f" and {len(wrong) - 1} more are" if len(wrong) > 1 else " is"
        raise Damaged(f"{folder.name}/{wrong[0]}{others} not what was written")
    return found


def agree(read: Callable[[], Any]) -> Any:
    """The result of `read`; raises Damaged on every process where it did on one: all go on to the same step."""
    try:
        result, problem = read(), None
    except Damaged as damage:
        result, problem = None, damage
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        if multihost_utils.process_allgather(np.asarray(problem is not None)).any() and problem is None:
            problem = Damaged("another process cannot read it")
    if problem is not None:
        raise problem
    return result


def kind(leaf) -> str:
    """Dtype and shape in `meta`: `float32[768,3072]`."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _restore_args(target: jax.ShapeDtypeStruct | None):
    import orbax.checkpoint as ocp

    if target is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = target.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=target.shape, dtype=target.dtype)


def gist(error: Exception) -> str:
    """The start of an error that may go on for hundreds of lines of TensorStore's specification."""
    return re.split(r"[:\n]", str(error), maxsplit=1)[0].strip()[:80] or type(error).__name__
