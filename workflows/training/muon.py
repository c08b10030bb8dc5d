"""Muon's orthogonalisation over sharded matrices: each rank gathers whole the matrices it owns, and no others."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from oneflow_core.muon import direction


class Exchange:
    """Deals matrices [m, n], sharded by rows as FSDP2 shards them, out to the ranks and their steps back.

    Twice a step every rank sends and receives as many values as it holds (one all-to-all each way), and the ranks
    share the arithmetic, matrices of a shape in one batch. All ranks of `group` (all, by default), over which the
    matrices are sharded, must make and call it alike.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], group: dist.ProcessGroup | None = None) -> None:
        world, self._rank, self._group = dist.get_world_size(group), dist.get_rank(group), group
        self._shapes = shapes
        order = sorted(range(len(shapes)), key=lambda i: shapes[i])
        self._owned = [order[rank::world] for rank in range(world)]
        self._rows = [[_rows(shape[0], world, rank) for shape in shapes] for rank in range(world)]

    def directions(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Muon's steps at rate 1 for the matrices of which `pieces` are this rank's rows; in the same order."""
        mine = self._owned[self._rank]
        away = [self._values(self._rank, owned) for owned in self._owned]
        home = [self._values(rank, mine) for rank in range(len(self._owned))]
        sent = torch.cat([pieces[i].flatten() for owned in self._owned for i in owned])
        wholes: dict[int, Tensor] = {}
        gathered = [
            self._cut(values, rank, mine)
            for rank, values in enumerate(self._all_to_all(sent, away, home).split(home))
        ]
        for place, i in enumerate(mine):
            wholes[i] = torch.cat([rows[place] for rows in gathered])
        turned = _in_batches(wholes)
        parts = {i: turned[i].split([rows[i] for rows in self._rows]) for i in mine}
        back = [parts[i][rank].flatten() for rank in range(len(self._owned)) for i in mine]
        received = self._all_to_all(torch.cat(back) if back else sent[:0], home, away).split(away)
        steps: dict[int, Tensor] = {}
        for owned, values in zip(self._owned, received, strict=True):
            steps |= zip(owned, self._cut(values, self._rank, owned), strict=True)
        return [steps[i] for i in range(len(pieces))]

    def _all_to_all(self, values: Tensor, away: list[int], home: list[int]) -> Tensor:
        got = values.new_empty(sum(home))
        dist.all_to_all_single(got, values, home, away, group=self._group)
        return got

    def _values(self, rank: int, matrices: Sequence[int]) -> int:
        """How many values of these matrices a rank holds."""
        return sum(self._rows[rank][i] * self._shapes[i][1] for i in matrices)

    def _cut(self, values: Tensor, rank: int, matrices: Sequence[int]) -> list[Tensor]:
        """The rows of these matrices that a rank holds, out of one flat tensor of them."""
        sizes = [self._values(rank, [i]) for i in matrices]
        return [v.view(-1, self._shapes[i][1]) for i, v in zip(matrices, values.split(sizes), strict=True)]


def _rows(rows: int, world: int, rank: int) -> int:
    """Rows that a rank holds: FSDP2 cuts as torch.chunk does."""
    most = -(-rows // world)
    return max(0, min(most, rows - rank * most))


def _in_batches(matrices: dict[int, Tensor]) -> dict[int, Tensor]:
    """Directions of the matrices, by the batch of a shape."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in matrices.items():
        alike[matrix.shape].append(i)
    turned: dict[int, Tensor] = {}
    for places in alike.values():
        steps = direction(torch.stack([matrices[i] for i in places]))
        turned |= zip(places, steps.unbind(), strict=True)
    return turned
