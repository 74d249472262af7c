"""The worlds that a data set can be drawn from: `table`, as HO3D films it, and `wide`, as people will bring it.

| | table | wide |
|---|---|---|
| cameras | behind the person, 0.54-0.80 m, focal length 605-625 px | any side and elevation above the table, a third worn on the head, 0.25-1.2 m, 380-950 px |
| hand | right, over a table, two in five without contact | any orientation, up to 0.9 m above it, half of them as low as hand and forearm allow, half without contact, fingers that bend each on its own |
| flesh | the hand model's | and a web between thumb and index finger |
| behind it | a table, a wall at 1.2 m or more | and in half of the rooms something that begins within 12 cm |
| light | from the picture's upper border | from above |
| time | every frame of 30 a second | every 16th, the forearm turns three times as far |
| worn | sleeves | and watches, bands, rings, tape, gloves |
| pictures | one clean camera | exposure, white balance, smear, coarser pixels, grain, JPEG of 45-95 |
| depth | stereo, steps of 1 mm | and time of flight, steps of 0.125-1 mm, 3-15 % holes, up to 3 px beside the colours, a third in register |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dataloader.synthetic.motion.motion import Habits, Motion, make_motion
from dataloader.synthetic.motion.rig import Rig
from dataloader.synthetic.scene.appearance import Person
from dataloader.synthetic.scene.cameras import Camera, cameras_anywhere, cameras_around
from dataloader.synthetic.scene.look import Look
from dataloader.synthetic.scene.stage import Stage
from dataloader.synthetic.scene.wide import WideLook, dressed


@dataclass(frozen=True)
class Domain:
    """How motions are drawn, who films them, and what that looks like."""

    habits: Habits
    cameras: Callable[[int, Motion, int], list[Camera]]
    """Of (seed, motion, count)."""
    person: Callable[[int, Motion], Person]
    """Of (seed, motion)."""
    look: Callable[[int, Motion, Camera, int], Look]
    """Of (seed, motion, camera, its number)."""

    def motion(self, rig: Rig, seed: int, number: int, frames: int, pace: int | None = None) -> Motion:
        """Motion `number` of the data set `seed`; `pace` as in `Habits`, None: theirs."""
        habits = self.habits if pace is None else dataclasses.replace(self.habits, pace=pace)
        return make_motion(rig, habits, seed, number, frames)

    def stages(self, rig: Rig, motion: Motion, cameras: Sequence[Camera], seed: int) -> Iterator[Stage]:
        """What draws the frames of a motion's cameras, one after the other."""
        person = self.person(seed, motion)
        for digit, camera in enumerate(cameras):
            yield Stage(rig, motion, person, camera, self.look(seed, motion, camera, digit), seed, digit)


DOMAINS = {
    "table": Domain(
        Habits(
            gestures=0.4,
            free_gestures=0.0,
            height_m=(0.17, 0.30),
            near_table=0.0,
            turn_mean_deg=(20.0, 4.0, 50.0),
            turn_between_deg=(20.0, 16.0, 30.0),
            turn_within_deg=(9.0, 9.0, 15.0),
            turn_low_deg=(-50.0, -22.0, -45.0),
            turn_high_deg=(95.0, 60.0, 165.0),
            object_size=(1.0, 1.0),
            pace=1,
        ),
        cameras_around,
        Person.of,
        Look,
    ),
    "wide": Domain(
        Habits(
            gestures=0.5,
            free_gestures=0.5,
            height_m=(0.19, 0.9),
            near_table=0.5,
            turn_mean_deg=(10.0, 10.0, 50.0),
            turn_between_deg=(60.0, 35.0, 80.0),
            turn_within_deg=(27.0, 27.0, 45.0),
            turn_low_deg=(-180.0, -75.0, -180.0),
            turn_high_deg=(180.0, 85.0, 230.0),
            object_size=(0.6, 1.4),
            pace=16,
        ),
        cameras_anywhere,
        dressed,
        WideLook,
    ),
}
"""Name of `--domain` -> the world."""
