"""Filters: which well-formed documents a source's owner does not want, row by row."""

from workflows.config import Config


class FiltersConfig(Config):
    """What is left out of a source; each is counted under its own reason."""
