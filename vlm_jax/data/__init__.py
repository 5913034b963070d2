"""Images and texts from where they lie to the batches of a step."""
