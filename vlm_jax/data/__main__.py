"""`python -m vlm_jax.data TOOL SOURCE`: looks at data, converts, measures and chooses it."""

import sys

from vlm_jax.data.tools.command import main

if __name__ == "__main__":
    sys.exit(main())
