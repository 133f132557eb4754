"""Inbound associations: translates events into service calls, decides nothing."""
