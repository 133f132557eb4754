"""One command; each file adds its own subcommands, calls one service, prints."""
