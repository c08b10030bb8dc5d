"""The trunk against transformers' Llama: the same weights give the same hidden states."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from oneflow_core.model import AttentionPlan, ModelConfig, OneFlowModel
from oneflow_core.model.llama import LlamaError, load_llama

TINY = ModelConfig(
    vocab_size=60, width=32, layers=3, heads=4, kv_heads=2, ffn=48, latent_channels=4, feature_dim=8
)


def random_llama(**rope: float | str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=TINY.width,
        intermediate_size=TINY.ffn,
        num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.heads,
        num_key_value_heads=TINY.kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": TINY.rope_theta, **rope},
        rms_norm_eps=TINY.norm_eps,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return random_llama()


@pytest.fixture(scope="module", params=["one file", "several files"])
def checkpoint(
    llama: LlamaForCausalLM, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(root, max_shard_size="20KB" if request.param == "several files" else "1GB")
    assert (root / "model.safetensors.index.json").exists() == (request.param == "several files")
    return root


def test_llama_3s_slowed_rotations_are_the_same(tmp_path: Path) -> None:
    bounds = {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama = random_llama(rope_type="llama3", factor=32.0, **bounds)
    llama.save_pretrained(tmp_path)
    with pytest.raises(LlamaError, match="rope_scaling is 1.0 in the model and 32.0"):
        load_llama(OneFlowModel(TINY), tmp_path)
    model = OneFlowModel(replace(TINY, rope_scaling=32.0)).eval()
    load_llama(model, tmp_path)
    tokens, places = torch.arange(12), torch.arange(12) * 700
    with torch.no_grad():
        theirs = llama.model(tokens[None], position_ids=places[None]).last_hidden_state[0]
        plan = AttentionPlan.build(np.array([12]), np.arange(12))
        ours = model.backbone(model.embedding(tokens), places, plan)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_hidden_states_are_llamas(llama: LlamaForCausalLM, checkpoint: Path, causal: bool) -> None:
    model = OneFlowModel(TINY).eval()
    load_llama(model, checkpoint)
    tokens = torch.randint(0, 50, (11,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mask = None if causal else torch.zeros(1, 1, 11, 11)
        theirs = llama.model(tokens[None], attention_mask=mask).last_hidden_state[0]
        plan = AttentionPlan.build(np.array([11]), np.arange(11) if causal else None)
        ours = model.backbone(model.embedding(tokens), torch.arange(11), plan)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_ids_that_llama_has_not_and_the_heads_keep_their_start(checkpoint: Path) -> None:
    torch.manual_seed(3)
    model = OneFlowModel(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_llama(model, checkpoint)
    assert torch.equal(model.embedding.weight[50:], before["embedding.weight"][50:])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {n for n in before if n.startswith("backbone.")} | {"embedding.weight"}


def test_another_size_is_refused_by_name(checkpoint: Path) -> None:
    with pytest.raises(LlamaError, match="ffn is 64 in the model and 48 in the checkpoint"):
        load_llama(OneFlowModel(replace(TINY, ffn=64)), checkpoint)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(LlamaError, match="config.json"):
        load_llama(OneFlowModel(TINY), tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(LlamaError, match="model.safetensors"):
        load_llama(OneFlowModel(TINY), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(LlamaError, match="give a directory"):
        load_llama(OneFlowModel(TINY), tmp_path)


def test_file_names_of_an_index_do_not_leave_the_directory(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../../etc/passwd"}})
    )
    with pytest.raises(LlamaError, match=f"{tmp_path}.*passwd"):
        load_llama(OneFlowModel(TINY), tmp_path)
