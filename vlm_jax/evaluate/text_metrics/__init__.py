"""Scores of generated texts. Each takes texts or tokens and gives numbers; no model, no file, no Java."""
