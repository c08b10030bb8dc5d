import hashlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from workflows import config as configs
from workflows.config import Config, digest, load, to_yaml
from workflows.errors import UsageError


class Inner(Config):
    steps: int = 3
    """Optimizer steps."""
    rate: float = 0.5


class Outer(Config):
    name: str
    inner: Inner = Inner()
    sources: list[Inner] = []
    by_name: dict[str, Inner] = {}


@pytest.fixture(autouse=True)
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(configs.KINDS, "probe", f"{__name__}:Outer")
    monkeypatch.setattr(configs, "CONFIG_DIR", tmp_path)
    configs.model_of.cache_clear()
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "first.yaml").write_text("name: a\ninner: {steps: 7}\nsources: [{steps: 1}]\n")
    return tmp_path


def refusal(name: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load("probe", name, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_preset_path_and_overrides_agree(kind: Path) -> None:
    from_preset: Outer = load("probe", "first", ["inner.rate=2e-1", "sources.0.steps=9", "by_name.x.steps=4"])
    assert from_preset.inner == Inner(steps=7, rate=0.2)
    assert from_preset.sources == [Inner(steps=9)]
    assert from_preset.by_name == {"x": Inner(steps=4)}
    assert load("probe", str(kind / "probe" / "first.yaml")) == load("probe", "first")


@pytest.mark.parametrize(
    ("override", "path", "nearest"),
    [
        ("inner.stepz=3", "inner.stepz", "steps"),
        ("nmae=x", "nmae", "name"),
        ("sources.0.ratee=1", "sources.0.ratee", "rate"),
        ("by_name.k.steps_=1", "by_name.k.steps_", "steps"),
    ],
)
def test_unknown_key_is_refused_with_its_path_and_the_nearest_name(
    override: str, path: str, nearest: str
) -> None:
    message = refusal("first", override)
    assert f'unknown key "{path}"' in message
    assert f'did you mean "{nearest}"' in message


def test_wrong_type_names_key_and_value() -> None:
    assert "inner.steps = 'many'" in refusal("first", "inner.steps=many")


@pytest.mark.parametrize(
    "override", ["steps", "=3", "inner..steps=1", "name.deep=1", "sources.4.steps=1", "name=[1"]
)
def test_malformed_override_is_refused(override: str) -> None:
    assert f'--set "{override}"' in refusal("first", override)


def test_misspelt_preset_suggests_the_nearest() -> None:
    assert 'did you mean "first"' in refusal("frist")


def test_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="corpus"):
        load("corpsu", "x")


@pytest.mark.parametrize("text", ["- 1\n", "a: [1\n", "just text"])
def test_file_that_is_no_mapping_is_refused(kind: Path, text: str) -> None:
    (kind / "bad.yaml").write_text(text)
    assert "bad.yaml" in refusal(str(kind / "bad.yaml"))


def test_missing_key_is_named(kind: Path) -> None:
    (kind / "empty.yaml").write_text("")
    assert 'key "name" is missing' in refusal(str(kind / "empty.yaml"))


@given(st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_yaml_round_trip_keeps_config_and_digest(name: str, steps: int, rate: float) -> None:
    config = Outer(name=name, inner=Inner(steps=steps, rate=rate))
    again = Outer.model_validate(yaml.safe_load(to_yaml(config)))
    assert again == config
    assert digest(again) == digest(config)


def test_digest_is_sha256_of_sorted_json_and_sees_every_value() -> None:
    tree = {"by_name": {}, "inner": {"rate": 0.5, "steps": 3}, "name": "a", "sources": []}
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    assert digest(Outer(name="a")) == hashlib.sha256(text.encode()).hexdigest()
    assert digest(Outer(name="a", inner=Inner(rate=0.25))) != digest(Outer(name="a"))


def test_field_text_becomes_the_description() -> None:
    schema = Outer.model_json_schema()
    assert schema["$defs"]["Inner"]["properties"]["steps"]["description"] == "Optimizer steps."
