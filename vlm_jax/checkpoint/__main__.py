"""`python -m vlm_jax.checkpoint list|verify|diff|prune WORKDIR`."""

import sys

from vlm_jax.checkpoint.command import main

if __name__ == "__main__":
    sys.exit(main())
