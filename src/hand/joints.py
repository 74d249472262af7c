"""Joint orders as named tuples; permutations are computed from names and written nowhere else.

`OPENPOSE21` is the order inside UTNet. HO3D's 21 joints are MANO's 16 followed by the five tips.
Names are `<finger>_<k>`: k = 1 knuckle (metacarpophalangeal; the thumb's carpometacarpal), 2, 3, 4 = tip.
Source: HO3D's `vis_utils.py` (order of handJoints3D), MANO's kintree_table.
"""

from __future__ import annotations

from src.errors import ShapeError

FINGERS = ("thumb", "index", "middle", "ring", "pinky")


def _chain(finger: str, last: int) -> tuple[str, ...]:
    return tuple(f"{finger}_{k}" for k in range(1, last + 1))


OPENPOSE21: tuple[str, ...] = ("wrist", *(name for finger in FINGERS for name in _chain(finger, 4)))
"""wrist, thumb 1-4, index 1-4, middle 1-4, ring 1-4, pinky 1-4 (last = tip)."""

MANO16: tuple[str, ...] = (
    "wrist",
    *(name for finger in ("index", "middle", "pinky", "ring", "thumb") for name in _chain(finger, 3)),
)
"""Joints of MANO's kinematic tree; `hand_pose` holds the last 15."""

HO3D21: tuple[str, ...] = (*MANO16, *(f"{finger}_4" for finger in FINGERS))
"""Order of handJoints3D and of a submission."""

TIP_VERTICES: dict[str, int] = {
    "thumb_4": 744,
    "index_4": 333,
    "middle_4": 444,
    "ring_4": 555,
    "pinky_4": 672,
}
"""Mesh vertices that are the tips on HO3D."""

MANO_PARENTS: tuple[int, ...] = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
"""Parent of each MANO16 joint; -1 for the wrist."""

OPENPOSE_BONES: tuple[tuple[int, int], ...] = tuple(
    (0 if k == 1 else OPENPOSE21.index(f"{finger}_{k - 1}"), OPENPOSE21.index(f"{finger}_{k}"))
    for finger in FINGERS
    for k in range(1, 5)
)
"""(parent, child) of the 20 bones in OPENPOSE21 indices."""


def permutation(from_order: tuple[str, ...], to_order: tuple[str, ...]) -> tuple[int, ...]:
    """Indices that reorder joints: `x[..., permutation(a, b), :]` is in order `b` when `x` is in order `a`.

    Args:
        from_order: names in the order at hand, each once.
        to_order: names wanted, each once; a subset of `from_order` is allowed.

    Raises:
        ShapeError: a name is repeated, or `to_order` asks for one that `from_order` lacks.
    """
    for order in (from_order, to_order):
        if len(set(order)) != len(order):
            raise ShapeError(f"joint order {order} repeats a name")
    missing = [name for name in to_order if name not in from_order]
    if missing:
        raise ShapeError(f"joints {missing} are not in the source order {from_order}")
    return tuple(from_order.index(name) for name in to_order)
