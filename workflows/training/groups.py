"""Parts of the network that norms are told for: which of them learns, which is dead, which blows up."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

GROUPS = (
    "embedding",
    "adapters",
    "trunk_low",
    "trunk_middle",
    "trunk_high",
    "text_heads",
    "image_head",
    "other",
)
"""From the input to the output; the trunk's blocks in thirds, its final norm with the last."""
PREFIXES = {
    "embedding": ("embedding.", "prompt"),
    "adapters": ("patches.", "features.", "backbone.time."),
    "trunk_high": ("backbone.norm.",),
    "text_heads": ("heads.",),
    "image_head": ("image_head.",),
}
BLOCK = re.compile(r"\bbackbone\.blocks\.(\d+)\.")


class Groups:
    """The parameters of a network, by the part that they belong to.

    Args:
        parameters: names of all of them.
    """

    def __init__(self, parameters: Sequence[str]) -> None:
        layers = 1 + max((int(found[1]) for name in parameters if (found := BLOCK.search(name))), default=0)
        held = {name: _group(name, layers) for name in parameters}
        self.names = [group for group in GROUPS if group in held.values()]
        self._place = {name: self.names.index(group) for name, group in held.items()}
        self._index: dict[tuple[str, ...], Tensor] = {}

    def squares(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Sums of squares by group, [G] on the tensors' device, of tensors named as parameters are; no host sync."""
        norms = torch.stack(torch._foreach_norm(list(tensors.values())))
        names = tuple(tensors)
        if names not in self._index:
            places = [self._place[name] for name in names]
            self._index[names] = torch.tensor(places, device=norms.device)
        return norms.new_zeros(len(self.names)).index_add_(0, self._index[names], norms.square())


def _group(name: str, layers: int) -> str:
    if found := BLOCK.search(name):
        return ("trunk_low", "trunk_middle", "trunk_high")[3 * int(found[1]) // layers]
    return next((group for group, starts in PREFIXES.items() if name.startswith(starts)), "other")
