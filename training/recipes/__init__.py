"""The recipes of the shipped models, one TOML file each."""
