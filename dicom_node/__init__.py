"""A clinical decision-support node: studies in by C-STORE, results out as SEG and SR."""

__version__ = "0.1.0"

IMPLEMENTATION_CLASS_UID = "2.25.95846623718129024994425519601200099982"
IMPLEMENTATION_VERSION_NAME = "DICOM_NODE_1"  # PS3.7 D.3.3.2: at most 16 characters
