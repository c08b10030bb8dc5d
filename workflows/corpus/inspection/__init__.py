"""Inspect: what a sharded corpus holds, for people: in figures, in a terminal, and as a page with pictures."""

from workflows.corpus.inspection.figures import Inspection, inspect
from workflows.corpus.inspection.page import page
from workflows.corpus.inspection.terminal import render

__all__ = ["Inspection", "inspect", "page", "render"]
