"""Which documents that were kept are left out of a corpus: what that depends on the others."""

from workflows.config import Config


class DuplicatesConfig(Config):
    """What is done about documents that are there twice."""
