"""`python -m vlm_jax.launch`."""

import sys

from vlm_jax.launch.command import main

if __name__ == "__main__":
    sys.exit(main())
