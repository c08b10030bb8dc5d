"""Accounts: what became of the rows of a source. What was read is what was kept and every reason, or the job fails."""

from collections import Counter
from collections.abc import Mapping, Sequence

from oneflow_core.data.manifest import Account
from workflows.errors import OneFlowError


def closed(what: str, account: Account) -> Account:
    """`account`, if it closes.

    Raises:
        OneFlowError: rows of `what` vanished, or were counted twice; the sums are shown.
    """
    if account.read == account.kept + sum(account.refused.values()):
        return account
    raise OneFlowError(
        what,
        f"its account does not close: {account.read} read are not {account.kept} kept and"
        f" {sum(account.refused.values())} refused ({told(account.refused)})",
        "this is a fault of the program: please report it with these figures",
    )


def total(accounts: Sequence[Account]) -> Account:
    """The sum of `accounts`."""
    refused: Counter[str] = Counter()
    for account in accounts:
        refused.update(account.refused)
    return Account(sum(a.read for a in accounts), sum(a.kept for a in accounts), dict(refused))


def told(refused: Mapping[str, int]) -> str:
    """Reasons and how many, the most frequent first."""
    order = sorted(refused.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason}: {count:,}" for reason, count in order) or "none"
