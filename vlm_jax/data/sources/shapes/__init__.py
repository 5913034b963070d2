"""Drawn scenes of coloured shapes: embedded data with exact ground truth."""

from vlm_jax.data.sources.shapes.conversations import ShapesQuestions
from vlm_jax.data.sources.shapes.source import Shapes

__all__ = ["Shapes", "ShapesQuestions"]
