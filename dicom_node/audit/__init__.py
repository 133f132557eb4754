"""The audit trail by DICOM PS3.15 A.5: what is said, where it is kept, how it leaves."""
