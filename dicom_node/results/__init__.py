"""Predictions to DICOM objects: pure functions, no network."""
