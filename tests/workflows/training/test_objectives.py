"""One config line switches the objective: each trains, shows samples, is exported, loads and generates."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.workflows.training.corpus import tiny_config, write_corpus
from workflows.errors import UsageError
from workflows.training.export import best_of, checkpoint_of, export
from workflows.training.loop import Trainer
from workflows.training.materials import gather
from workflows.training.parallel import Worker

PROMPTS = [Prompt(("a red thing",), "image"), Prompt(("a red",), "text")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("objectives") / "corpus"
    write_corpus(base, real=True)
    return base


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__kind": "transfusion"},
        {"objective__kind": "masked", "objective__masked_length": 20},
        {"model__dims__prompt_attention": "prefix", "objective__copies": 2},
    ],
    ids=["transfusion", "masked", "prefix"],
)
def test_a_run_of_each_objective_ends_in_a_model_that_generates(
    alone: Worker, corpus: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    config = tiny_config(
        corpus,
        tmp_path / "runs",
        budget__steps=8,
        watch__prompts=["a red thing"],
        watch__sample_every=8,
        registry__image_size=32,
        registry__codec=str(corpus / "codec"),
        registry__encoder=str(corpus / "encoder"),
        **changes,
    )
    materials, root = gather(config), str(tmp_path / "run")
    outcome = Trainer(config, materials, alone, root).run()
    assert outcome.step == 8 and outcome.metrics["heldout/loss"] > 0
    best, trained = best_of(root)
    export(config, materials, trained, None, tmp_path / "model")
    loaded = OneFlowPipeline.from_pretrained(tmp_path / "model")
    kind = changes.get("objective__kind", "oneflow")
    assert loaded.parts.model.config.objective == kind
    image, text = loaded(PROMPTS, steps=4, seeds=[1, 2])
    assert [i.size for i in image.images] == [(32, 32)]
    assert not text.images
    export(config, materials, checkpoint_of(root, materials, best.step), None, tmp_path / "again")
    again = OneFlowPipeline.from_pretrained(tmp_path / "again")(PROMPTS, steps=4, seeds=[1, 2])
    assert [d.text for d in again] == [image.text, text.text]
    if kind == "masked":
        assert loaded.defaults.length == 20
        with pytest.raises(ValueError, match="cannot choose where images stand"):
            loaded([Prompt((), "document")])


def test_dimensions_that_do_not_suit_the_objective_are_refused(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(
        corpus, tmp_path, objective__kind="transfusion", model__dims__prompt_attention="prefix"
    )
    with pytest.raises(UsageError, match="causal"):
        gather(config)
