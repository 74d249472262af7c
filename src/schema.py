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
from string import digits
from typing import Any, Generic, Literal, Self, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

ArrayT = TypeVar("ArrayT", Tensor, NDArray[Any])

Shown = Literal["rgbd", "rgb"]
"""How a validation shows samples to the network: with their depth, or without."""

DEPTH_UNIT_M = 0.00012498664727900177
"""Metres per unit of HO3D's 16-bit depth."""

DEPTH_RANGE_M = 0.15
"""Half range of the network's depth input: depth = (d - z_ref) / DEPTH_RANGE_M."""

DEPTH_CLIP = 1.5
"""Depth input is clipped to [-DEPTH_CLIP, DEPTH_CLIP]."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""RGB mean that pretrained backbones expect, values in [0, 1]."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""RGB standard deviation likewise."""


def motion_of(sequence: str) -> str:
    """Name of what is held out, and drawn, as a whole: a sequence's name without its last digit.

    In HO3D that digit is the camera (ABF10 ... ABF14 -> ABF1) or, of names with one digit, the take that one
    person made with one object (MC1 ... MC6 -> MC). A folder before the name stays.
    """
    folder, slash, name = sequence.rpartition("/")
    return folder + slash + (name[:-1] if len(name) > 1 and name[-1] in digits else name)


_ALIGN = 64
"""Bytes at whose multiples the fields of a packed record begin; every dtype may be viewed there."""


class Record:
    """A frozen dataclass of arrays with one leading axis: rows, devices and transport, written once."""

    def fields(self) -> dict[str, Any]:
        """Arrays by name, in the order of declaration."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def map(self, function: Callable[[Any], Any]) -> Self:
        """The same record with `function` applied to every array."""
        return type(self)(**{name: function(array) for name, array in self.fields().items()})

    def pack(self, *, shared: bool) -> Packed[Self]:
        """Copy CPU tensors into one block of bytes.

        Args:
            shared: into memory that other processes can map, so that handing it over copies nothing more.
        """
        places, end = [], 0
        for name, tensor in self.fields().items():
            places.append((name, tensor.dtype, tuple(tensor.shape), end))
            end += -(-tensor.nbytes // _ALIGN) * _ALIGN
        block = torch.empty(end, dtype=torch.uint8)
        if shared:
            block.share_memory_()  # type: ignore[no-untyped-call]
        packed = Packed(type(self), block, tuple(places))
        for name, view in packed.views().items():
            view.copy_(getattr(self, name))
        return packed


RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True)
class Packed(Generic[RecordT]):
    """A record as one block: what crosses from a loader process, and on to a GPU, in one piece.

    Each tensor that crosses a process costs a file descriptor and a mapping, each that goes to a GPU a
    transfer of its own: for eighteen small fields that takes longer than the pixels.
    """

    kind: type[RecordT]
    block: Tensor
    """(bytes,) uint8."""
    places: tuple[tuple[str, torch.dtype, tuple[int, ...], int], ...]
    """Name, dtype, shape and first byte of each field."""

    def pin_memory(self) -> Packed[RecordT]:
        """The same in page-locked memory (the DataLoader calls this by name)."""
        return dataclasses.replace(self, block=self.block.pin_memory())

    def unpack(self, device: torch.device) -> RecordT:
        """The record on `device`, its fields views of one block there; a GPU is not waited for."""
        there = dataclasses.replace(self, block=self.block.to(device, non_blocking=True))
        return self.kind(**there.views())

    def views(self) -> dict[str, Tensor]:
        """Fields by name, sharing the block's memory."""
        found = {}
        for name, dtype, shape, start in self.places:
            count = dtype.itemsize * torch.Size(shape).numel()
            found[name] = self.block[start : start + count].view(dtype).view(shape)
        return found


@dataclass(frozen=True, eq=False)
class HandLabels(Record, Generic[ArrayT]):
    """What is known of B hands: tensors in the crop camera of a batch, numpy arrays in the image camera of
    `dataloader.ho3d.labels.Labels`. OpenCV axes, metres, float32.
    """

    joints_cam_m: ArrayT
    """(B, J, 3) labelled joints; the wrist's position where a joint has no label."""
    joints_conf: ArrayT
    """(B, J) weight of a joint in losses and metrics; 0 = the label does not exist."""
    root_cam_m: ArrayT
    """(B, 3) wrist = hand translation + J0(betas), never read from the joints where there are parameters."""
    translation_m: ArrayT
    """(B, 3) MANO translation in this camera, root_cam_m - J0(betas)."""
    global_orient: ArrayT
    """(B, 3, 3) wrist rotation; identity where mano_valid is false."""
    hand_pose: ArrayT
    """(B, 15, 3, 3) local rotations in MANO16 order; identity where mano_valid is false."""
    betas: ArrayT
    """(B, 10) shape; zero where mano_valid is false."""
    mano_valid: ArrayT
    """(B,) bool, the annotation holds MANO parameters (false on HO3D's evaluation split)."""


LabelTable = HandLabels[NDArray[Any]]
"""Labels without pictures, image camera: what baselines and reports are made of."""


@dataclass(frozen=True, eq=False)
class CropView(Record):
    """From where B crops look: tensors, float32."""

    intrinsics_crop_px: Tensor
    """(B, 3, 3) K of the crop camera."""
    rot_crop_from_img: Tensor
    """(B, 3, 3) rotation of the image camera into the crop camera."""
    z_ref_m: Tensor
    """(B,) reference depth along the crop camera's axis, from inputs only."""
    depth_present: Tensor
    """(B,) bool, this sample's depth is shown to the network."""

    def to_image_camera(self, points_m: Tensor) -> Tensor:
        """Turn points of the crop camera, (B, N, 3), back into the image camera; the unit is kept."""
        # Rows times R are columns times R^T, the inverse rotation.
        return points_m @ self.rot_crop_from_img.to(points_m.dtype)


@dataclass(frozen=True, eq=False)
class PictureView(CropView):
    """Crops with the pictures that they are cut from."""

    intrinsics_img_px: Tensor
    """(B, 3, 3) K of the picture."""
    crop_from_img: Tensor
    """(B, 3, 3) homography, crop pixel ~ H image pixel; = K_crop rot_crop_from_img K_img^-1."""


@dataclass(frozen=True, eq=False)
class NetworkInput(CropView):
    """All that the network reads of B crops."""

    rgb: Tensor
    """(B, 3, H, W) ImageNet-normalised crop."""
    depth: Tensor
    """(B, 1, H, W) (z - z_ref_m) / DEPTH_RANGE_M along the crop camera's axis, clipped; 0 where invalid."""
    depth_valid: Tensor
    """(B, 1, H, W) 1 where depth was measured and is shown, else 0."""


@dataclass(frozen=True, eq=False)
class RawBatch(PictureView, HandLabels[Tensor]):
    """B samples as a loader process hands them over: integers for pixels, labels in the crop camera."""

    sample_index: Tensor
    """(B,) int64, row of the dataset's split."""
    rgb_u8: Tensor
    """(B, H, W, 3) RGB crop, occluders painted, colour not yet jittered."""
    depth_u16: Tensor
    """(B, H, W) z of the *image camera* in units of DEPTH_UNIT_M at crop pixels.

    0 where missing or hidden.
    """
    colour_affine: Tensor
    """(B, 3, 4) rgb' = clip(A [r, g, b, 1]) on values in [0, 1]; [I | 0] without augmentation."""


@dataclass(frozen=True, eq=False)
class HandSample(NetworkInput, PictureView, HandLabels[Tensor]):
    """One sample as the network sees it: each field of `HandBatch` without its leading axis."""

    sample_index: Tensor
    """(B,) int64, row of the dataset's split."""
    joints_root_m: Tensor
    """(B, J, 3) joints_cam_m minus its wrist."""
    joints_crop_px: Tensor
    """(B, J, 2) projections with intrinsics_crop_px."""
    joints_unit: Tensor
    """(B, J, 2) joints_crop_px / (W, H) - 0.5: the crop is [-0.5, 0.5]."""


@dataclass(frozen=True, eq=False)
class HandBatch(HandSample):
    """B samples as the network sees them, all on one device."""

    def row(self, i: int) -> HandSample:
        """Sample `i` of the batch."""
        return HandSample(**{name: tensor[i] for name, tensor in self.fields().items()})

    def without_depth(self) -> HandBatch:
        """The same batch with depth hidden (depth, its mask and its flag zeroed; z_ref_m is kept)."""
        return dataclasses.replace(
            self,
            depth=torch.zeros_like(self.depth),
            depth_valid=torch.zeros_like(self.depth_valid),
            depth_present=torch.zeros_like(self.depth_present),
        )

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
