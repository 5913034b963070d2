"""`python -m tests.faults.program ARGUMENTS`: the trainer, which says where it is: `@step`, `@save`, ... on a line.

A test that reads its output can then do what it does at the worst moment. What failed is tried again soon.
"""

from __future__ import annotations

import functools
import sys

PHASES = ("index", "restore", "step", "save", "evaluate")


def marked(owner, name: str, phase: str) -> None:
    """Makes the function say that its phase begins."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*arguments, **options):
        print(f"@{phase}", flush=True)
        return inner(*arguments, **options)

    setattr(owner, name, outer)


if __name__ == "__main__":
    from vlm_jax import run
    from vlm_jax.checkpoint import store
    from vlm_jax.data.sources import webdataset
    from vlm_jax.main import main

    store.FIRST_RETRY = 0.2
    marked(webdataset, "indexes", "index")
    marked(store.Store, "restore_latest", "restore")
    marked(run.Run, "next_batch", "step")
    marked(run.Run, "save", "save")
    marked(run.Run, "evaluate", "evaluate")
    sys.exit(main(sys.argv[1:]))
