"""Grids of `dicom-node claims`, with the recipes that only they use."""
