"""The page of a validation: scores beside baselines, where the errors are, and samples to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from src.evaluation.official import official_unit
from src.evaluation.report import BASELINES
from src.evaluation.scored import (
    FINGER_JOINTS,
    NOT_WRIST,
    THRESHOLDS_MM,
    WRIST,
    JointErrors,
    Scored,
    area_under,
    means_over,
)
from src.evaluation.statistics import Rows
from src.geometry.in_view import HIDDEN, IN_VIEW, UNKNOWN
from src.hand.joints import OPENPOSE21
from src.pages.answers import answers, rows_interval
from src.pages.chosen import NEIGHBOURS
from src.pages.curves import curve_blocks
from src.pages.figures import drawn_hand, histogram, parts, shares
from src.pages.page import Block, Json, Page, Section
from src.pages.samples import Sample, corners, sample_json

OVER_EPOCHS = "Over the epochs"
"""Title of the section with the curves."""
_KINDS = {
    "worst": "The worst samples",
    "median": "Samples in the middle",
    "best": "The best samples",
    "spread": "Samples spread over all",
}
_APART = (
    f"No two samples of a list are neighbours: those of one sequence are at least {NEIGHBOURS} frames apart, "
    "and one sequence fills at most a third of a list."
)
_WORDS = (
    ("RGB-D, RGB-only", "the same weights with depth shown and with depth hidden"),
    ("MPJPE, wrist-relative", "mean distance of the 21 joints after both wrists are laid on the same point"),
    ("PA-MPJPE, aligned", "the same after the best rotation, scale and shift"),
    ("zero pose", "a prediction with every joint at the wrist"),
    ("mean pose", "the mean pose, shape and wrist rotation of the training set"),
    ("nearest training pose", "of all training poses the one nearest to the truth: it knows the truth"),
    ("before refinement", "the network's first hand, which its last part corrects"),
    ("interval", "how far a mean could be off had other motions been recorded"),
    ("motion", "all sequences whose names differ in the last digit: the cameras that film one motion"),
)
_MINUS = "\N{MINUS SIGN}"
_INTERVALS = "In brackets: the 95 % interval (bootstrap over whole motions)."


@dataclass(frozen=True, eq=False)
class Validation:
    """What the page of a validation is made of; N samples, n of them with a complete label."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Checkpoint, split, epoch ...: name and value."""
    scored: Mapping[str, Scored]
    """Name of a modality (`RGB-D`, `RGB-only`) -> its rows, all of one split; the first is taken apart."""
    total: int
    """N."""
    means: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Modality -> more scores (`loss`, `MPVPE mm`, ...)."""
    baselines: Mapping[str, Rows] = field(default_factory=dict)
    """`<baseline>_mpjpe_mm`, `<baseline>_pa_mm` -> (N,) mm, nan without a label."""
    official: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Modality -> `official_ho3d` scores."""
    boxes: Sequence[str] = ()
    """A `boxes_line` for each modality that was also scored with other boxes."""
    box_side_px: NDArray[np.float64] | None = None
    """(N,) longer side of the hand's box in the picture."""
    scalars: Sequence[Mapping[str, Json]] = ()
    """Lines of the run's scalars.jsonl."""
    chosen: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """Kind of `src.pages.chosen` -> samples to look at."""

    def page(self) -> Page:
        """The page."""
        said = answers(self.scored, self.baselines, self.means)
        sections = [Section("Scores", self._scores())]
        if curves := curve_blocks(self.scalars):
            sections.append(Section(OVER_EPOCHS, curves))
        known = {name: rows.joints for name, rows in self.scored.items() if rows.joints is not None}
        if known:
            sections += [
                Section("Share of correct joints", [_shares(known)]),
                Section("Joints and fingers", _joints(known)),
                Section("In view or hidden", [_views(known)]),
                Section("Distance and size", self._properties(known)),
            ]
        sections += [
            Section("Errors of samples", [self._histogram()]),
            Section("Sequences", [self._sequences()]),
        ]
        samples: list[Mapping[str, Json]] = []
        blocks: list[Block] = []
        for kind, chosen in self.chosen.items():
            if chosen:
                places = range(len(samples), len(samples) + len(chosen))
                samples += [sample_json(sample) for sample in chosen]
                blocks.append(Block(_KINDS[kind], [_APART] if not blocks else (), samples=list(places)))
        if blocks:
            sections.append(Section("Look at samples", blocks))
        text = repr((said, sections))
        rows: list[Json] = [list(row) for row in _WORDS if row[0].partition(",")[0] in text]
        words = {"header": ["word", "meaning"], "rows": rows, "sortable": False}
        sections.append(Section("Words", [Block(table=words)]))
        return Page(self.title, self.facts, said, sections, samples, corners(self.chosen))

    def _scores(self) -> list[Block]:
        """Summary, counts, other scores, boxes, official scores."""
        counts = []
        for name, rows in self.scored.items():
            left = self.total - len(rows.sequences)
            text = f"{name}: {len(rows.sequences)} of {self.total} samples scored, {rows.extent}"
            text += f"; {left} without a complete label, left out" if left else ""
            text += f"; {rows.nonfinite} predictions are not finite: nan" if rows.nonfinite else ""
            counts.append(text + ".")
        lines: list[list[Json]] = [
            [name, rows.estimate(rows.mpjpe_mm), rows.estimate(rows.pa_mpjpe_mm)]
            for name, rows in self.scored.items()
        ]
        (one, a), *others = self.scored.items()
        for other, b in others:
            if not (a.nonfinite or b.nonfinite):
                pairs = ((b.mpjpe_mm, a.mpjpe_mm), (b.pa_mpjpe_mm, a.pa_mpjpe_mm))
                lines.append([f"{other} {_MINUS} {one}", *(a.estimate(x - y) for x, y in pairs)])
        for key, title in BASELINES.items():
            columns = [self.baselines.get(f"{key}_{suffix}") for suffix in ("mpjpe_mm", "pa_mm")]
            if any(column is not None for column in columns):
                # Not a.estimate: a baseline has its score whatever the network said.
                cells = ["" if c is None else interval_text(c[a.usable], a.motions) for c in columns]
                lines.append([title, *cells])
        table = {"header": ["predictor", "MPJPE, mm", "PA-MPJPE, mm"], "rows": lines, "sortable": False}
        blocks = [Block(words=[*counts, _INTERVALS], table=table)]
        if self.means:
            names = list(dict.fromkeys(name for means in self.means.values() for name in means))
            more = [
                [modality, *(means.get(name) for name in names)] for modality, means in self.means.items()
            ]
            blocks.append(Block(table={"header": ["predictor", *names], "rows": more, "sortable": False}))
        if self.boxes:
            blocks.append(Block("Boxes", words=[f"{line.strip()}." for line in self.boxes]))
        if self.official:
            first = next(iter(self.official.values()))
            official: list[list[Json]] = [
                [score, official_unit(score), *(f"{own[score]:.6f}" for own in self.official.values())]
                for score in first
            ]
            header = ["score", "unit", *self.official]
            blocks.append(
                Block("Official HO3D scores", table={"header": header, "rows": official, "sortable": False})
            )
        return blocks

    def _properties(self, known: Mapping[str, JointErrors]) -> list[Block]:
        """Errors along the distance of the hand and the size of its box."""
        distance = {n: means_over(j.distance_m, self.scored[n].mpjpe_mm) for n, j in known.items()}
        each = max(1, len(next(iter(self.scored.values())).mpjpe_mm) // 8)
        words = [f"Each point is the mean of about {each} samples."]
        blocks = [
            Block("Distance of the wrist", words, figure=parts(distance, "distance from the camera, m"))
        ]
        if self.box_side_px is not None:
            side = {
                n: means_over(self.box_side_px[self.scored[n].usable], self.scored[n].mpjpe_mm) for n in known
            }
            blocks.append(
                Block("Size of the box", words, figure=parts(side, "longer side of the box, pixels"))
            )
        return blocks

    def _histogram(self) -> Block:
        """How the samples' errors are distributed."""
        words = ["MPJPE of each sample. The last bar holds all that are worse."]
        columns = {name: rows.mpjpe_mm for name, rows in self.scored.items()}
        return Block(words=words, figure=histogram(columns, "MPJPE, mm"))

    def _sequences(self) -> Block:
        """Frames and errors of each sequence, the worst of the first modality first."""
        header = ["sequence", "frames"]
        header += [f"{name} {metric}" for name in self.scored for metric in ("MPJPE", "PA-MPJPE")]
        first, *others = (rows.by_sequence() for rows in self.scored.values())
        lines: list[list[Json]] = []
        for sequence, (count, *errors) in first.items():
            errors += [error for other in others for error in other[sequence][1:]]
            lines.append([sequence, count, *errors])
        words = ["Millimetres. A click on a heading sorts the table."]
        return Block(words=words, table={"header": header, "rows": lines, "sortable": True})


def interval_text(values: Rows, motions: NDArray[np.str_]) -> str:
    """The same as text."""
    interval = rows_interval(values, motions)
    return "nan" if interval is None else interval.text


def _shares(known: Mapping[str, JointErrors]) -> Block:
    """Share of correct joints over thresholds, and the area below."""
    curves, areas = {}, []
    for name, joints in known.items():
        for aligned in (False, True):
            kind = "aligned" if aligned else "wrist-relative"
            curves[f"{name}, {kind}"] = values = joints.share_within(aligned=aligned)
            picked = [f"{values[t]:.1%}" if np.isfinite(values[t]) else "nan" for t in (5, 10, 20, 30, 50)]
            areas.append([f"{name}, {kind}", area_under(values), *picked])
    header = ["predictor", "AUC to 50 mm", *(f"within {t} mm" for t in (5, 10, 20, 30, 50))]
    words = [
        "PCK: the share of the joints whose error is within a threshold. AUC: the area below its curve, 1 is "
        "perfect."
    ]
    return Block(words=words, figure=shares(curves, THRESHOLDS_MM), table={
        "header": header, "rows": areas, "sortable": False,
    })  # fmt: skip


def _joints(known: Mapping[str, JointErrors]) -> list[Block]:
    """A drawn hand for the first modality, relative and aligned, and tables of joints and fingers."""
    name, first = next(iter(known.items()))
    each = [[first.of([j])[kind] for j in range(len(OPENPOSE21))] for kind in (0, 1)]
    high = max((error for errors in each for error in errors if np.isfinite(error)), default=1.0)
    blocks = []
    for errors, title in zip(each, ("wrist-relative (both wrists at the origin)", "aligned"), strict=True):
        words = [f"Mean error of each joint in mm, {name}, {title}."]
        blocks.append(Block(words=words, figure=drawn_hand(errors, 0.0, max(high, 1e-6))))
    header = [f"{n} {kind}" for n in known for kind in ("wrist-relative", "aligned")]
    groups: dict[str, Sequence[int]] = {"wrist": [WRIST], **FINGER_JOINTS}
    for what, rows in (("finger", groups), ("joint", {n: [j] for j, n in enumerate(OPENPOSE21)})):
        cells = [[part, *(e for j in known.values() for e in j.of(own))] for part, own in rows.items()]
        blocks.append(Block(table={"header": [what, *header], "rows": cells, "sortable": True}))
    return blocks


def _views(known: Mapping[str, JointErrors]) -> Block:
    """Joints in view against hidden ones, by finger."""
    kinds = {"in view": IN_VIEW, "hidden": HIDDEN, "not known": UNKNOWN}
    groups: dict[str, Sequence[int]] = {"all but the wrist": NOT_WRIST, **FINGER_JOINTS}
    first = next(iter(known.values()))
    cells = []
    for part, own in groups.items():
        for kind, code in kinds.items():
            count = first.of_view(code, own)[0]
            errors = [joints.of_view(code, own)[1] if count else "" for joints in known.values()]
            cells.append([part, kind, count, *errors])
    words = [
        "A joint is hidden where the depth picture shows something more than 25 mm in front of it: an "
        "object, the palm, another finger. Not known: no depth was measured there, or it is outside of the "
        "crop. Millimetres, wrist-relative.",
    ]
    header = ["joints", "view", "number", *known]
    return Block(words=words, table={"header": header, "rows": cells, "sortable": True})
