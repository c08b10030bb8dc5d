"""Finished images read again: the features of what was drawn stand for its patches in what follows.

Prompt images are shown to the network as features of an understanding encoder, which carry what an image is about;
with this a document's own images are too, once they are finished.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from oneflow_core.layout import FEATURES, IMAGE, Elements

if TYPE_CHECKING:
    from oneflow_core.sampling.media import Media


def encode_finished(media: Media, wanted_B: NDArray[np.bool_]) -> None:
    """Adds the features of finished images that have none yet, of the wanted documents; one call a size of grid.

    Raises:
        ValueError: features that are not [images, P, feature_dim].
    """
    if media.reencode is None:
        return
    todo = np.flatnonzero(
        (media.image_time >= 1) & wanted_B[media.image_document] & (media.feature_I < 0)
    ).tolist()
    grids = {i: media.requests[media.image_document[i]].grid for i in todo}
    for grid in dict.fromkeys(grids.values()):
        members = [i for i in todo if grids[i] == grid]
        features = media.reencode(torch.stack([media.latent(i) for i in members])).float().cpu().numpy()
        if features.ndim != 3 or features.shape[::2] != (len(members), media.model.feature_dim):
            raise ValueError(
                f"reencode gave {list(features.shape)} for {len(members)} images, the model takes features "
                f"[{len(members)}, P, {media.model.feature_dim}]; give the encoder that it was trained with"
            )
        for i, shown in zip(members, features, strict=True):
            media.feature_I[i] = media.add_features(int(media.image_document[i]), shown)


def as_shown(media: Media, elements: Elements) -> Elements:
    """The elements as the network sees them: images that have features as FEATURES, everything else as it is."""
    feature_I = media.feature_I
    if not (feature_I >= 0).any():
        return elements
    image_E = elements.kind_E == IMAGE
    feature_E = np.full(len(elements), -1)
    feature_E[image_E] = feature_I[elements.block_E[image_E]]
    read_E = feature_E >= 0
    return dataclasses.replace(
        elements,
        kind_E=np.where(read_E, FEATURES, elements.kind_E),
        block_E=np.where(read_E, feature_E, elements.block_E),
    )
