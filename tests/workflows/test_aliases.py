"""An alias goes forward and back, whoever moved it, and whatever died in between."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from workflows import aliases
from workflows.cli import app
from workflows.errors import Refused, UsageError

NAMES = iter(f"model-{number}" for number in range(100))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("MLFLOW_REGISTRY_URI", uri)
        yield MlflowClient(uri)


@pytest.fixture
def name(client: MlflowClient) -> str:
    """A registered model with versions 1 to 4."""
    found = next(NAMES)
    client.create_registered_model(found)
    for _ in range(4):
        client.create_model_version(found, "/nowhere")
    return found


def call(*arguments: str) -> dict[str, str | None]:
    done = CliRunner().invoke(app, ["models", *arguments, "--json"])
    if done.exception:
        raise done.exception
    told: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return told


def holder(client: MlflowClient, name: str) -> str:
    return str(client.get_model_version_by_alias(name, "champion").version)


def test_repeated_rollbacks_walk_back_through_history(client: MlflowClient, name: str) -> None:
    for version in "1231":
        call("promote", f"models:/{name}/{version}")
    call("promote", f"models:/{name}/1")
    told = call("rollback", f"models:/{name}")
    assert (told["version"], told["before"], told["uri"]) == ("3", "1", f"models:/{name}@champion")
    tags = client.get_model_version(name, "3").tags
    assert tags["alias.champion.why"] == "rolled back from version 1" and tags["alias.champion.before"] == "1"
    assert (
        client.get_model_version(name, "1").tags["alias.champion.rolled_back"].startswith("to version 3 at 2")
    )
    assert [call("rollback", f"models:/{name}")["version"] for _ in range(2)] == ["2", "1"]
    with pytest.raises(Refused, match="no version that is still there is known to have held it before"):
        call("rollback", f"models:/{name}")
    assert holder(client, name) == "1"
    call("promote", f"models:/{name}/4", "--alias", "other")
    with pytest.raises(Refused, match="known to have held it before"):
        call("rollback", f"models:/{name}", "--alias", "other")


def test_a_promotion_says_whom_it_follows(client: MlflowClient, name: str) -> None:
    assert call("promote", f"models:/{name}/1")["before"] is None
    assert call("promote", f"models:/{name}/2")["before"] == "1"
    tags = client.get_model_version(name, "2").tags
    assert tags["alias.champion.before"] == "1" and tags["alias.champion.why"] == "promoted by hand"
    assert client.get_model_version(name, "1").tags["alias.champion.before"] == "none"


def test_moves_that_others_made_are_gone_back_from_too(client: MlflowClient, name: str) -> None:
    client.set_registered_model_alias(name, "champion", "2")
    call("promote", f"models:/{name}/3")
    assert call("rollback", f"models:/{name}")["version"] == "2"
    call("promote", f"models:/{name}/1")
    client.set_registered_model_alias(name, "champion", "4")
    assert call("rollback", f"models:/{name}")["version"] == "1", "the last one that is known"


def test_a_deleted_version_is_passed_over(client: MlflowClient, name: str) -> None:
    for version in "123":
        call("promote", f"models:/{name}/{version}")
    client.delete_model_version(name, "2")
    assert call("rollback", f"models:/{name}")["version"] == "1"


@pytest.mark.parametrize("calls", range(1, 8))
def test_a_process_that_dies_in_between_leaves_a_way_back(
    client: MlflowClient, name: str, calls: int
) -> None:
    """Every write to the registry may be the last: what is repeated then ends as if nothing had happened."""

    class Died(Exception):
        pass

    class Mortal:
        def __init__(self, lives: int) -> None:
            self.lives = lives

        def __getattr__(self, wanted: str) -> object:
            if wanted.startswith("set_"):
                if self.lives == 0:
                    raise Died
                self.lives -= 1
            return getattr(client, wanted)

    client.set_registered_model_alias(name, "champion", "1")
    for act, wanted in (
        (lambda c: aliases.move(c, name, "champion", "2", "because"), "2"),
        (lambda c: aliases.move(c, name, "champion", "3", "because"), "3"),
        (lambda c: aliases.roll_back(c, name, "champion"), "2"),
    ):
        try:
            act(Mortal(calls))
        except Died:
            if holder(client, name) != wanted:
                act(client)
        assert holder(client, name) == wanted
    assert aliases.roll_back(client, name, "champion").version == "1"


def test_what_is_no_model_and_what_nobody_holds_is_told(client: MlflowClient, name: str) -> None:
    for said in (name, f"models:/{name}/3", f"models:/{name}@champion", "models:/"):
        with pytest.raises(UsageError, match="models:/NAME"):
            call("rollback", said)
    with pytest.raises(Refused, match="no version holds that alias"):
        call("rollback", f"models:/{name}")
