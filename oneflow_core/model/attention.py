"""Who attends to whom in a pack, as rectangles that fused kernels take, exact.

Shapes: T tokens of the pass, B rows of a bucket, L queries and M keys of a row (padded), K keys of all rows in turn;
Q and P the queries and keys of all buckets, padding included.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.precision import widen
from oneflow_core.ragged import ragged_range, runs

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

WASTE = 0.03
"""Largest share of padding in a bucket's queries, and in its keys."""


@dataclass
class AttentionBucket:
    """Rows of like length, padded to a rectangle."""

    rows: int
    queries: int
    """Queries of a row, L."""
    keys: int
    """Keys of a row, M."""
    mask: Tensor | None
    """Which keys a query sees, bool, [B, 1, 1, M] or [B, 1, L, M]; None where it is all of them."""
    causal: bool = False
    """Keys are the queries, and each sees those up to itself; there is no mask then."""


@dataclass
class AttentionPlan:
    """Attention in rows: a run of tokens asks, and the same or more tokens answer; nobody else is seen.

    A document is one row. With a prefix it is one for the prefix, which sees itself alone, and one for each of its
    copies, which see the prefix and themselves. Within a row a token sees those whose order is not above its own:
    with one order for all it sees everything, with its place as its order nothing after it, with the patches of an
    image sharing theirs Transfusion's mixture of both.
    """

    buckets: list[AttentionBucket]
    query_Q: Tensor
    """Token of each query, bucket after bucket, int64; padding repeats token 0. All buckets are gathered at once: a
    gather for each would have a gradient of the whole pack's size."""
    key_P: Tensor | None
    """Token of each key, or row of the cache, likewise; None: the queries are the keys."""
    restore_T: Tensor
    """Where each token of the pass stands in the concatenation of all flattened buckets."""
    document_T: Tensor
    """Document of each token, for kernels that mask instead of gather."""
    sharpness_T: Tensor | None = None
    """Factor of each query's attention logits, float32; below 1 its attention is more even. None: 1 for all."""
    write_T: Tensor | None = None
    """Row of the cache that each token's key and value go to, int64; None: there is no cache."""
    start_B1: Tensor | None = None
    """Where each row begins among the tokens, and where the last ends, int32, where the rows are the tokens in their
    order and everyone in a row sees all of it; None where they are not."""
    longest: int = 0
    """Tokens of the longest such row."""
    ordered: bool = False
    """Whether the tokens of the pass lie as the buckets have them already, so that none are gathered (`in_order`)."""

    @classmethod
    def build(
        cls, lengths_B: IntArray, order_T: IntArray | None = None, waste: float = WASTE
    ) -> AttentionPlan:
        """One row a document, of lengths `lengths_B` in pack order; `order_T` as in the class, None: one for all."""
        rows = Rows(lengths_B, lengths_B, np.arange(int(lengths_B.sum())), order_T, order_T)
        plan = cls.of_rows(rows, np.repeat(np.arange(len(lengths_B)), lengths_B), waste)
        if order_T is None and len(lengths_B):
            plan.start_B1 = torch.from_numpy(np.r_[0, lengths_B.cumsum()].astype(np.int32))
            plan.longest = int(lengths_B.max())
        return plan

    @classmethod
    def of_runs(
        cls, document_T: IntArray, copy_T: IntArray, order_T: IntArray | None = None, waste: float = WASTE
    ) -> AttentionPlan:
        """Rows from the document and the copy of each token; copy -1 is the prefix, and comes first."""
        start_B, length_B = runs(document_T, copy_T)
        if (copy_T[start_B] >= 0).all():
            return cls.build(length_B, order_T, waste)
        prefix_B = np.searchsorted(document_T[start_B], document_T[start_B])
        shared_B = np.where((copy_T[start_B] >= 0) & (copy_T[start_B[prefix_B]] < 0), length_B[prefix_B], 0)
        key_K = ragged_range(
            np.stack([start_B[prefix_B], start_B], 1).ravel(), np.stack([shared_B, length_B], 1).ravel()
        )
        key_order_K = None if order_T is None else order_T[key_K]
        return cls.of_rows(
            Rows(length_B, shared_B + length_B, key_K, order_T, key_order_K), document_T, waste
        )

    @classmethod
    def of_rows(cls, rows: Rows, document_T: IntArray, waste: float = WASTE) -> AttentionPlan:
        """Buckets of rows that are like in queries and in keys, so that padding stays below `waste` of either."""
        restore_T = np.empty(int(rows.queries_B.sum()), np.int64)
        buckets, query_Q, key_P, offset = [], [], [], 0
        for members in _groups(rows.queries_B, rows.keys_B, waste):
            query_BL, asking_BL = _rectangle(rows.queries_B, members)
            key_BM, answering_BM = _rectangle(rows.keys_B, members)
            restore_T[query_BL[asking_BL]] = offset + np.flatnonzero(asking_BL)
            offset += asking_BL.size
            causal, mask = rows.seen(query_BL, asking_BL, key_BM, answering_BM)
            sides = len(members), asking_BL.shape[1], answering_BM.shape[1]
            buckets.append(AttentionBucket(*sides, mask, causal))
            query_Q.append(query_BL.ravel())
            key_P.append(np.where(answering_BM, rows.key_K[key_BM], 0).ravel())
        asking, answering = (np.concatenate(x) if x else np.zeros(0, np.int64) for x in (query_Q, key_P))
        keys = None if np.array_equal(asking, answering) else torch.from_numpy(answering)
        restore, document = (torch.from_numpy(x) for x in (restore_T, document_T))
        return cls(buckets, torch.from_numpy(asking), keys, restore, document)

    @property
    def alone(self) -> bool:
        """Whether the pass is all there is: its keys are its queries, none are a prefix's or in a cache."""
        return self.key_P is None and self.write_T is None

    def in_order(self) -> tuple[AttentionPlan, Tensor]:
        """The plan of a pass whose tokens lie as the buckets have them, and which token each of its rows is, int64.

        Then no layer gathers anything. The rows are as many as `to_rounded` says; those at the end repeat token 0, see
        nobody and are seen by nobody.

        Raises:
            ValueError: keys that are not the queries, as of a prefix or a cache.
        """
        if not self.alone:
            raise ValueError(
                "keys that are not the queries do not follow their order; gather them layer by layer"
            )
        token_Q = to_rounded(self.query_Q)
        sharpness_Q = None if self.sharpness_T is None else self.sharpness_T[token_Q]
        plan = replace(self, ordered=True, document_T=self.document_T[token_Q], sharpness_T=sharpness_Q)
        plan.start_B1 = None
        return plan, token_Q


STEPS = 32
"""Lengths of `to_rounded` from one power of two to the next, from 256 on; below that they are 8 apart."""


def to_rounded(index_R: Tensor) -> Tensor:
    """The index with zeros at its end, so that there are few lengths: they are 8 apart, or a 32nd of a power of two.

    oneDNN makes code for every shape of a product that it sees, in the time of some products, and keeps a thousand of
    them; texts that grow would have it see all numbers of rows.
    """
    rows = len(index_R)
    step = max(8, (1 << rows.bit_length()) // (2 * STEPS))
    return F.pad(index_R, (0, -rows % step))


@dataclass
class Rows:
    """Rows of attention before they are grouped; queries are the tokens of the pass in their order."""

    queries_B: IntArray
    """Queries of each row."""
    keys_B: IntArray
    """Keys of each row."""
    key_K: IntArray
    """The keys of all rows, one after the other."""
    order_T: IntArray | None = None
    key_order_K: IntArray | None = None
    """Orders of queries and keys; a key is seen if its order is not above the query's. None: all are."""

    def seen(
        self, query_BL: IntArray, asking_BL: BoolArray, key_BM: IntArray, answering_BM: BoolArray
    ) -> tuple[bool, Tensor | None]:
        """Whether a bucket is plainly causal, and else which keys are seen; a query that is padding sees real ones."""
        every = None if answering_BM.all() else torch.from_numpy(answering_BM[:, None, None, :])
        if self.order_T is None or self.key_order_K is None:
            return False, every
        order_BL, key_order_BM = self.order_T[query_BL], self.key_order_K[key_BM]
        if query_BL.shape == key_BM.shape and (query_BL == self.key_K[key_BM])[asking_BL].all():
            rising = (np.diff(order_BL, axis=1) > 0) | ~asking_BL[:, 1:]
            if rising.all() and query_BL.shape[1] > 1:
                return True, None
        seen_BLM = (key_order_BM[:, None, :] <= order_BL[:, :, None]) | ~asking_BL[:, :, None]
        if (seen_BLM | ~answering_BM[:, None, :]).all():
            return False, every
        return False, torch.from_numpy((seen_BLM & answering_BM[:, None, :])[:, None])


Attend = Callable[[Tensor, Tensor, Tensor, AttentionPlan], Tensor]


def attend(
    q_THd: Tensor, k_RGd: Tensor, v_RGd: Tensor, plan: AttentionPlan, otherwise: Attend | None = None
) -> Tensor:
    """Attention as the plan says, [T, H, d], from H query heads and G key/value heads.

    `k_RGd` and `v_RGd` are those of the pass (R = T), or the rows of a cache that the plan's keys index. In half
    precision on a GPU, rows that are the tokens in their order go to a kernel that takes them as they lie; all else
    goes to `otherwise`, which is `rectangles` or stands for it.
    """
    if plan.start_B1 is not None and _suits_kernel(q_THd):
        kernel = (_KERNELS or load_kernel())[0]
        if kernel is not None:
            starts, longest = plan.start_B1, plan.longest
            return kernel(q_THd, k_RGd, v_RGd, starts, starts, longest, longest)
    return (otherwise or rectangles)(q_THd, k_RGd, v_RGd, plan)


def _suits_kernel(q_THd: Tensor) -> bool:
    """FlashAttention: half precision on a GPU, heads up to 256 wide in steps of 8."""
    half = q_THd.dtype in (torch.bfloat16, torch.float16)
    return q_THd.is_cuda and half and q_THd.shape[-1] % 8 == 0 and q_THd.shape[-1] <= 256


def load_kernel() -> list[Callable[..., Tensor] | None]:
    """torch's attention over runs of different lengths; [None] on GPUs before Ampere, which do not have it.

    Imported when it is first needed, as it brings torch's compiler with it; what compiles a trunk calls this before.
    """
    if not _KERNELS and torch.cuda.get_device_capability()[0] < AMPERE:
        _KERNELS.append(None)
    elif not _KERNELS:
        from torch.nn.attention.varlen import varlen_attn

        kernel: Callable[..., Any] = varlen_attn
        # Fewer key/value heads than query heads: torch 2.11 takes them as they are, later ones ask for the word.
        grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters
        _KERNELS.append(partial(kernel, enable_gqa=True) if grouped else kernel)
    return _KERNELS


_KERNELS: list[Callable[..., Tensor] | None] = []
AMPERE = 8
"""Major number of the compute capability from which FlashAttention runs."""


def rectangles(q_THd: Tensor, k_RGd: Tensor, v_RGd: Tensor, plan: AttentionPlan) -> Tensor:
    """`attend` by the plan's buckets, on any device.

    On a CPU in float32 at least, whatever comes: in half precision what a row is padded to would show in its result.
    """
    dtype = q_THd.dtype
    if not q_THd.is_cuda:
        q_THd, k_RGd, v_RGd = widen(q_THd), widen(k_RGd), widen(v_RGd)
    query_Q, restore_T = (None, None) if plan.ordered else (plan.query_Q, plan.restore_T)
    key_P = query_Q if plan.key_P is None else plan.key_P
    *q_Q, beyond = _cut(taken(q_THd, query_Q), [b.rows * b.queries for b in plan.buckets])
    (*k_P, _), (*v_P, _) = (
        _cut(taken(x, key_P), [b.rows * b.keys for b in plan.buckets]) for x in (k_RGd, v_RGd)
    )
    parts = []
    for bucket, *rows in zip(plan.buckets, q_Q, k_P, v_P, strict=True):
        q, k, v = (x.unflatten(0, (bucket.rows, -1)).transpose(1, 2) for x in rows)
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bucket.mask, is_causal=bucket.causal, enable_gqa=grouped
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return taken(torch.cat([*parts, beyond]), restore_T).to(dtype)


def _cut(x_Q: Tensor, rows: Sequence[int]) -> tuple[Tensor, ...]:
    """The rows of each bucket, and those beyond."""
    return x_Q.split([*rows, len(x_Q) - sum(rows)])


def taken(x_T: Tensor, row_R: Tensor | None) -> Tensor:
    """These rows; None: all as they are."""
    return x_T if row_R is None else x_T.index_select(0, row_R)


def _rectangle(lengths_B: IntArray, members: IntArray) -> tuple[IntArray, BoolArray]:
    """Places of the members' entries in the concatenation of all rows, padded with 0, and which are real."""
    starts = np.cumsum(lengths_B) - lengths_B
    columns = np.arange(int(lengths_B[members].max()))
    real = columns < lengths_B[members, None]
    return np.where(real, starts[members, None] + columns, 0), real


def _groups(queries_B: IntArray, keys_B: IntArray, waste: float) -> list[IntArray]:
    """Greedy from the longest: a bucket takes shorter rows while its share of padding stays below `waste`."""
    order = np.lexsort((-keys_B, -queries_B))
    groups: list[list[int]] = []
    used_q = used_k = longest_q = longest_k = 0
    for b, queries, keys in zip(
        order.tolist(), queries_B[order].tolist(), keys_B[order].tolist(), strict=True
    ):
        count, widest = (len(groups[-1]) + 1 if groups else 1), max(longest_k, keys)
        fits_q = used_q + queries >= (1 - waste) * longest_q * count
        if groups and fits_q and used_k + keys >= (1 - waste) * widest * count:
            groups[-1].append(b)
            used_q, used_k, longest_k = used_q + queries, used_k + keys, widest
        else:
            groups.append([b])
            used_q = longest_q = queries
            used_k = longest_k = keys
    return [np.array(g, np.int64) for g in groups]
