"""How the embedded latent codec was made: a small AutoencoderKL in SD3's layout, trained from scratch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from oneflow_core.encoders import imagery
from oneflow_core.encoders.latent import LatentCodec
from oneflow_core.muon import LayerMuon
from oneflow_core.shapes import Split

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

EMBEDDED_NAME = "oneflow-vae-16c8"
HELDOUT: tuple[Split, ...] = ("heldout_random", "heldout_pair", "heldout_triple")


@dataclass(frozen=True)
class LatentRecipe:
    """What the fit does; times are wall-clock minutes, weights multiply the mean of their term."""

    widths: tuple[int, ...] = (16, 32, 64, 96)
    groups: int = 2
    """Groups of each normalisation: few, for a group of few channels cannot carry the colour of a flat picture."""
    steps: int = 12000
    minutes: float = math.inf
    """The rate falls to zero at whichever comes first: the last step or this time."""
    shapes: int = 3
    photographs: int = 2
    graphics: int = 1
    cropped: float = 0.4
    """First part of the run that sees twice the pictures at a quarter of the area: cheap steps."""
    rate: float = 3e-3
    warmup: int = 100
    decay: float = 1e-3
    average: float = 0.998
    """Decay of the running average of the weights, which is what is kept."""
    square: float = 5.0
    edge: float = 0.5
    divergence: float = 1e-4
    balance: float = 0.01
    """Weight of each channel's squared mean and (deviation - 1) over the shapes pictures of the batch."""
    noise: float = 0.15
    """Most noise added to a latent in training, in deviations of the latents: the decoder forgives small errors."""
    seed: int = 0


Progress = Callable[[int, dict[str, float]], None]


def new_vae(widths: tuple[int, ...], groups: int, scale: float = 1.0, shift: float = 0.0) -> AutoencoderKL:
    """An untrained AutoencoderKL: 16 channels, /8, no attention, no quant convolutions."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=groups,
        sample_size=imagery.SIZE,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def fit_latent_codec(recipe: LatentRecipe, progress: Progress | None = None, every: int = 100) -> LatentCodec:
    """Trains a codec from scratch; `progress(step, losses)` is called every `every` steps.

    Raises:
        FileNotFoundError: no package that carries photographs is installed.
    """
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    vae = new_vae(recipe.widths, recipe.groups).to(memory_format=torch.channels_last).train()
    # A posterior of deviation 1 would drown the signal for the first thousand steps.
    vae.encoder.conv_out.bias.data[vae.config.latent_channels :] = -6.0
    average = copy.deepcopy(vae).requires_grad_(False)
    optimizer = LayerMuon(vae, recipe.rate, recipe.decay)
    started, step, done = time.monotonic(), 0, 0.0
    while done < 1.0:
        optimizer.set_rate(recipe.rate * min(1.0, (step + 1) / recipe.warmup) * annealed(done))
        losses = _train_step(vae, optimizer, recipe, rng, crop=done < recipe.cropped)
        _follow(average, vae, min(recipe.average, (1 + step) / (10 + step)))
        step += 1
        done = max(step / recipe.steps, (time.monotonic() - started) / 60 / recipe.minutes)
        if progress and step % every == 0:
            progress(step, losses)
    return _finish(average, recipe)


def annealed(done: float) -> float:
    """The factor of the rate at the share `done` of the run: a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _train_step(
    vae: AutoencoderKL, optimizer: LayerMuon, recipe: LatentRecipe, rng: np.random.Generator, crop: bool
) -> dict[str, float]:
    times = 2 if crop else 1
    parts = (
        (imagery.shapes, recipe.shapes * times),
        (imagery.photographs, recipe.photographs * times),
        (imagery.graphics, recipe.graphics * times),
    )
    pictures = imagery.mixture(rng, parts)
    pixels = _to_tensor(imagery.windows(rng, pictures, imagery.SIZE // 2) if crop else pictures)
    terms = _terms(vae, pixels, recipe, recipe.shapes * times)
    loss = (
        terms["absolute"]
        + recipe.square * terms["square"]
        + recipe.edge * terms["edge"]
        + recipe.divergence * terms["divergence"]
        + recipe.balance * terms["balance"]
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return {"loss": loss.item(), **{k: v.item() for k, v in terms.items()}}


def _terms(vae: AutoencoderKL, pixels: Tensor, recipe: LatentRecipe, shapes: int) -> dict[str, Tensor]:
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.sample()
    strength = recipe.noise * torch.rand(len(pixels), 1, 1, 1) * posterior.mean.detach().std()
    error = vae.decode(latents + strength * torch.randn_like(latents)).sample - pixels
    of_shapes = posterior.mean[:shapes].transpose(0, 1).flatten(1)
    return {
        "absolute": error.abs().mean(),
        "square": error.square().mean(),
        "edge": error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean(),
        "divergence": posterior.kl().mean() / latents[0].numel(),
        "balance": of_shapes.mean(1).square().mean() + (of_shapes.std(1) - 1).square().mean(),
    }


def _to_tensor(pictures: imagery.Pictures) -> Tensor:
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
    return pixels.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    kept: list[Tensor] = list(average.parameters())
    new = [p.detach() for p in model.parameters()]
    torch._foreach_lerp_(kept, new, 1 - decay)


@torch.no_grad()
def _finish(average: AutoencoderKL, recipe: LatentRecipe) -> LatentCodec:
    """A codec of the weights rounded to float16, as they are stored, with scale and shift measured on shapes."""
    vae = new_vae(recipe.widths, recipe.groups)
    vae.load_state_dict({k: v.half().float() for k, v in average.state_dict().items()})
    raw = LatentCodec(vae, EMBEDDED_NAME).encode(imagery.shapes(np.random.default_rng(7), 512))
    shift, scale = round(float(raw.mean()), 4), round(1 / float(raw.std()), 4)
    vae.register_to_config(scaling_factor=scale, shift_factor=shift)
    return LatentCodec(vae, EMBEDDED_NAME)


def measure_latent_codec(codec: LatentCodec, count: int = 510) -> dict[str, dict[str, float]]:
    """PSNR in dB (of the pooled squared error) on pictures that training never drew, and the latents' moments.

    The noise of `psnr_of_noisy_latents` is a tenth of the latents' deviation.
    """
    rng = np.random.default_rng(20_000)
    sets = {
        "shapes": np.concatenate([imagery.shapes(rng, count // 3, split) for split in HELDOUT]),
        "photographs": imagery.photographs(rng, count, "heldout"),
        "graphics": imagery.graphics(rng, count),
    }
    torch.manual_seed(0)
    return {name: _measure(codec, pictures) for name, pictures in sets.items()}


def _measure(codec: LatentCodec, pictures: imagery.Pictures) -> dict[str, float]:
    latents = codec.encode(pictures)
    noisy = latents + 0.1 * latents.std() * torch.randn_like(latents)
    return {
        "pictures": len(pictures),
        "psnr": psnr(pictures, codec.decode(latents)),
        "psnr_of_noisy_latents": psnr(pictures, codec.decode(noisy)),
        "latent_mean": round(float(latents.mean()), 4),
        "latent_std": round(float(latents.std()), 4),
    }


def psnr(truth: imagery.Pictures, other: imagery.Pictures) -> float:
    """10 log10(255^2 / mean squared error) over all pictures together, in dB."""
    error = np.mean((truth.astype(np.float64) - other.astype(np.float64)) ** 2)
    return math.inf if error == 0 else round(10 * math.log10(255**2 / error), 2)
