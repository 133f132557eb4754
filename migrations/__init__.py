"""Alembic revisions of the node's database, shipped with it."""
