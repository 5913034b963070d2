"""Vision-language pretraining in JAX: pure functions, sharded losses, runs that resume exactly."""

__version__ = "0.1.0"
