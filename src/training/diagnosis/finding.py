"""What a check says, in one line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["OK", "WARN", "FAIL"]


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


def judge(good: bool, what: str, seen: str, expected: str, where: str, *, worse: Status = "FAIL") -> Finding:
    """A finding that is OK where `good`, else `worse`."""
    return Finding("OK" if good else worse, what, seen, expected, where)


def summary(findings: Iterable[Finding]) -> str:
    """`Doctor: 31 checks OK`, or how many are not, and their names."""
    found = list(findings)
    bad = [f for f in found if f.status != "OK"]
    if not bad:
        return f"Doctor: {len(found)} checks OK"
    names = ", ".join(f"{f.status} {f.what}" for f in sorted(bad, key=lambda f: f.status))
    return f"Doctor: {len(bad)} of {len(found)} checks not OK: {names}"
