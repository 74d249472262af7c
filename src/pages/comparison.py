"""The page of two validations compared: which is better, is that sure, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from src.evaluation.statistics import Rows
from src.pages.figures import colour, histogram, plot
from src.pages.page import Block, Json, Page, Section
from src.pages.samples import Sample, corners, sample_json

_POINTS = 3000
"""Frames of the scatter plot at most; of more, every second, third ... is drawn."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What the page of a comparison is made of; n frames that have a number in both files."""

    facts: Sequence[tuple[str, str]]
    """Files, split, metric: name and value."""
    answers: Sequence[str]
    """What came out, a sentence each."""
    a: Rows
    """(n,)."""
    b: Rows
    """(n,)."""
    by_sequence: Sequence[tuple[str, int, float, float, float]]
    """Name, frames, A, B, B - A."""
    extremes: Mapping[str, Sequence[tuple[str, float, float, float]]]
    """`worse` or `better` in B -> frame, A, B, B - A; the largest change first."""
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """The first of them, to look at."""
    no_pictures: str = ""
    """Why there are no pictures."""

    def page(self) -> Page:
        """The page."""
        sections = [Section("All frames", self._all()), Section("By sequence", [self._sequences()])]
        samples: list[Mapping[str, Json]] = []
        blocks = [Block(words=[f"No pictures: {self.no_pictures}"])] if self.no_pictures else []
        for kind, rows in self.extremes.items():
            own = self.samples.get(kind, ())
            places = range(len(samples), len(samples) + len(own))
            samples += [sample_json(sample) for sample in own]
            words = [] if rows or own else [f"No frame is {kind} in B."]
            header = ["frame", "A", "B", "B - A"]
            table = {"header": header, "rows": list(map(list, rows)), "sortable": True} if rows else None
            blocks.append(Block(f"Frames that became {kind} in B", words, table, samples=list(places)))
        sections.append(Section("Frames that changed most", blocks))
        return Page("B compared with A", self.facts, self.answers, sections, samples, corners(self.samples))

    def _all(self) -> list[Block]:
        """How the differences are distributed, and each frame in A and B."""
        step = max(1, -(-len(self.a) // _POINTS))
        points = {
            "type": "scattergl" if len(self.a) > 1000 else "scatter", "mode": "markers", "name": "frames",
            "x": self.a[::step].tolist(), "y": self.b[::step].tolist(),
            "marker": {"size": 6, "color": colour("B"), "opacity": 0.6},
        }  # fmt: skip
        top = float(max(self.a.max(), self.b.max()))
        equal = {
            "type": "scatter", "mode": "lines", "name": "A = B", "x": [0.0, top], "y": [0.0, top],
            "line": {"color": colour("A = B"), "dash": "dot"},
        }  # fmt: skip
        each = plot([points, equal], "A", "B", hovermode="closest")
        differences = histogram({"B - A": self.b - self.a}, "B - A")
        words = ["B - A of each frame. The last bar holds all that are larger."]
        return [Block("Differences", words, figure=differences), Block("Frame by frame", figure=each)]

    def _sequences(self) -> Block:
        """Means of each sequence."""
        header = ["sequence", "frames", "A", "B", "B - A"]
        rows = [list(row) for row in self.by_sequence]
        return Block(
            words=["A click on a heading sorts the table."],
            table={"header": header, "rows": rows, "sortable": True},
        )
