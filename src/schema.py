"""What flows between the rooms: frozen dataclasses with shape, unit and frame of every field.

Legend: B batch, J 21 joints in `OPENPOSE21` order, V 778 vertices, H W crop size in pixels.

Frames. There are two cameras, both OpenCV (x right, y down, z forward), with the same optical centre:
the *image camera*, which took the picture (intrinsics `intrinsics_img_px`), and the *crop camera*, a virtual
camera turned so that the crop's centre lies on its optical axis, rolled and zoomed (`intrinsics_crop_px`).
`rot_crop_from_img` turns a point of the image camera into the crop camera. Fields named `*_cam_m` of
samples, batches and predictions are in the **crop camera**: what the network sees is how it is labelled.
Predictions are turned back into the image camera before anything is reported or written.
Units: metres, pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BatchT = TypeVar("BatchT", "RawBatch", "HandBatch")

Shown = Literal["rgbd", "rgb"]
"""How a validation shows samples to the network: with their depth, or without."""

DEPTH_UNIT_M = 0.00012498664727900177
"""Metres per unit of HO3D's 16-bit depth."""

DEPTH_RANGE_M = 0.15
"""Half range of the network's depth input: depth = (d - z_ref) / DEPTH_RANGE_M."""

DEPTH_CLIP = 1.5
"""Depth input is clipped to [-DEPTH_CLIP, DEPTH_CLIP]."""


@dataclass(frozen=True)
class RawSample:
    """One sample as a worker hands it over: integers for pixels, labels already in the crop camera.

    In a `RawBatch` each field carries a leading axis B and is a torch tensor.
    """

    sample_index: NDArray[np.int64]
    """() row of the dataset's split."""
    rgb_u8: NDArray[np.uint8]
    """(H, W, 3) RGB crop, occluders painted, colour not yet jittered."""
    depth_u16: NDArray[np.uint16]
    """(H, W) z of the *image camera* in units of DEPTH_UNIT_M at crop pixels.

    0 where missing or not shown.
    """
    depth_present: NDArray[np.bool_]
    """() this sample's depth is shown to the network."""
    z_ref_m: NDArray[np.float32]
    """() reference depth along the crop camera's axis, from inputs only."""
    colour_affine: NDArray[np.float32]
    """(3, 4) rgb' = clip(A [r, g, b, 1]) on values in [0, 1]; [I | 0] without augmentation."""
    intrinsics_img_px: NDArray[np.float32]
    """(3, 3) K of the picture."""
    intrinsics_crop_px: NDArray[np.float32]
    """(3, 3) K of the crop camera."""
    crop_from_img: NDArray[np.float32]
    """(3, 3) homography, crop pixel ~ H image pixel; = K_crop rot_crop_from_img K_img^-1."""
    rot_crop_from_img: NDArray[np.float32]
    """(3, 3) rotation of the image camera into the crop camera."""
    joints_cam_m: NDArray[np.float32]
    """(J, 3) labelled joints, crop camera."""
    joints_conf: NDArray[np.float32]
    """(J,) weight of a joint in losses and metrics; 0 = the label does not exist."""
    root_cam_m: NDArray[np.float32]
    """(3,) wrist = hand translation + J0(betas), never read from the joints, crop camera."""
    translation_m: NDArray[np.float32]
    """(3,) MANO translation in the crop camera, root_cam_m - J0(betas)."""
    global_orient: NDArray[np.float32]
    """(3, 3) wrist rotation, crop camera."""
    hand_pose: NDArray[np.float32]
    """(15, 3, 3) local rotations in MANO16 order."""
    betas: NDArray[np.float32]
    """(10,) shape."""
    mano_valid: NDArray[np.bool_]
    """() the annotation holds MANO parameters (false on HO3D's evaluation split)."""


@dataclass(frozen=True)
class RawBatch:
    """`RawSample`s stacked along B as torch tensors."""

    sample_index: Tensor
    rgb_u8: Tensor
    depth_u16: Tensor
    depth_present: Tensor
    z_ref_m: Tensor
    colour_affine: Tensor
    intrinsics_img_px: Tensor
    intrinsics_crop_px: Tensor
    crop_from_img: Tensor
    rot_crop_from_img: Tensor
    joints_cam_m: Tensor
    joints_conf: Tensor
    root_cam_m: Tensor
    translation_m: Tensor
    global_orient: Tensor
    hand_pose: Tensor
    betas: Tensor
    mano_valid: Tensor

    def to(self, device: torch.device, *, non_blocking: bool = False) -> RawBatch:
        """The same batch on `device`."""
        return _map(self, lambda t: t.to(device, non_blocking=non_blocking))


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Labels without pictures: what baselines and reports are made of.

    **Image camera**, OpenCV axes, metres, numpy, float32; N rows.
    """

    joints_cam_m: NDArray[np.float32]
    """(N, J, 3) OPENPOSE21; the wrist's position where a joint has no label."""
    joints_conf: NDArray[np.float32]
    """(N, J) 1 where labelled, else 0."""
    global_orient: NDArray[np.float32]
    """(N, 3, 3) wrist rotation; identity where mano_valid is false."""
    hand_pose: NDArray[np.float32]
    """(N, 15, 3, 3) local rotations, MANO16 order; identity where mano_valid is false."""
    betas: NDArray[np.float32]
    """(N, 10) shape; zero where mano_valid is false."""
    mano_valid: NDArray[np.bool_]
    """(N,) the annotation holds MANO parameters."""


@dataclass(frozen=True)
class HandSample:
    """One sample as the network sees it, float32 CPU tensors; `HandBatch` has a leading B in each field."""

    sample_index: Tensor
    """() int64, row of the dataset's split."""
    rgb: Tensor
    """(3, H, W) ImageNet-normalised crop."""
    depth: Tensor
    """(1, H, W) (z - z_ref_m) / DEPTH_RANGE_M, z along the crop camera's axis, clipped; 0 where invalid."""
    depth_valid: Tensor
    """(1, H, W) 1 where depth was measured and is shown, else 0."""
    depth_present: Tensor
    """() bool, this sample's depth is shown to the network."""
    z_ref_m: Tensor
    """() reference depth, crop camera, from inputs only."""
    intrinsics_img_px: Tensor
    """(3, 3) K of the picture."""
    intrinsics_crop_px: Tensor
    """(3, 3) K of the crop camera."""
    crop_from_img: Tensor
    """(3, 3) homography from image pixels to crop pixels."""
    rot_crop_from_img: Tensor
    """(3, 3) rotation of the image camera into the crop camera."""
    joints_cam_m: Tensor
    """(J, 3) labelled joints, crop camera."""
    joints_root_m: Tensor
    """(J, 3) joints_cam_m minus its wrist."""
    joints_crop_px: Tensor
    """(J, 2) projections with intrinsics_crop_px."""
    joints_unit: Tensor
    """(J, 2) joints_crop_px / (W, H) - 0.5: the crop is [-0.5, 0.5]."""
    joints_conf: Tensor
    """(J,) weight; 0 = the label does not exist."""
    root_cam_m: Tensor
    """(3,) wrist by the independent path, crop camera."""
    translation_m: Tensor
    """(3,) MANO translation, crop camera."""
    global_orient: Tensor
    """(3, 3) wrist rotation, crop camera."""
    hand_pose: Tensor
    """(15, 3, 3) local rotations, MANO16 order."""
    betas: Tensor
    """(10,) shape."""
    mano_valid: Tensor
    """() bool, MANO parameters exist."""


@dataclass(frozen=True)
class HandBatch(HandSample):
    """Samples stacked: each field of `HandSample` with a leading axis B, all on one device."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> HandBatch:
        """The same batch on `device`."""
        return _map(self, lambda t: t.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell a GPU's allocator that `stream` reads this batch, which was made on another one."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).record_stream(stream)

    def row(self, i: int) -> HandSample:
        """Sample `i` of the batch."""
        return HandSample(**{f.name: getattr(self, f.name)[i] for f in dataclasses.fields(HandSample)})

    def without_depth(self) -> HandBatch:
        """The same batch with depth hidden (depth, its mask and its flag zeroed; z_ref_m is kept)."""
        return dataclasses.replace(
            self,
            depth=torch.zeros_like(self.depth),
            depth_valid=torch.zeros_like(self.depth_valid),
            depth_present=torch.zeros_like(self.depth_present),
        )

    def to_image_camera(self, points_m: Tensor) -> Tensor:
        """Turn points of the crop camera, (B, N, 3), back into the image camera; the unit is kept."""
        # Rows times R are columns times R^T, the inverse rotation.
        return points_m @ self.rot_crop_from_img.to(points_m.dtype)

    @property
    def size(self) -> int:
        """B."""
        return int(self.rgb.shape[0])


@dataclass(frozen=True)
class HandEstimate:
    """One complete hand: parameters and what they decode to, crop camera, float32."""

    global_orient: Tensor
    """(B, 3, 3)."""
    hand_pose: Tensor
    """(B, 15, 3, 3) MANO16 order."""
    betas: Tensor
    """(B, 10)."""
    root_cam_m: Tensor
    """(B, 3) wrist."""
    joints_root_m: Tensor
    """(B, J, 3) wrist-relative."""
    vertices_root_m: Tensor
    """(B, V, 3) wrist-relative."""

    @property
    def joints_cam_m(self) -> Tensor:
        """(B, J, 3) crop camera."""
        return self.joints_root_m + self.root_cam_m[:, None]

    @property
    def vertices_cam_m(self) -> Tensor:
        """(B, V, 3) crop camera."""
        return self.vertices_root_m + self.root_cam_m[:, None]


@dataclass(frozen=True)
class Prediction:
    """What the network says about a batch."""

    hand: HandEstimate
    """The refined hand: the answer."""
    coarse: HandEstimate
    """The hand before refinement; supervised with its own weight."""
    vote_joints_root_m: Tensor
    """(B, J, 3) joints from dense votes, wrist-relative, crop camera."""
    vote_joints_unit: Tensor
    """(B, J, 2) the votes' mean place in the picture, crop = [-0.5, 0.5]."""
    vote_logits: Tensor
    """(B, J, h, w) votes over the crop before the softmax; cells divide the crop evenly."""


# DDP and torch.export look into registered dataclasses alone. In another one DDP finds no tensor, and leaves
# every rank with gradients of its own, without a word.
torch.export.register_dataclass(HandEstimate)
torch.export.register_dataclass(Prediction)


@dataclass(frozen=True)
class LossTerms:
    """A scalar to minimise and what it is made of."""

    total: Tensor
    """() sum of weight x value."""
    values: Mapping[str, Tensor]
    """name -> () unweighted value, each of order 1 at the start of training."""
    weights: Mapping[str, float]
    """name -> weight; a term with weight 0 is not computed and not listed."""


@dataclass(frozen=True)
class EvalResult:
    """Scores of one validation over every sample exactly once; equal on every rank."""

    num_samples: int
    """N scored rows."""
    mpjpe_mm: float
    """Mean over samples of the wrist-relative joint error; nan if a prediction is not finite."""
    pa_mpjpe_mm: float
    """The same after the best similarity with det R = +1."""
    loss: float
    """Mean over samples of the per-sample loss."""
    nonfinite_count: int
    """Predictions that hold a non-finite number."""
    nonfinite_indices: tuple[int, ...]
    """The first of them (at most 10), as sample indices."""
    unusable_labels: int
    """Samples whose ground truth is incomplete; counted, never scored."""
    baselines: Mapping[str, float]
    """`zero_mpjpe_mm`, `zero_pa_mm`, `mean_pose_mpjpe_mm`, `mean_pose_pa_mm`, `nearest_pose_pa_mm` of this
    very split."""
    columns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Means of the per-sample numbers computed on the ranks (`mpvpe_mm`, `pa_mpvpe_mm`, ...) over rows with a
    label, nan if a prediction is not finite; `mesh_usable` is not a mean: how many meshes are labelled."""


def _map(batch: BatchT, function: Callable[[Tensor], Tensor]) -> BatchT:
    """Apply `function` to every tensor of a dataclass of tensors."""
    return type(batch)(**{f.name: function(getattr(batch, f.name)) for f in dataclasses.fields(batch)})
