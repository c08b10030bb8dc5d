"""What the documents of a running batch are made of, whichever sampler runs: their images, features and randomness.

B documents, E elements, I generated images, N their patches, U images that are read. Loops go over documents or images
only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.flows.image import euler_step, unpatchify, velocity
from oneflow_core.flows.schedule import build_schedule
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
from oneflow_core.sampling.types import Generation, ImageState, Reencode, Request, SamplerConfig, Trace

Moved = Callable[[int], None]


class Media:
    """Requests in the making: every image's patches and time, every document's own random stream.

    Raises:
        ValueError: the config says to re-encode and there is no `reencode` to do it.
    """

    def __init__(
        self,
        requests: Sequence[Request],
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
        self.reencode = reencode if config.reencode else None
        self.requests, self.config, self.model = list(requests), config, model
        self.bos_id, self.image_id = bos_id, image_id
        self.rng_B = [np.random.default_rng(r.seed) for r in requests]
        self.features: list[NDArray[np.float32]] = []
        self.patches: list[Tensor] = []
        self.image_time: list[float] = []
        self.image_document: list[int] = []
        self.image_states: dict[int, list[ImageState]] = {}
        self.feature_I: list[int] = []
        """Where the features of each generated image are in `features`, or -1."""
        self.passes_B = np.zeros(len(requests), np.int64)
        self.step = 0

    def start(self, text: Sequence[int] = ()) -> Elements:
        """All documents as they begin: the prompt, then what is asked for.

        That is an image of noise; or `text`, and behind it the images that a document begins with.
        """
        return join([self._start(b, request, text) for b, request in enumerate(self.requests)])

    def _start(self, b: int, request: Request, text: Sequence[int]) -> Elements:
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
        self.features += [np.asarray(p, np.float32) for p in request.prompt if not isinstance(p, tuple)]
        for e in np.flatnonzero(elements.kind_E == IMAGE).tolist():
            elements.block_E[e] = self.add_image(b)
        return elements

    def add_image(self, b: int) -> int:
        """Starts an image of pure noise in document b; returns its block index."""
        rows, cols = self.requests[b].grid
        noise = self.rng_B[b].standard_normal((rows * cols, self.model.patch_dim), np.float32)
        self.patches.append(torch.from_numpy(noise))
        self.image_time.append(0.0)
        self.image_document.append(b)
        self.feature_I.append(-1)
        return len(self.patches) - 1

    @property
    def images_in_flow(self) -> NDArray[np.int64]:
        """Blocks of images whose time is below 1."""
        return np.flatnonzero(np.array(self.image_time, float) < 1)

    @property
    def patches_I(self) -> NDArray[np.int64]:
        """Patches of every generated image."""
        return np.array([len(p) for p in self.patches], np.int64)

    @property
    def features_U(self) -> NDArray[np.int64]:
        """Understanding features of every image that is read."""
        return np.array([len(f) for f in self.features], np.int64)

    def inputs(self, layout: Layout, plan: AttentionPlan, text_time_T: NDArray) -> ModelInputs:
        """A pass over `layout`, logits wanted at every slot; images at their present times."""
        time_I = np.array(self.image_time, np.float32)[layout.image_I]
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
                [grid_positions(*self.requests[self.image_document[i]].grid) for i in layout.image_I]
            ),
            feature_M=torch.from_numpy(layout.feature_M),
            feature_MD=_cat(
                [torch.from_numpy(self.features[u]) for u in layout.read_image_U], self.model.feature_dim
            ),
            feature_grid_M2=_grids([feature_grid(len(self.features[u])) for u in layout.read_image_U]),
            logit_slot_R=torch.arange(len(layout.slot_S)),
        )

    def move_images(
        self, image_I: NDArray[np.int64], full: int, inputs: ModelInputs, outputs: ModelOutputs, moved: Moved
    ) -> None:
        """One Euler step of every image of the pass in flow, guided; `moved` hears of each one's document.

        `image_I` are the images of the pass in the order of their patches, the first `full` of them in full copies.
        """
        moving = np.array([i for i in image_I[:full].tolist() if self.image_time[i] < 1], np.int64)
        if not len(moving):
            return
        time_I = np.array(self.image_time)
        step_I = self.next_time(time_I) - time_I
        eps = min(self.model.clean_eps, float(step_I[moving].min()))
        v_ND = velocity(outputs.image_ND.float(), inputs.noisy_ND, inputs.time_N, self.model.prediction, eps)
        v_I = v_ND.split(self.patches_I[image_I].tolist())
        full_v = dict(zip(image_I[:full].tolist(), v_I, strict=False))
        weak_v = dict(zip(image_I[full:].tolist(), v_I[full:], strict=True))
        for i in moving.tolist():
            v = full_v[i]
            if i in weak_v:
                v = weak_v[i] + self.config.image_guidance * (v - weak_v[i])
            t = torch.full((len(v),), self.image_time[i])
            estimate = self.patches[i] + (1 - self.image_time[i]) * v.cpu()
            self.patches[i], t = euler_step(self.patches[i], v.cpu(), t, torch.full_like(t, float(step_I[i])))
            self.image_time[i] = float(t[0]) if float(t[0]) < 1 - 1e-6 else 1.0
            moved(self.image_document[i])
            if self.config.trace_images:
                latents = self.latent(i).numpy(), self.latent(i, estimate).numpy()
                self.image_states.setdefault(i, []).append(
                    ImageState(self.step, self.image_time[i], *latents)
                )

    def next_time(self, time: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where a step from `time` leads; at most 1."""
        if self.config.step_schedule == "linear":
            then = time + 1 / self.config.steps
        else:
            grid = build_schedule(self.config.step_schedule)
            then = grid.kappa(np.minimum(1.0, grid.inverse(np.minimum(time, 1.0)) + 1 / self.config.steps))
        return np.where(then > 1 - 1e-9, 1.0, then)

    def latent(self, block: int, patches: Tensor | None = None) -> Tensor:
        """An image [C, h, w] in the codec's scale; of `patches`, or as it stands."""
        rows, cols = self.requests[self.image_document[block]].grid
        held = self.patches[block] if patches is None else patches
        return unpatchify(held * self.model.latent_scale, rows, cols, self.model.patch)

    def generation(
        self,
        b: int,
        made: Elements,
        born: NDArray[np.float64],
        born_step: NDArray[np.int64],
        deleted: int = 0,
    ) -> Generation:
        """Document b from its generated elements, in order."""
        segments: list[tuple[int, ...] | NDArray[np.float32]] = []
        cuts = np.flatnonzero((made.kind_E[1:] == IMAGE) | (made.kind_E[:-1] == IMAGE)) + 1
        for run in np.split(np.arange(len(made)), cuts):
            if not len(run):
                continue
            if made.kind_E[run[0]] == IMAGE:
                segments.append(self.latent(int(made.block_E[run[0]])).numpy())
            else:
                segments.append(tuple(made.token_E[run].tolist()))
        passes = int(self.passes_B[b])
        times, steps = tuple(born.tolist()), tuple(born_step.tolist())
        blocks = made.block_E[made.kind_E == IMAGE].tolist() if self.config.trace_images else []
        states = tuple(tuple(self.image_states.get(i, ())) for i in blocks)
        trace = Trace(tuple(made.token_E.tolist()), times, steps, passes, deleted, states)
        return Generation(tuple(segments), trace)


def _cat(parts: list[Tensor], width: int) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, width)


def _grids(grids: list[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(grids) if grids else np.zeros((0, 2), np.int64))
