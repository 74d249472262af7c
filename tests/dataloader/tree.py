"""Hand-made HO3D trees: a fan of 21 points as a hand, a coloured disc painted where each one projects.

Written from HO3D's format description alone, without the loader's code, so that the loader is judged by it.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dataloader.build import build_dataset
from dataloader.ho3d.split import SplitName
from dataloader.ho3d_dataset import HO3DDataset
from src.config import DatasetConfig, ModelConfig, RunConfig
from src.hand.joints import HO3D21, OPENPOSE21

FLIP = np.diag([1.0, -1.0, -1.0])
SIZE = (480, 640)
DEPTH_UNIT_M = 0.00012498664727900177
DISC_RADIUS_PX = 5
COLOURS = {
    name: tuple(int(v) for v in colour)
    for name, colour in zip(
        OPENPOSE21,
        np.array([[r, g, b] for r in (40, 140, 240) for g in (40, 140, 240) for b in (40, 140, 240)])[:21],
        strict=True,
    )
}
"""RGB of the disc of each joint; at least 100 apart in some channel."""


FAN = {
    f"{finger}_{k}": reach * np.array([np.sin(angle), np.cos(angle), 0.05 * k])
    for finger, angle in zip(
        ("thumb", "index", "middle", "ring", "pinky"), np.radians([-50, -25, 0, 25, 50]), strict=True
    )
    for k, reach in enumerate((0.07, 0.10, 0.125, 0.145), start=1)
}
"""Joints of the hand at rest relative to its wrist, metres; its fingers do not bend."""


class FanHand:
    """Stands in for the hand model: a fan of joints that the wrist's rotation and place move."""

    def __init__(self, size: float = 1.0) -> None:
        """A hand of another size is another hand."""
        self.size = size
        self.fingerprint = f"fan {size}"

    base = np.array([0.09, 0.01, 0.005])
    directions = np.linspace(-0.002, 0.002, 30).reshape(3, 10)

    def rest_root_m(self, betas: torch.Tensor) -> torch.Tensor:
        """(N, 10) -> (N, 3)."""
        return (torch.from_numpy(self.base) + betas.double() @ torch.from_numpy(self.directions.T)).to(
            betas.dtype
        )

    def joints_m(
        self,
        global_orient: torch.Tensor,
        hand_pose: torch.Tensor,
        betas: torch.Tensor,
        translation: torch.Tensor,
    ) -> torch.Tensor:
        """(N, 21, 3) OPENPOSE21."""
        rest = torch.from_numpy(np.stack([FAN.get(name, np.zeros(3)) for name in OPENPOSE21])) * self.size
        turned = rest.to(betas.dtype) @ global_orient.transpose(1, 2)
        return turned + (translation + self.rest_root_m(betas))[:, None]


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a frame was made from, OpenCV camera, metres."""

    joints: dict[str, np.ndarray]
    rotation: np.ndarray
    betas: np.ndarray
    intrinsics: np.ndarray
    fingers_aa: np.ndarray

    def array(self, order: tuple[str, ...]) -> np.ndarray:
        """(J, 3) in an order of names."""
        return np.stack([self.joints[name] for name in order])

    def pixels(self, order: tuple[str, ...]) -> np.ndarray:
        """(J, 2) projections."""
        homogeneous = self.array(order) @ self.intrinsics.T
        return homogeneous[:, :2] / homogeneous[:, 2:]


Tree = tuple[Path, dict[str, Frame]]
"""Where a tree is, and its frames by `train/SEQ/FFFF`."""


def make_frame(rng: np.random.Generator) -> Frame:
    """A fan hand somewhere in the picture."""
    local = {"wrist": np.zeros(3), **FAN}
    rotation = Rotation.from_euler("ZYX", [rng.uniform(-3, 3), *rng.uniform(-0.4, 0.4, 2)]).as_matrix()
    wrist = np.array([rng.uniform(-0.12, 0.12), rng.uniform(-0.08, 0.08), rng.uniform(0.55, 0.75)])
    intrinsics = np.array([[614.6, 0, 320.3], [0, 615.1, 241.7], [0, 0, 1]])
    joints = {name: rotation @ point + wrist for name, point in local.items()}
    return Frame(joints, rotation, rng.normal(0, 1, 10), intrinsics, rng.normal(0, 0.3, (15, 3)))


def paint(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """RGB picture and depth in units: a grey wall, and a disc at each joint's pixel and depth."""
    rgb = np.full((*SIZE, 3), 90, np.uint8)
    depth = np.full(SIZE, 0.03 + max(joint[2] for joint in frame.joints.values()))
    names = sorted(OPENPOSE21, key=lambda name: -frame.joints[name][2])
    for name in names:
        joint = frame.joints[name]
        u, v, w = frame.intrinsics @ joint
        centre = (round(u / w), round(v / w))
        cv2.circle(rgb, centre, DISC_RADIUS_PX, COLOURS[name], -1)
        cv2.circle(depth, centre, DISC_RADIUS_PX, float(joint[2]), -1)
    return rgb, np.rint(depth / DEPTH_UNIT_M).astype(np.uint16)


def write_pictures(folder: Path, frame: str, rgb: np.ndarray, depth: np.ndarray, version: str = "v3") -> None:
    """rgb and depth in HO3D's encoding; high quality jpg so that colours can be compared."""
    for kind in ("rgb", "depth", "meta"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    end = ".png" if version == "v2" else ".jpg"
    quality = [
        cv2.IMWRITE_JPEG_QUALITY,
        98,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    ok = cv2.imwrite(str(folder / "rgb" / f"{frame}{end}"), rgb[..., ::-1], quality if end == ".jpg" else [])
    packed = np.zeros((*depth.shape, 3), np.uint8)
    packed[..., 2], packed[..., 1] = depth % 256, depth // 256  # OpenCV writes B, G, R
    ok &= cv2.imwrite(str(folder / "depth" / f"{frame}.png"), packed)
    assert ok


def train_meta(frame: Frame) -> dict[str, object]:
    """Annotation of a training frame: OpenGL, HO3D order, mixed precision as in the release."""
    wrist_gl = FLIP @ frame.joints["wrist"]
    rest = FanHand.base + FanHand.directions @ frame.betas
    orient = Rotation.from_matrix(FLIP @ frame.rotation).as_rotvec()
    return {
        "camMat": frame.intrinsics.astype(np.float32),
        "handPose": np.concatenate([orient, frame.fingers_aa.ravel()]),
        "handBeta": frame.betas,
        "handTrans": (wrist_gl - rest).astype(np.float32),
        "handJoints3D": frame.array(HO3D21) @ FLIP,
        "objRot": np.zeros((3, 1)),
        "objTrans": np.zeros(3),
        "objName": "021_bleach_cleanser",
        "objLabel": 12,
    }


def evaluation_meta(frame: Frame) -> dict[str, object]:
    """Annotation of an evaluation frame: the wrist and a box, no hand parameters."""
    pixels = frame.pixels(OPENPOSE21)
    return {
        "camMat": frame.intrinsics,
        "handJoints3D": FLIP @ frame.joints["wrist"],
        "handBoundingBox": [int(v) for v in (*pixels.min(0) - 9, *pixels.max(0) + 9)],
        "objName": "021_bleach_cleanser",
    }


def write_meta(path: Path, meta: object) -> None:
    """One annotation pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump(meta, file, protocol=2)


def write_tree(
    root: Path,
    sequences: dict[str, int] | None = None,
    evaluation: dict[str, int] | None = None,
    *,
    truth: bool = True,
    version: str = "v3",
    seed: int = 0,
) -> dict[str, Frame]:
    """A whole tree; frame numbers have gaps of two. Returns the frames by `train/SEQ/FFFF`."""
    rng = np.random.default_rng(seed)
    made: dict[str, Frame] = {}
    lists = {
        "train": {"ABF10": 3, "ABF11": 3} if sequences is None else sequences,
        "evaluation": evaluation or {},
    }
    for name, wanted in lists.items():
        lines = []
        for sequence, count in wanted.items():
            for k in range(count):
                frame, number = make_frame(rng), f"{2 * k + 1:04d}"
                write_pictures(root / name / sequence, number, *paint(frame), version)
                meta = train_meta(frame) if name == "train" else evaluation_meta(frame)
                write_meta(root / name / sequence / "meta" / f"{number}.pkl", meta)
                lines.append(f"{sequence}/{number}")
                made[f"{name}/{sequence}/{number}"] = frame
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    if evaluation and truth:
        rows = [
            (frame.array(HO3D21) @ FLIP).tolist()
            for key, frame in made.items()
            if key.startswith("evaluation/")
        ]
        (root / "evaluation_xyz.json").write_text(json.dumps(rows))
    return made


def run_config(root: Path, *, image_size: tuple[int, int] = (128, 96), **sections: object) -> RunConfig:
    """A configuration that reads `root`; `dataset=dict(...)` and the like replace fields of a section."""
    config = RunConfig(
        dataset=DatasetConfig(root_dir=root, num_workers=0),
        model=ModelConfig(image_size=image_size),
    )
    for name, fields in sections.items():
        assert isinstance(fields, dict)
        config = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **fields)})
    return config


def dataset_of(config: RunConfig, split: SplitName = "train", hand: object = None) -> HO3DDataset:
    """The dataset of a split, its labels checked with the fan hand."""
    return build_dataset(config, split, hand or FanHand(), show_progress=False)  # type: ignore[arg-type]
