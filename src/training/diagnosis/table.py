"""The table: a check is a small function that measures one number, and the row above it that judges it.

    @HAND.row("BGR", above=-0.03, why=": skin is redder than blue", where="dataloader/pictures/decode.py")
    def rgb_order(s: Samples) -> Seen:
        return Seen(red, f"(R - B) / (R + B) under the joints {red:+.3f}")

What is fine goes by the function's name, what is not by the cause in its row. `Table.look` runs the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Status = Literal["OK", "WARN", "FAIL"]
ONLY_WARNS = math.inf


@dataclass(frozen=True)
class Finding:
    """What one look at data, model or machine has shown."""

    status: Status
    what: str
    """What was looked at; of a WARN or FAIL, the name of the cause."""
    seen: str
    """The evidence."""
    expected: str
    """What a healthy run shows."""
    where: str
    """The file or setting to mend."""

    def line(self) -> str:
        """`WARN  what: seen (expected ...) -> where`."""
        mend = "" if self.status == "OK" else f" -> {self.where}"
        return f"{self.status:<4}  {self.what}: {self.seen} (expected {self.expected}){mend}"


class Seen(NamedTuple):
    """What a check measured. Where it names a cause of its row, and a place for it, that is not fine."""

    value: float
    text: str
    cause: str | None = None
    where: str | None = None


Check = Callable[..., Seen | None]
"""Returns None where it has nothing to say."""


@dataclass(frozen=True)
class Row:
    """A check and how its number is judged."""

    check: Check
    causes: tuple[str, ...]
    """Names of what is wrong when it is not fine: the first, or the one that the check names."""
    where: str
    above: float = -math.inf
    below: float = math.inf
    """Limits between which the number is fine; nan never is."""
    why: str = ""
    """Unit of the limits, or the reason behind them."""
    fails: float = -math.inf
    """A number from here on is a FAIL, one below it a WARN."""

    def judge(self, seen: Seen) -> Finding:
        """The finding that a measurement makes."""
        limits = f"above {self.above:g}" if math.isinf(self.below) else f"below {self.below:g}"
        limits = limits if math.isinf(self.above + self.below) else f"{self.above:g} to {self.below:g}"
        what = seen.cause or self.causes[0]
        status: Status = "WARN" if seen.value < self.fails else "FAIL"
        if seen.cause is None and self.above < seen.value < self.below:
            what, status = self.check.__name__.replace("_", " "), "OK"
        return Finding(status, what, seen.text, limits + self.why, seen.where or self.where)


class Table(list[Row]):
    """Checks of one thing, in the order in which they are made."""

    def row(self, *causes: str, **judged: Any) -> Callable[[Check], Check]:
        """Add the decorated check; see `Row`."""

        def add(check: Check) -> Check:
            self.append(Row(check, causes, **judged))
            return check

        return add

    def look(self, *things: Any) -> list[Finding]:
        """Make the checks. A FAIL ends them: what a later one would say is its consequence."""
        found: list[Finding] = []
        for row in self:
            if (seen := row.check(*things)) is not None:
                found.append(row.judge(seen))
                if found[-1].status == "FAIL":
                    break
        return found


def summary(findings: Iterable[Finding]) -> str:
    """`Doctor: 31 checks OK`, or how many are not, and their names."""
    found = list(findings)
    bad = [f for f in found if f.status != "OK"]
    if not bad:
        return f"Doctor: {len(found)} checks OK"
    names = ", ".join(f"{f.status} {f.what}" for f in sorted(bad, key=lambda f: f.status))
    return f"Doctor: {len(bad)} of {len(found)} checks not OK: {names}"
