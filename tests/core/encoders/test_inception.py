"""FID's Inception against features that pytorch-fid 0.3.0's network gives with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from oneflow_core.encoders import EncoderError, features
from oneflow_core.encoders.features import picture_features
from oneflow_core.encoders.inception import FidInception

from .inception_weights import pictures, weights

GOLDEN = json.loads(Path(__file__).with_name("golden_inception.json").read_text())
"""Of the pictures and weights of `inception_weights`, its own resizing included."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights as they are published: with a classifier, which features do not need."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(
        weights(FidInception()) | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path
    )
    return path


def test_features_are_those_of_pytorch_fid(file: Path) -> None:
    made = picture_features("inception", file)(pictures())
    assert made.shape == (3, 2048)
    np.testing.assert_allclose(made[:, ::64], GOLDEN["every_64th"], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(made.mean(1), GOLDEN["mean"], rtol=1e-4)


def test_clean_resizing_is_pils_bicubic_in_floats() -> None:
    """Against torch's antialiased bicubic, which agrees with PIL's to a grey level; without smoothing they differ."""
    image = np.random.default_rng(0).integers(0, 256, (400, 500, 3)).astype(np.uint8)
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    made = features._clean(planes) * 128 + 128
    smooth = F.interpolate(planes.double(), (299, 299), mode="bicubic", antialias=True, align_corners=False)
    rough = F.interpolate(planes.double(), (299, 299), mode="bicubic", align_corners=False)
    assert (made - smooth).abs().max() < 1 < (made - rough).abs().max()


def test_only_the_published_weights_are_called_fid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bilinear, clean = picture_features("inception", file), picture_features("inception", file, resize="clean")
    assert bilinear.figure == clean.figure == "fd_inception" and bilinear.id != clean.id
    digest = bilinear.id.split("@")[1][:8]
    monkeypatch.setattr(features, "OFFICIAL", digest)
    assert picture_features("inception", file).figure == "fid"
    assert picture_features("inception", file, resize="clean").figure == "fid_clean"


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    network = FidInception()
    held = weights(network)
    for change in ("missing", "needless", "shape", "no tensors"):
        wrong = dict(held)
        if change == "missing":
            wrong.pop("Mixed_7c.branch_pool.conv.weight")
        elif change == "needless":
            wrong["AuxLogits.conv0.conv.weight"] = torch.zeros(1)
        elif change == "shape":
            wrong["Conv2d_1a_3x3.conv.weight"] = torch.zeros(32, 3, 5, 5)
        else:
            wrong["epoch"] = 3  # type: ignore[assignment]
        with pytest.raises(EncoderError, match="another network|no weights by name"):
            network.load(wrong)
    with pytest.raises(EncoderError, match="no weights of Inception could be read"):
        picture_features("inception", tmp_path / "none.pth")
    (tmp_path / "script.pt").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(EncoderError, match="no weights of Inception could be read"):
        picture_features("inception", tmp_path / "script.pt")
