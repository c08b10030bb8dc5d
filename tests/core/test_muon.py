import torch
from torch import nn

from oneflow_core.muon import LayerMuon, orthogonalise


def test_orthogonalise_keeps_singular_vectors_and_levels_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((6, 40), (40, 6), (17, 17)):
        matrix = torch.randn(rows, columns, generator=generator)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        rotated = left.T @ orthogonalise(matrix) @ right.T
        levelled = rotated.diagonal()[values > 0.05 * values.max()]
        assert levelled.min() > 0.6 and levelled.max() < 1.3
        torch.testing.assert_close(rotated, rotated.diagonal().diag(), atol=1e-3, rtol=0)


def test_layer_muon_solves_a_linear_problem_and_moves_every_parameter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.LayerNorm(256), nn.Linear(256, 9))
    before = [p.clone() for p in model.parameters()]
    inputs, targets = torch.randn(32, 3, 6, 6), torch.randn(32, 9)
    optimizer, losses = LayerMuon(model, 3e-3, 0.0), []
    for _ in range(60):
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_orthogonalise_takes_batches() -> None:
    for rows, columns in ((4, 9), (9, 4)):
        batch = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(1))
        each = torch.stack([torch.stack([orthogonalise(m) for m in row]) for row in batch])
        torch.testing.assert_close(orthogonalise(batch), each)
