"""How the embedded latent codec was made: a small AutoencoderKL in SD3's layout, trained from scratch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oneflow_core.encoders import imagery
from oneflow_core.encoders.latent import LatentCodec
from oneflow_core.encoders.optimizer import ConvMuon

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

EMBEDDED_NAME = "oneflow-vae-16c8"


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
    """First part of the run that sees twice the pictures at a quarter of the area: cheap steps, while all is blurred."""
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


Report = Callable[[int, dict[str, float], LatentCodec | None], None]


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


def fit_latent_codec(
    recipe: LatentRecipe, report: Report | None = None, *, report_every: int = 100, keep_every: int = 1000
) -> LatentCodec:
    """Trains a codec. `report(step, losses, codec)` is called as asked; `codec` is None but every `keep_every`."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    vae = new_vae(recipe.widths, recipe.groups).to(memory_format=torch.channels_last).train()
    # A posterior of deviation 1 would drown the signal for the first thousand steps.
    vae.encoder.conv_out.bias.data[vae.config.latent_channels :] = -6.0
    average = copy.deepcopy(vae).requires_grad_(False)
    optimizer = ConvMuon(vae, recipe.rate, recipe.decay)
    started, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        losses = _train_step(vae, optimizer, recipe, rng, crop=progress < recipe.cropped)
        _follow(average, vae, min(recipe.average, (1 + step) / (10 + step)))
        step += 1
        progress = max(step / recipe.steps, (time.monotonic() - started) / 60 / recipe.minutes)
        warm = min(1.0, step / recipe.warmup)
        rate = recipe.rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        optimizer.set_rate(rate)
        if report and step % report_every == 0:
            keep = step % keep_every == 0 and progress < 1.0
            report(step, losses, _finish(average, recipe) if keep else None)
    return _finish(average, recipe)


def _train_step(
    vae: AutoencoderKL, optimizer: ConvMuon, recipe: LatentRecipe, rng: np.random.Generator, crop: bool
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
    kept, new = list(average.parameters()), [p.detach() for p in model.parameters()]
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


def measure_latent_codec(codec: LatentCodec, count: int = 256) -> dict[str, Any]:
    """PSNR in dB (of the pooled squared error) on pictures that training never drew, and the latents' moments."""
    rng = np.random.default_rng(20_000)
    sets = {
        "shapes": imagery.mixture(
            rng,
            [(lambda r, n, s=split: imagery.shapes(r, n, s), count // 3) for split in ("heldout_random", "heldout_pair", "heldout_triple")],
        ),
        "photographs": imagery.photographs(rng, count, "heldout"),
        "graphics": imagery.graphics(rng, count),
    }
    result: dict[str, Any] = {"pictures": {k: len(v) for k, v in sets.items()}, "psnr": {}, "psnr_noisy_latents": {}}
    torch.manual_seed(0)
    for name, pictures in sets.items():
        latents = codec.encode(pictures)
        result["psnr"][name] = psnr(pictures, codec.decode(latents))
        noisy = latents + 0.1 * latents.std() * torch.randn_like(latents)
        result["psnr_noisy_latents"][name] = psnr(pictures, codec.decode(noisy))
        result.setdefault("latents", {})[name] = {"mean": round(float(latents.mean()), 4), "std": round(float(latents.std()), 4)}
    return result


def psnr(truth: imagery.Pictures, other: imagery.Pictures) -> float:
    """10 log10(255^2 / mean squared error) over all pictures together, in dB."""
    error = np.mean((truth.astype(np.float64) - other.astype(np.float64)) ** 2)
    return math.inf if error == 0 else round(10 * math.log10(255**2 / error), 2)


def recipe_json(recipe: LatentRecipe) -> dict[str, Any]:
    """The recipe as JSON values; an unlimited time is null."""
    return {k: None if v == math.inf else v for k, v in asdict(recipe).items()}
