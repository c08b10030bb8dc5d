"""Patches, paths, velocities: round trips, closed forms, and an ODE solved by another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from oneflow_core.flows.image import euler_step, flow_error, interpolate, patchify, unpatchify, velocity


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_patches_round_trip_in_numpy_and_torch(rows: int, cols: int, channels: int, patch: int) -> None:
    latent = (
        np.random.default_rng(0).standard_normal((channels, rows * patch, cols * patch)).astype(np.float32)
    )
    patches = patchify(latent, patch)
    assert patches.shape == (rows * cols, patch * patch * channels)
    assert np.array_equal(unpatchify(patches, rows, cols, patch), latent)
    assert np.array_equal(patchify(torch.from_numpy(latent), patch).numpy(), patches)


def test_patches_against_unfold() -> None:
    latent = torch.randn(3, 8, 6)
    theirs = (
        torch.nn.functional.unfold(latent[None], 2, stride=2)[0]
        .T.reshape(-1, 3, 4)
        .transpose(1, 2)
        .flatten(1)
    )
    assert torch.equal(patchify(latent, 2), theirs)


def test_a_latent_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="9x8 does not divide into patches of 2"):
        patchify(np.zeros((4, 9, 8), np.float32), 2)


@pytest.mark.parametrize("kind", ["clean", "velocity"])
def test_a_perfect_network_has_no_loss_and_its_flow_ends_at_the_data(kind: str) -> None:
    clean, noise = torch.randn(5, 12), torch.randn(5, 12)
    for t in (0.0, 0.4, 0.97):
        times = torch.full((5,), t)
        answer = clean if kind == "clean" else clean - noise
        assert float(flow_error(answer, clean, noise, times, kind, 0.1).max()) == 0
    noisy, times = noise, torch.zeros(5)
    for _ in range(10):
        answer = clean if kind == "clean" else clean - noise
        v = velocity(answer, noisy, times, kind, 0.1)
        noisy, times = euler_step(noisy, v, times, torch.full((5,), 0.1))
    assert torch.allclose(noisy, clean, atol=1e-4)
    assert torch.allclose(times, torch.ones(5))


def test_clean_and_velocity_losses_are_the_same_away_from_the_clamp() -> None:
    clean, noise, guess = torch.randn(6, 8), torch.randn(6, 8), torch.randn(6, 8)
    times = torch.linspace(0, 0.9, 6)
    noisy = times[:, None] * clean + (1 - times[:, None]) * noise
    as_velocity = velocity(guess, noisy, times, "clean", 0.05)
    assert torch.allclose(
        flow_error(guess, clean, noise, times, "clean", 0.05),
        flow_error(as_velocity, clean, noise, times, "velocity", 0.05),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("kind", ["clean", "velocity"])
def test_the_loss_in_clean_space_is_that_of_the_implied_clean_latent(kind: str) -> None:
    clean, noise, guess = torch.randn(6, 8), torch.randn(6, 8), torch.randn(6, 8)
    times = torch.linspace(0, 0.99, 6)
    noisy = times[:, None] * clean + (1 - times[:, None]) * noise
    implied = guess if kind == "clean" else noisy + (1 - times[:, None]) * guess
    expected = (implied - clean).square().mean(-1)
    error = flow_error(guess, clean, noise, times, kind, 0.05, "clean")
    assert torch.allclose(error, expected, rtol=1e-4, atol=1e-6)


def test_euler_matches_scipy_on_the_exact_flow_between_gaussians() -> None:
    """Data N(2, 0.5^2), noise N(0, 1): E[Y_1 | Y_t] is linear, so the flow has a reference solution."""
    mean, std = 2.0, 0.5

    def field(t: float, y: np.ndarray) -> np.ndarray:
        variance = t**2 * std**2 + (1 - t) ** 2
        clean = mean + t * std**2 / variance * (y - t * mean)
        noise = (1 - t) / variance * (y - t * mean)
        return clean - noise

    start = np.linspace(-2, 2, 9)
    reference = solve_ivp(field, (0, 1), start, rtol=1e-9, atol=1e-9).y[:, -1]
    assert reference == pytest.approx(mean + std * start, abs=1e-5)
    y, t = torch.from_numpy(start)[:, None], torch.zeros(9, dtype=torch.float64)
    for _ in range(400):
        v = torch.from_numpy(field(float(t[0]), y[:, 0].numpy()))[:, None]
        y, t = euler_step(y, v, t, torch.full((9,), 1 / 400, dtype=torch.float64))
    assert y[:, 0].numpy() == pytest.approx(reference, abs=5e-3)


def test_interpolation_ends() -> None:
    clean, noise = np.ones(3, np.float32), np.zeros(3, np.float32)
    assert np.array_equal(interpolate(clean, noise, 1.0), clean)
    assert np.array_equal(interpolate(clean, noise, 0.0), noise)
