"""The judge that looks: results of the node, in OHIF, in a real browser, over a real archive."""
