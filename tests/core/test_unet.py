"""The U-Net around the trunk: images apart from each other, its reach, its start, its gradients, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oneflow_core.data.shard import Sample
from oneflow_core.model import PRESETS, ModelConfig, OneFlowModel
from oneflow_core.model.unet import UNetDown, UNetUp
from oneflow_core.objectives import LossOutput, ObjectiveConfig, OneFlowObjective
from oneflow_core.packing import Pack, collate
from oneflow_core.pipeline import OneFlowPipeline, Prompt
from oneflow_core.sampling import InsertionSampler, Request, SamplerConfig
from tests.core.test_folding import grid_of
from tests.core.words import TINY, WordTokenizer, image, sample, text
from tests.tiny import tiny_parts

CONFIG = replace(TINY, adapter="unet", unet_channels=8, unet_blocks=1)
SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6)


def shaken(config: ModelConfig = CONFIG) -> OneFlowModel:
    """A network none of whose outputs is zero by its start."""
    torch.manual_seed(0)
    model = OneFlowModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def with_images(*sides: int) -> list[Sample]:
    """A text, and a document of a text and an image for each of these sides of latents."""
    documents = [sample(text([3, 4]), image(), seed=i, side=side) for i, side in enumerate(sides)]
    return [sample(text([9, 10, 11])), *documents]


def objective_of(config: ModelConfig) -> OneFlowObjective:
    return OneFlowObjective(ObjectiveConfig(), config, WordTokenizer())


def pack_of(config: ModelConfig, documents: list[Sample], seed: int = 0) -> Pack:
    rng = np.random.default_rng(seed)
    return collate([objective_of(config).corrupt(document, rng) for document in documents])


def loss_of(model: OneFlowModel, pack: Pack) -> LossOutput:
    objective = objective_of(model.config)
    return objective.loss(model, pack, objective.normalisers(pack))


def around(model: OneFlowModel, noisy: Tensor, time: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves without a trunk between them."""
    with torch.no_grad():
        embedded, skips = model.patches(noisy, time, grid)
        return embedded, model.image_head(embedded.tanh(), skips)


@pytest.mark.parametrize("patch", [1, 2, 4])
@given(SIZES, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=15)
def test_an_image_is_the_same_in_any_pack_and_order(
    patch: int, sizes: list[tuple[int, int]], rng: Random
) -> None:
    model = shaken(replace(CONFIG, patch=patch, unet_blocks=2))
    counts = [r * c for r, c in sizes]
    noisy = list(torch.randn(sum(counts), model.config.patch_dim).split(counts))
    times = [torch.full((n,), rng.random()) for n in counts]
    order = rng.sample(range(len(sizes)), len(sizes))

    def run(members: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        parts = (torch.cat([noisy[i] for i in members]), torch.cat([times[i] for i in members]))
        both = around(model, *parts, grid_of([sizes[i] for i in members]))
        down, up = ([*x.split([counts[i] for i in members])] for x in both)
        return down, up

    joined = run(order)
    for place, i in enumerate(order):
        for together, alone in zip(joined, run([i]), strict=True):
            torch.testing.assert_close(together[place], alone[0], atol=1e-5, rtol=1e-4)


def test_a_document_sees_no_other_through_the_whole_network() -> None:
    model = shaken()
    rng = np.random.default_rng(1)
    examples = [objective_of(CONFIG).corrupt(d, rng) for d in with_images(4, 8, 2, 4, 8, 6)]
    with torch.no_grad():
        together = model(collate(examples).inputs)
        alone = [model(collate([e]).inputs) for e in examples]
    for name in ("image_ND", "rate_S", "nll_K"):
        expected = torch.cat([getattr(a, name) for a in alone])
        torch.testing.assert_close(getattr(together, name), expected, atol=1e-5, rtol=1e-4)


def spread(mask_1hw: Tensor, convolutions: int, stride: int = 1) -> Tensor:
    """Places that 3x3 convolutions reach."""
    for _ in range(convolutions):
        mask_1hw = F.max_pool2d(mask_1hw, 3, stride, padding=1)
    return mask_1hw


def test_only_what_convolutions_reach_changes() -> None:
    model, rows, cols = shaken().double(), 15, 17
    grid, time = grid_of([(rows, cols)]), torch.full((rows * cols,), 0.3)
    noisy = torch.randn(rows * cols, CONFIG.patch_dim).double()
    touched = noisy.clone()
    touched[4 * cols + 3, :4] += 1  # the upper left place of the patch in row 4 and column 3
    point = torch.zeros(1, 2 * rows, 2 * cols)
    point[0, 8, 6] = 1
    fine = spread(point, 1 + 2)
    coarse = spread(spread(fine, 1, stride=2), 2)
    before, _ = around(model, noisy, time, grid)
    after, skips = model.patches(touched, time, grid)
    changed = (after - before).abs().amax(1).unflatten(0, (1, rows, cols)) > 1e-13
    assert torch.equal(changed, coarse > 0) and 0 < changed.sum() < rows * cols

    hidden = torch.randn(rows * cols, CONFIG.width).double()
    _, other = model.patches(noisy, time, grid)
    with torch.no_grad():
        gap = skips.folding.fold(model.image_head(hidden, skips) - model.image_head(hidden, other), 2)[0]
    wider = F.interpolate(spread(coarse, 2)[None], scale_factor=2.0)[0]
    reached = spread(torch.maximum(spread(wider, 1), fine), 2 + 1)
    changed = gap.abs().amax(1) > 1e-13
    assert torch.equal(changed, reached > 0) and 0 < changed.sum() < point.numel()


def test_every_map_on_the_way_down_is_heard_on_the_way_up() -> None:
    model, sizes = shaken(replace(CONFIG, patch=4, unet_blocks=2)), [(2, 2), (1, 3)]
    grid, noisy = grid_of(sizes), torch.randn(7, model.config.patch_dim)
    hidden = torch.randn(7, CONFIG.width)
    with torch.no_grad():
        _, skips = model.patches(noisy, torch.full((7,), 0.5), grid)
        whole = model.image_head(hidden, skips)
        assert [len(maps) for maps in skips.maps] == [6, 6]
        for place in range(6):
            maps = [[m * (i != place) for i, m in enumerate(images)] for images in skips.maps]
            gap = model.image_head(hidden, replace(skips, maps=maps)) - whole
            assert (gap.abs().amax(1) > 1e-4).all(), place


def test_the_time_of_an_image_reaches_it_and_no_other() -> None:
    model, sizes = shaken(), [(2, 2), (1, 3), (2, 2)]
    grid, noisy = grid_of(sizes), torch.randn(11, CONFIG.patch_dim)
    time = torch.full((11,), 0.5)
    later = time.clone()
    later[7:] = 0.9
    for before, after in zip(
        around(model, noisy, time, grid), around(model, noisy, later, grid), strict=True
    ):
        torch.testing.assert_close(before[:7], after[:7])
        assert ((before - after)[7:].abs().amax(1) > 1e-4).all()


def test_it_starts_with_zeros_and_weights_by_their_fan_in() -> None:
    torch.manual_seed(0)
    model = OneFlowModel(replace(CONFIG, unet_channels=32, unet_blocks=2))
    assert not model(pack_of(model.config, with_images(4, 8)).inputs).image_ND.any()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name != "image_head.project":
            inputs = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.15), name
            assert module.bias is not None and not module.bias.any()
    embedded, _ = model.patches(torch.randn(400, 16), torch.full((400,), 0.5), grid_of([(20, 20)]))
    assert 0.5 < embedded.std().item() < 4


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_every_parameter_has_a_gradient_with_images_and_without(patch: int) -> None:
    config = replace(CONFIG, patch=patch, unet_blocks=2)
    for sides in ([4, 8, 4], []):
        model = shaken(config)
        loss_of(model, pack_of(config, with_images(*sides))).total.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            if name.startswith(("patches.", "image_head.")):
                assert parameter.grad.any() == bool(sides), name


def test_gradients_of_a_pack_are_those_of_its_images_one_by_one() -> None:
    model = shaken()
    sizes = [(2, 3), (1, 1), (2, 3), (3, 2)]
    counts = [r * c for r, c in sizes]
    noisy, weight = (torch.randn(sum(counts), CONFIG.patch_dim) for _ in range(2))
    time = torch.cat([torch.full((n,), t) for n, t in zip(counts, (0.1, 0.5, 0.7, 0.9), strict=True)])

    def gradients(noisy: Tensor, time: Tensor, grid: Tensor, weight: Tensor) -> list[Tensor]:
        embedded, skips = model.patches(noisy, time, grid)
        total = (model.image_head(embedded, skips) * weight).sum()
        return list(torch.autograd.grad(total, [*model.patches.parameters(), *model.image_head.parameters()]))

    parts = zip(
        noisy.split(counts),
        time.split(counts),
        [grid_of([s]) for s in sizes],
        weight.split(counts),
        strict=True,
    )
    alone = [sum(each) for each in zip(*(gradients(*part) for part in parts), strict=True)]
    for joined, expected in zip(gradients(noisy, time, grid_of(sizes), weight), alone, strict=True):
        torch.testing.assert_close(joined, expected, atol=1e-3, rtol=1e-3)


def test_weights_and_config_round_trip_and_old_configs_stay_linear() -> None:
    model = shaken()
    again = OneFlowModel(ModelConfig.from_json(CONFIG.to_json())).eval()
    again.load_state_dict(model.state_dict())
    inputs = pack_of(CONFIG, with_images(4, 2)).inputs
    with torch.no_grad():
        assert torch.equal(again(inputs).image_ND, model(inputs).image_ND)
    old = {name: value for name, value in TINY.to_json().items() if not name.startswith(("adapter", "unet"))}
    linear = OneFlowModel(ModelConfig.from_json(old))
    assert linear.config == TINY and set(linear.patches.state_dict()) == {
        "project.weight",
        "project.bias",
        "grid.project.weight",
        *(f"time.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    }


def test_a_saved_model_is_read_again(tmp_path: Path) -> None:
    parts = tiny_parts()
    config = replace(parts.model.config, adapter="unet", unet_channels=8, unet_blocks=1)
    first = OneFlowPipeline(replace(parts, model=shaken(config)))
    again = OneFlowPipeline.from_pretrained(first.save_pretrained(tmp_path / "model"))
    assert again.parts.model.config == config
    (made,), (remade,) = (p([Prompt(("a thing",), "image")], steps=2) for p in (first, again))
    assert np.array_equal(np.asarray(made.images[0]), np.asarray(remade.images[0]))


def test_bfloat16_says_about_the_same() -> None:
    model, pack = shaken(), pack_of(CONFIG, with_images(4, 8))
    with torch.no_grad():
        whole = model(pack.inputs).image_ND
        half = model.to(torch.bfloat16)(pack.inputs).image_ND
    assert half.dtype == torch.bfloat16
    assert (half - whole).norm() / whole.norm() < 0.05


def test_the_sampler_makes_the_same_images_alone_and_in_a_batch() -> None:
    sampler = InsertionSampler(shaken(), bos_id=0, image_id=1)
    requests = [Request(((4, 5),), "image", grid, seed) for seed, grid in enumerate([(2, 2), (1, 3), (2, 2)])]
    config = SamplerConfig(steps=4)
    together = sampler.generate(requests, config)
    for request, made in zip(requests, together, strict=True):
        (alone,) = sampler.generate([request], config)
        assert made.segments[0].shape == (4, 2 * request.grid[0], 2 * request.grid[1])
        np.testing.assert_allclose(made.segments[0], alone.segments[0], atol=1e-3)


def test_its_default_size_is_transfusions() -> None:
    for patch, channels in ((2, ModelConfig().unet_channels), (4, 336), (8, 256)):
        config = replace(PRESETS["1b"], adapter="unet", patch=patch, unet_channels=channels)
        with torch.device("meta"):
            halves = UNetDown(config), UNetUp(config)
        assert sum(p.numel() for h in halves for p in h.parameters()) == pytest.approx(0.27e9, rel=0.04)


def test_around_a_trunk_that_does_not_learn_it_learns_what_a_linear_adapter_cannot() -> None:
    """Two latents under fresh noise and times; the error starts at 2, the variance of a velocity."""
    latents = [sample(image(), seed=1, side=4), sample(image(), seed=2, side=8)]
    left = {}
    for adapter in ("linear", "unet"):
        torch.manual_seed(0)
        model = OneFlowModel(replace(CONFIG, adapter=adapter, prediction="velocity", unet_channels=16))
        adam = torch.optim.Adam([*model.patches.parameters(), *model.image_head.parameters()], lr=6e-3)
        errors = []
        for step in range(200):
            loss = loss_of(model, pack_of(model.config, latents * 4, seed=step))
            errors.append(loss.parts["image"].item())
            adam.zero_grad()
            loss.total.backward()
            adam.step()
        left[adapter] = np.mean(errors[-20:]) / errors[0]
    assert left["unet"] < 1 / 3
    assert left["unet"] < left["linear"] / 2


def test_what_it_cannot_be_is_refused() -> None:
    for wrong, message in (
        ({"adapter": "u-net"}, "must be linear or unet"),
        ({"adapter": "unet", "patch": 3}, "take a power of two"),
        ({"adapter": "unet", "unet_channels": 0}, "must be at least 1"),
        ({"unet_blocks": 0}, "must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig(**wrong)  # type: ignore[arg-type]
