"""How the clocks of a document's text and images run together: one rule of births for every joint law (METHOD 3).

Each element has a clock and a birth on it. It is there iff its clock has reached its birth, and an image that is
there has flowed for min(1, clock - birth). A text token is born at kappa^-1(u), u ~ U[0, 1), so it is there with
probability kappa(t_text); what is given is born at -inf. The laws differ in the two clocks and the births of images:

| law | text clock | image clock | image birth | so |
|---|---|---|---|---|
| independent | U[0, 1] | its own, any law | 0 | the number of images is known; pretraining (paper 2.3.1) |
| interleaved | tau ~ U[0, 2] | tau | kappa^-1(u) | t_img <= t_text; images are inserted (paper 2.3.2, D.1) |
| reversed | max(0, tau - d), d = kappa^-1(u) | tau ~ U[0, 2] | 0 | t_img >= t_text; the text is begun at d |
| fixed | t ~ U[0, 1] | t | 0 | t_img = t_text |
| fixed:<t> | t | t | 0 | one state of the path, for probes |

Marginals. Let b in [0, 1] have the cdf kappa and A be the area under kappa, so that E[b] = 1 - A, and let tau ~ U[0, 2]
be independent of b. Whatever kappa is, X = tau - b has density P(0 <= x + b <= 2) / 2 = 1/2 at every x in [0, 1];
P(X < 0) = E[b] / 2 = (1 - A) / 2, and what is left lies above 1: P(X >= 1) = A / 2. tau itself has density 1/2 below 1
and P(tau >= 1) = 1/2. Hence, under kappa = t, with A = 1/2 (METHOD 7.6):
interleaved: t_text is tau, the image X: absent (1 - A) / 2 = 1/4, in flow 1/2 with flat times, complete A / 2 = 1/4.
reversed: the same with the two exchanged: t_img is tau, t_text is X: not begun 1/4, in flow 1/2 with flat times,
complete 1/4. That d has the law of a birth is our choice, as nothing forces it where the text is not inserted into
anything; it makes the one law the mirror of the other for a document of one image.
A token is there with probability E[kappa(t_text)]: (A + 1) / 2 = 3/4 under interleaved, A / 2 + A / 2 = A = 1/2 under
reversed, A = 1/2 under the others.

Sampling a document follows the same paths: interleaved is what `Request(target="document")` does, images begin where
and when they are inserted; the other laws know the number of images, so they begin with `Request.images` in flow, and
the text runs beside them (fixed, and the diagonal of independent times) or `SamplerConfig.text_delay` behind
(reversed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneflow_core.flows.schedule import FloatArray, Schedule, draw_births, image_times

LAWS = ("independent", "interleaved", "reversed", "fixed")


@dataclass(frozen=True)
class Times:
    """Clocks of one corruption and the births on them. E elements, I of them generated images."""

    text: float
    """The text clock; above 1 where a complete text waits for images."""
    image_I: FloatArray
    birth_E: FloatArray
    image_E: NDArray[np.bool_]

    @property
    def keep_E(self) -> NDArray[np.bool_]:
        """Which elements are there."""
        if not len(self.image_I):
            return self.birth_E <= self.text
        clock_E = np.full(len(self.birth_E), self.text)
        clock_E[self.image_E] = self.image_I
        keep_E: NDArray[np.bool_] = self.birth_E <= clock_E
        return keep_E

    @property
    def image_time_I(self) -> FloatArray:
        """How far each image has flowed, at most 1; below 0 where it is not there."""
        if not len(self.image_I):
            return self.image_I
        return image_times(self.image_I, self.birth_E[self.image_E])


def check_law(law: str) -> str:
    """`law` itself.

    Raises:
        ValueError: none of `LAWS` and no `fixed:<t>` with t in [0, 1].
    """
    name, _, value = law.partition(":")
    known = law in LAWS or (name == "fixed" and value.replace(".", "", 1).isdigit() and float(value) <= 1)
    if not known:
        raise ValueError(f"times {law!r} are none of: {', '.join(LAWS)}, fixed:<t of 0 to 1>")
    return law


def draw_times(
    law: str,
    schedule: Schedule,
    image_E: NDArray[np.bool_],
    given_E: NDArray[np.bool_],
    free: Callable[[int], FloatArray],
    rng: np.random.Generator,
    *,
    text_clean: bool = False,
) -> Times:
    """Clocks and births of a document's elements under `law`.

    Args:
        law: as `check_law` takes it.
        schedule: kappa.
        image_E: which elements are generated images.
        given_E: which elements are given, so always there.
        free: draws the times of that many images where nothing forces them; for independent times.
        rng: read in a fixed order: births, the common clock, then what is the law's own.
        text_clean: no text is asked for, so its clock stands at 1; under independent times alone.
    """
    birth_E = draw_births(schedule, len(image_E), rng)
    name, _, value = law.partition(":")
    if value:
        clock = float(value)
    elif text_clean and name == "independent":
        clock = 1.0
    else:
        clock = float(rng.random()) * (2.0 if name in ("interleaved", "reversed") else 1.0)
    text, image_I = clock, np.full(np.count_nonzero(image_E), clock)
    if name == "independent":
        image_I = free(len(image_I))
    if name == "reversed":
        text = max(0.0, clock - float(draw_births(schedule, 1, rng)[0]))
    if name != "interleaved" and len(image_I):
        birth_E[image_E] = 0.0
    birth_E[given_E] = -np.inf
    return Times(text, image_I, birth_E, image_E)
