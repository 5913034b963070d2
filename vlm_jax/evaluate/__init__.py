"""Evaluators: `evaluator(predict, mesh) -> Result`, exact, on all devices."""
