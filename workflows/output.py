"""What commands print for programs: one JSON object, the last line of stdout."""

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
"""The `--json` option of every command that has a result."""


def print_json(value: Mapping[str, Any]) -> None:
    """Print `value` as one line of JSON; call it last (`--json` of every command)."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()
