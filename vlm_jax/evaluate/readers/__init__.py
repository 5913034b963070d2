"""Readers of public evaluation sets, in the layouts that their authors publish, and their like on drawn shapes."""
