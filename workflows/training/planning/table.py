"""The plan for people."""

from collections.abc import Iterator

from workflows.training.planning.hardware import GIB, SHARE_ASSUMED
from workflows.training.planning.plan import Plan


def lines(plan: Plan) -> Iterator[str]:
    """One line after the other."""
    total = sum(plan.parameters.values())
    parts = ", ".join(f"{name} {_short(count)}" for name, count in plan.parameters.items())
    yield f"parameters      {_short(total)} ({parts})"
    pack = plan.pack
    sizes = f"{pack.tokens:,.0f} tokens and {pack.documents:,.1f} documents each"
    yield f"packs           {plan.packs_per_step} a step, {sizes}"
    yield f"lengths         {plan.lengths}"
    yield from _memory(plan)
    yield (
        f"arithmetic      {plan.flops_per_step / 1e12:,.1f} TFLOP a step"
        + (f", and {plan.recomputed_flops / 1e12:,.1f} computed again" if plan.recomputed_flops else "")
        + f"; {plan.packs_per_step * pack.tokens:,.0f} tokens a step"
    )
    share = f"{SHARE_ASSUMED:.0%} of the data sheet, assumed"
    yield f"step            {plan.step_s:.3g} s on {plan.gpus} x {plan.gpu.name} ({share})"
    why = ", as budget.max_minutes ends it" if plan.minutes_bind else ""
    days = plan.hours * plan.gpus / 24
    yield f"budget          {plan.steps:,} steps{why}: {plan.hours:,.1f} hours, {days:,.1f} GPU-days"


def _memory(plan: Plan) -> Iterator[str]:
    memory, moment = plan.memory, plan.memory.peak_moment
    share = memory.peak / plan.gpu.memory
    verdict = "" if plan.fits else "; DOES NOT FIT"
    yield (
        f"memory of a GPU {memory.peak / GIB:,.2f} GiB at the fullest ({NAMES[moment]}), "
        f"{share:.0%} of {plan.gpu.name}'s {plan.gpu.memory / GIB:.0f}{verdict}"
    )
    for name, count in {**memory.held, **memory.passing[moment]}.items():
        if count:
            yield f"  {name:<32} {count / GIB:>9,.2f} GiB"


NAMES = {
    "loss": "between forward and backward",
    "backward": "at the end of the backward pass",
    "step": "in the optimiser",
}


def _short(count: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)
