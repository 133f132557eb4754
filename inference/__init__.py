"""DICOM datasets to arrays, arrays to predictions: one piece of code for training and service.

Importing this package loads neither torch nor anything else that is heavy; its modules do
what they say when they are imported themselves.
"""
