"""A training step of the package transfusion-pytorch; runs in a process that has it."""

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from workflows.bench.meters import cost
from workflows.bench.pairs import Sizes, draw


def step(sizes: dict[str, int], device: str) -> Callable[[int], dict[str, Any]]:
    """The answer takes one step on the batch of a seed: forward and backward, without the optimiser."""
    warnings.simplefilter("ignore")
    from transfusion_pytorch import Transfusion

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = Sizes(**sizes)
    transformer = {
        "dim": shape.peer_width,
        "depth": shape.layers,
        "heads": shape.peer_heads,
        "dim_head": shape.head_dim,
        "use_flex_attn": device.startswith("cuda"),
    }
    model = Transfusion(
        num_text_tokens=shape.vocabulary,
        dim_latent=shape.channels,
        modality_default_shape=(shape.side, shape.side),
        transformer=transformer,
    ).to(device)
    parameters = sum(p.numel() for p in model.parameters())

    def answer(seed: int) -> dict[str, Any]:
        pairs = draw(shape, seed)
        batch = [
            [torch.from_numpy(ids).to(device), torch.from_numpy(latent).permute(1, 2, 0).to(device)]
            for ids, latent in pairs
        ]
        model.zero_grad()
        with cost(device) as spent:
            loss = model(batch)
            loss.backward()
        told = {"seconds": spent.seconds, "loss": loss.item(), "parameters": parameters}
        return told | {
            "version": version("transfusion-pytorch"),
            "vocabulary": model.text_embed.num_embeddings,
        }

    return answer
