"""A run's health: guards in the step, stalls noticed, and what its wall time went to."""
