"""Fine-tunes, evaluates and exports model bundles. Imports ``inference``, never ``dicom_node``."""
