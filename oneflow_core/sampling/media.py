"""What the documents of a running batch are made of, whichever sampler runs: their images and features.

B documents, E elements, I generated images, N their patches, U images that are read. Loops go over documents or images
only, and only where they join, are inserted or leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.flows.image import euler_step, unpatchify, velocity
from oneflow_core.layout import (
    FEATURES,
    IMAGE,
    TOKEN,
    Elements,
    Layout,
    Piece,
    clean_elements,
    feature_grid,
    grid_positions,
    join,
)
from oneflow_core.model.attention import AttentionPlan
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.inputs import ModelInputs, ModelOutputs
from oneflow_core.ragged import ragged_range
from oneflow_core.sampling.documents import BoolArray, Documents, FloatArray, IntArray, list_of
from oneflow_core.sampling.types import ImageState, Reencode, Request, SamplerConfig


class Media(Documents):
    """Requests in the making: every image's patches and time, and the features of what is read.

    Raises:
        ValueError: the config says to re-encode and there is no `reencode` to do it.
    """

    LATE: ClassVar[bool] = False
    """Whether logits are asked for after the pass, for the slots that want them."""

    def __init__(
        self,
        config: SamplerConfig,
        model: ModelConfig,
        bos_id: int,
        image_id: int,
        reencode: Reencode | None = None,
    ) -> None:
        if config.reencode and reencode is None:
            raise ValueError(
                "reencode is on, but the sampler was given no way from latents to features; build it with `reencode`, "
                "as OneFlowPipeline does, or turn it off"
            )
        super().__init__(config)
        self.reencode = reencode if config.reencode else None
        self.model, self.bos_id, self.image_id = model, bos_id, image_id
        self.features: list[NDArray[np.float32]] = []
        self.feature_document: IntArray = np.zeros(0, np.int64)
        self.features_U: IntArray = np.zeros(0, np.int64)
        """Understanding features of every image that is read."""
        self.patches: list[Tensor] = []
        self.patches_I: IntArray = np.zeros(0, np.int64)
        """Patches of every generated image."""
        self.image_time: FloatArray = np.zeros(0)
        self.image_document: IntArray = np.zeros(0, np.int64)
        self.image_states: list[list[ImageState]] = []
        self.feature_I: IntArray = np.zeros(0, np.int64)
        """Where the features of each generated image are in `features`, or -1."""
        self._velocity: list[Tensor | None] = []
        """Of each image's last step, guided; None before the first and after the last."""

    def begin(
        self, requests: Sequence[Request], configs: Sequence[SamplerConfig], text: Sequence[int] = ()
    ) -> Elements:
        """Admits documents; returns them as they begin: the prompt, then what is asked for.

        That is an image of noise; or `text`, and behind it the images that a document begins with.
        """
        first = len(self.requests)
        self.admit(requests, configs)
        return join([self._begin(first + i, request, text) for i, request in enumerate(requests)])

    def _begin(self, b: int, request: Request, text: Sequence[int]) -> Elements:
        given = [
            Piece(TOKEN, True, p) if isinstance(p, tuple) else Piece(FEATURES, True) for p in request.prompt
        ]
        image = request.target == "image"
        asked = [] if image else [Piece(TOKEN, False, text)]
        asked += [Piece(IMAGE, False)] * (1 if image else request.images)
        prefix = self.model.prompt_attention == "prefix"
        elements = clean_elements([*given, *asked], self.bos_id, self.image_id, text=not image, prefix=prefix)
        elements.document_E[:] = b
        elements.block_E[elements.kind_E == FEATURES] += len(self.features)
        for part in request.prompt:
            if not isinstance(part, tuple):
                self.add_features(b, np.asarray(part, np.float32))
        for e in np.flatnonzero(elements.kind_E == IMAGE).tolist():
            elements.block_E[e] = self.add_image(b)
        return elements

    def add_features(self, b: int, features_PD: NDArray[np.float32]) -> int:
        """Features that document b reads; returns their block index."""
        self.features.append(features_PD)
        self.features_U = np.append(self.features_U, len(features_PD))
        self.feature_document = np.append(self.feature_document, b)
        return len(self.features) - 1

    def add_image(self, b: int) -> int:
        """Starts an image of pure noise in document b; returns its block index."""
        rows, cols = self.requests[b].grid
        noise = self.rng_B[b].standard_normal((rows * cols, self.model.patch_dim), np.float32)
        self.patches.append(torch.from_numpy(noise))
        self.patches_I = np.append(self.patches_I, len(noise))
        self.image_time = np.append(self.image_time, 0.0)
        self.image_document = np.append(self.image_document, b)
        self.feature_I = np.append(self.feature_I, -1)
        self.image_states.append([])
        self._velocity.append(None)
        return len(self.patches) - 1

    def keep_media(self, left_B: BoolArray, elements: Elements) -> None:
        """The images and features of documents outside `left_B` are forgotten; blocks of `elements` are renumbered."""
        left_I, left_U = left_B[self.image_document], left_B[self.feature_document]
        number_B, number_I, number_U = (np.cumsum(left) - 1 for left in (left_B, left_I, left_U))
        elements.document_E = number_B[elements.document_E]
        for kind, number in ((IMAGE, number_I), (FEATURES, number_U)):
            of_kind = elements.kind_E == kind
            elements.block_E[of_kind] = number[elements.block_E[of_kind]]
        self.features = list_of(self.features, left_U)
        self.features_U = self.features_U[left_U]
        self.feature_document = number_B[self.feature_document[left_U]]
        for name in ("patches", "image_states", "_velocity"):
            setattr(self, name, list_of(getattr(self, name), left_I))
        self.patches_I, self.image_time = self.patches_I[left_I], self.image_time[left_I]
        self.image_document = number_B[self.image_document[left_I]]
        read_I = self.feature_I[left_I]
        self.feature_I = np.where(read_I >= 0, np.append(number_U, -1)[read_I], -1)

    @property
    def images_in_flow(self) -> IntArray:
        """Blocks of images whose time is below 1."""
        return np.flatnonzero(self.image_time < 1)

    def inputs(self, layout: Layout, plan: AttentionPlan, text_time_T: NDArray) -> ModelInputs:
        """A pass over `layout`, logits wanted at every slot unless they are `LATE`; images at their present times."""
        time_I = self.image_time.astype(np.float32)[layout.image_I]
        return ModelInputs(
            token_T=torch.from_numpy(layout.token_T),
            position_T=torch.from_numpy(layout.position_T),
            prompt_T=torch.from_numpy(layout.prompt_T.astype(np.float32)),
            text_time_T=torch.from_numpy(text_time_T.astype(np.float32)),
            attention=plan,
            slot_S=torch.from_numpy(layout.slot_S),
            patch_N=torch.from_numpy(layout.patch_N),
            noisy_ND=_cat([self.patches[i] for i in layout.image_I], self.model.patch_dim),
            time_N=torch.from_numpy(np.repeat(time_I, self.patches_I[layout.image_I])),
            patch_grid_N2=_grids(
                [_image_grid(self.requests[b].grid) for b in self.image_document[layout.image_I].tolist()]
            ),
            feature_M=torch.from_numpy(layout.feature_M),
            feature_MD=_cat(
                [torch.from_numpy(self.features[u]) for u in layout.read_image_U], self.model.feature_dim
            ),
            feature_grid_M2=_grids(
                [_feature_grid(count) for count in self.features_U[layout.read_image_U].tolist()]
            ),
            logit_slot_R=torch.arange(0 if self.LATE else len(layout.slot_S)),
        )

    def move_images(
        self, image_I: IntArray, full: int, inputs: ModelInputs, outputs: ModelOutputs
    ) -> IntArray:
        """One Euler step of every image of the pass in flow, guided; returns the documents of those, one an image.

        `image_I` are the images of the pass in the order of their patches, the first `full` of them in full copies.
        """
        place_M = np.flatnonzero(self.image_time[image_I[:full]] < 1)
        moving_M = image_I[place_M]
        documents = self.image_document[moving_M]
        if not len(moving_M):
            return documents
        time_M = self.image_time[moving_M]
        step_M = self.next_time(time_M, self.steps_B[documents]) - time_M
        eps = min(self.model.clean_eps, float(step_M.min()))
        v_ND = velocity(outputs.image_ND.float(), inputs.noisy_ND, inputs.time_N, self.model.prediction, eps)
        sizes = self.patches_I[image_I]
        v_ND = self._guided(v_ND.cpu(), image_I, full, place_M)
        sizes_M = sizes[place_M]
        at_N = torch.from_numpy(ragged_range((np.cumsum(sizes) - sizes)[place_M], sizes_M))
        noisy_ND = inputs.noisy_ND.cpu()[at_N]
        time_N, step_N = (
            torch.from_numpy(np.repeat(x.astype(np.float32), sizes_M)) for x in (time_M, step_M)
        )
        new_ND, then_N = euler_step(noisy_ND, v_ND, time_N, step_N)
        then_M = then_N.numpy()[np.cumsum(sizes_M) - sizes_M].astype(np.float64)
        self.image_time[moving_M] = np.where(then_M < 1 - 1e-6, then_M, 1.0)
        parts = zip(
            moving_M.tolist(), new_ND.split(sizes_M.tolist()), v_ND.split(sizes_M.tolist()), strict=True
        )
        for (i, new, v), before in zip(parts, time_M.tolist(), strict=True):
            estimate = self.patches[i] + (1 - before) * v if self.config.trace_images else None
            done = self.image_time[i] >= 1
            # A finished image would hold on to those that moved beside it.
            self.patches[i], self._velocity[i] = (new.clone(), None) if done else (new, v)
            if estimate is not None:
                self._remember(i, estimate)
        return documents

    def _guided(self, v_ND: Tensor, image_I: IntArray, full: int, place_M: IntArray) -> Tensor:
        """Velocities of the images at `place_M`, away from those of their weak copies, which stand behind `full`."""
        sizes = self.patches_I[image_I]
        starts = np.cumsum(sizes) - sizes
        moving_M = image_I[place_M]
        weak_I = np.full(len(self.image_time), -1)
        weak_I[image_I[full:]] = np.arange(full, len(image_I))
        weak_M = weak_I[moving_M]
        with_weak = weak_M >= 0
        v_full = v_ND[torch.from_numpy(ragged_range(starts[place_M], sizes[place_M]))]
        if not with_weak.any():
            return v_full
        sizes_M = sizes[place_M]
        v_weak = v_ND[torch.from_numpy(ragged_range(starts[weak_M[with_weak]], sizes_M[with_weak]))]
        scale_M = self.image_guidance_B[self.image_document[moving_M]]
        scale_N1 = torch.from_numpy(np.repeat(scale_M[with_weak].astype(np.float32), sizes_M[with_weak]))[
            :, None
        ]
        if with_weak.all():
            return v_weak + scale_N1 * (v_full - v_weak)
        at_N = torch.from_numpy(np.flatnonzero(np.repeat(with_weak, sizes_M)))
        return v_full.index_copy(0, at_N, v_weak + scale_N1 * (v_full[at_N] - v_weak))

    def _remember(self, i: int, estimate: Tensor) -> None:
        latents = self.latent(i).numpy(), self.latent(i, estimate).numpy()
        age = int(self.age_B[self.image_document[i]])
        self.image_states[i].append(ImageState(age, float(self.image_time[i]), *latents))

    def estimate(self, block: int) -> Tensor:
        """Where an image's last velocity leads at t = 1, [C, h, w] in the codec's scale; noise before its first."""
        v = self._velocity[block]
        if v is None:
            return self.latent(block)
        return self.latent(block, self.patches[block] + (1 - self.image_time[block]) * v)

    def latent(self, block: int, patches: Tensor | None = None) -> Tensor:
        """An image [C, h, w] in the codec's scale; of `patches`, or as it stands."""
        rows, cols = self.requests[self.image_document[block]].grid
        held = self.patches[block] if patches is None else patches
        return unpatchify(held * self.model.latent_scale, rows, cols, self.model.patch)


@cache
def _image_grid(grid: tuple[int, int]) -> NDArray[np.int64]:
    return grid_positions(*grid)


@cache
def _feature_grid(count: int) -> NDArray[np.int64]:
    return feature_grid(count)


def _cat(parts: list[Tensor], width: int) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, width)


def _grids(grids: list[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(grids) if grids else np.zeros((0, 2), np.int64))
