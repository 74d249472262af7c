"""Are 21 joints in HO3D's order? Asked of the distances between them, the mean over many frames.

Nothing here depends on the size of a hand, on its subject or on a hand model: in the right order bones are
short, the four knuckles lie side by side in theirs, the thumb's root is beside the index finger's and nearest
to the wrist. Legend: N frames, J 21 joints. Metres.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError
from src.hand.joints import FINGERS, HO3D21

_TOLERANCE_M = 0.003
"""By how much a right order may look longer than another one."""
_LINKS = (
    *(("wrist", f"{finger}_1") for finger in FINGERS),
    *((f"{finger}_{k}", f"{finger}_{k + 1}") for finger in FINGERS for k in (1, 2, 3)),
    *((f"{a}_1", f"{b}_1") for a, b in itertools.pairwise(FINGERS)),
    ("wrist", "thumb_1"),  # twice: it tells the thumb's side of the row from the other
)


def require_ho3d_order(joints_m: NDArray[np.floating], where: str) -> None:
    """Refuse joints that another order suits better.

    The links of a right hand are shorter in total than with any two joints or any fingers exchanged.

    Args:
        joints_m: (N, 21, 3) any axes; the first joint is known to be the wrist.
        where: what messages begin with.

    Raises:
        DataError: another order makes the links shorter; says which.
    """
    between = _mean_distances(joints_m)
    first, second = (np.array([HO3D21.index(link[end]) for link in _LINKS]) for end in (0, 1))
    own = between[first, second].sum()
    gain, what = max(
        (float(own - between[order[first], order[second]].sum()), what) for what, order in _other_orders()
    )
    if gain > _TOLERANCE_M:
        raise DataError(
            f"{where}: joints are not in HO3D's order: with {what} the hand's links would be "
            f"{gain * 1000:.0f} mm shorter in the mean over {len(joints_m):,} frames. Use the file that was "
            "published."
        )


@functools.cache
def _other_orders() -> list[tuple[str, NDArray[np.int64]]]:
    """(words, indices) of every exchange of two joints and of every order of whole fingers."""
    orders = []
    for a, b in itertools.combinations(range(1, len(HO3D21)), 2):
        order = np.arange(len(HO3D21))
        order[[a, b]] = b, a
        orders.append((f"{HO3D21[a]} and {HO3D21[b]} exchanged", order))
    for fingers in itertools.permutations(FINGERS):
        order = np.arange(len(HO3D21))
        for own, other in zip(FINGERS, fingers, strict=True):
            for k in range(1, 5):
                order[HO3D21.index(f"{own}_{k}")] = HO3D21.index(f"{other}_{k}")
        orders.append((f"fingers read as {', '.join(fingers)}", order))
    return orders


def _mean_distances(joints_m: NDArray[np.floating]) -> NDArray[np.float64]:
    """(J, J) distance of each joint to each, mean over frames; 0 without frames."""
    between = np.zeros((len(HO3D21), len(HO3D21)))
    for joint in range(len(HO3D21) if len(joints_m) else 0):
        apart = joints_m - joints_m[:, joint : joint + 1]
        between[joint] = np.linalg.norm(apart, axis=-1).mean(axis=0)
    return between
