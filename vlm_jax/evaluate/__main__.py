"""`python -m vlm_jax.evaluate run PATH`, and `compare PATH PATH`."""

import sys

from vlm_jax.evaluate.command import main

if __name__ == "__main__":
    sys.exit(main())
