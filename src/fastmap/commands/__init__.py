"""The subcommands of ``python -m fastmap``."""
