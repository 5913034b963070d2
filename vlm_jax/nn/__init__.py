"""Networks: Flax NNX modules inside, pure functions over nested dicts outside (`functional.Functional`)."""
