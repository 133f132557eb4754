"""A clinical decision-support node: studies in by C-STORE, results out as SEG and SR."""

__version__ = "0.1.0"
