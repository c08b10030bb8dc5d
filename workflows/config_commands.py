"""`oneflow config`: show a resolved config, or the JSON Schema of a kind."""

from typing import Annotated

import typer

from workflows.output import AsJson, print_json

config_app = typer.Typer(help="Look at configs and what they may hold.", no_args_is_help=True)

Target = Annotated[
    str, typer.Argument(metavar="KIND/NAME", help="e.g. train/nano, or KIND/path/to/file.yaml")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value.")
]


@config_app.command()
def show(target: Target, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the config with defaults and overrides resolved, as YAML (or JSON)."""
    from workflows.config import digest, load, to_yaml

    kind, name = _split(target)
    config = load(kind, name, overrides or [])
    typer.echo(to_yaml(config), nl=False)
    if as_json:
        print_json({"digest": digest(config), "config": config.model_dump(mode="json")})


@config_app.command()
def schema(target: Annotated[str, typer.Argument(metavar="KIND[/NAME]")]) -> None:
    """Print the JSON Schema of a kind of config, every field with its description."""
    import json

    from workflows.config import load, model_of

    kind, name = _split(target)
    if name:
        load(kind, name)
    typer.echo(json.dumps(model_of(kind).model_json_schema(), indent=2))


@config_app.command("list")
def list_presets() -> None:
    """Print every preset as KIND/NAME."""
    from workflows.config import KINDS, presets

    for kind in KINDS:
        for name in presets(kind):
            typer.echo(f"{kind}/{name}")


def _split(target: str) -> tuple[str, str]:
    kind, _, name = target.partition("/")
    return kind, name
