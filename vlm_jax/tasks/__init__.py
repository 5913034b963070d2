"""Objectives: what the one trainer trains."""
