"""The decisions: standard library only, no I/O, no clock of their own."""
