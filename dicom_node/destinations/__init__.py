"""Outbound: how an object reaches a PACS, a DICOMweb server or a folder."""
