"""The hand layer: MANO's rest shape, pose correctives and skinning, from rotation matrices only.

Legend: B batch, J 21 joints (`OPENPOSE21`), K 16 joints of the tree (`MANO16`), V 778 vertices. Unit: metres.
Frame: whatever frame `global_orient` and `translation_m` are given in (inside UTNet, the crop camera).

Conventions. wrist = translation_m + J0(betas): the global rotation turns the hand about its own wrist,
which is *not* the origin of the rest frame. Fingertips are mesh vertices. There is no mean pose in here
(`flat_hand_mean` is true on HO3D): a caller whose poses are offsets from `hands_mean` adds it before.

Source: Romero, Tzionas and Black 2017 (MANO), Loper et al. 2015 (SMPL), equations 1-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from src.errors import ShapeError
from src.hand.joints import FINGERS, HO3D21, MANO16, OPENPOSE21, TIP_VERTICES, permutation
from src.hand.mano_assets import HandAsset, load_hand_asset

_CHAINS, _LINKS = 5, 3


@dataclass(frozen=True)
class ManoOutput:
    """A posed hand."""

    vertices_m: Tensor
    """(B, V, 3) metres, frame of the inputs."""
    joints_m: Tensor
    """(B, J, 3) metres, frame of the inputs, OPENPOSE21 order; joint 0 is the wrist."""


class ManoLayer(nn.Module):
    """Differentiable hand model without parameters.

    Its arrays are buffers that never enter a state dict: a checkpoint must not carry MANO's licensed data.
    What a checkpoint keeps instead is `fingerprint`.
    """

    v_template: Tensor
    """(3V,) coordinate-major rest vertices, m."""
    directions: Tensor
    """(10 + 135, 3V) shape and pose directions, coordinate-major, m."""
    joints_template: Tensor
    """(3K,) rest joints, m."""
    joints_shapedirs: Tensor
    """(10, 3K) rest joints per unit of beta, m."""
    skinning: Tensor
    """(K, V) weights."""
    lbs_weights: Tensor
    """(V, K) the same weights, as MANO has them."""
    faces: Tensor
    """(F, 3) int64 vertex numbers, counter-clockwise seen from outside."""
    hands_mean: Tensor
    """(45,) axis-angle mean pose."""
    tip_vertices: Tensor
    """(5,) int64, thumb to pinky."""
    openpose_from_ho3d: Tensor
    """(J,) int64 permutation."""
    identity: Tensor
    """(3, 3)."""

    def __init__(self, asset: HandAsset) -> None:
        """Keep the arrays of `asset` in the layout that is fastest to use."""
        super().__init__()
        self.fingerprint: str = asset.fingerprint
        """Which hand model this is; goes into checkpoints."""
        self.is_standin: bool = asset.is_standin
        """Whether it is the procedural hand."""
        count = asset.v_template.shape[0]
        shape = asset.shapedirs.transpose(2, 1, 0).reshape(10, 3 * count)
        pose = asset.posedirs.transpose(2, 1, 0).reshape(135, 3 * count)
        joints_shape = np.einsum("kv,vcs->skc", asset.joint_regressor, asset.shapedirs)
        self._keep("v_template", asset.v_template.T.reshape(-1))
        self._keep("directions", np.concatenate([shape, pose]))
        self._keep("joints_template", (asset.joint_regressor @ asset.v_template).reshape(-1))
        self._keep("joints_shapedirs", joints_shape.reshape(10, -1))
        self._keep("skinning", asset.lbs_weights.T)
        self._keep("lbs_weights", asset.lbs_weights)
        self._keep("hands_mean", asset.hands_mean)
        self._keep("identity", np.eye(3))
        self._keep("faces", asset.faces, torch.int64)
        tips = [TIP_VERTICES[f"{finger}_4"] for finger in FINGERS]
        self._keep("tip_vertices", np.array(tips), torch.int64)
        self._keep("openpose_from_ho3d", np.array(permutation(HO3D21, OPENPOSE21)), torch.int64)

    def _keep(self, name: str, value: NDArray[np.generic], dtype: torch.dtype = torch.float32) -> None:
        tensor = torch.from_numpy(np.ascontiguousarray(value)).to(dtype)
        self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def from_file(cls, path: Path | str) -> ManoLayer:
        """Layer of the model file at `path`; raises AssetError as `load_hand_asset` does."""
        return cls(load_hand_asset(path))

    @classmethod
    def from_asset(cls, asset: HandAsset) -> ManoLayer:
        """Layer of arrays at hand."""
        return cls(asset)

    def forward(
        self, global_orient: Tensor, hand_pose: Tensor, betas: Tensor, translation_m: Tensor
    ) -> ManoOutput:
        """Pose the hand.

        Computed in float32 whatever autocast says, in float64 when an input is float64.

        Args:
            global_orient: (B, 3, 3) wrist rotation.
            hand_pose: (B, 15, 3, 3) local rotations in MANO16 order, in the model's rest frame.
            betas: (B, 10) shape.
            translation_m: (B, 3) metres; the wrist ends at translation_m + J0(betas).

        Returns:
            ManoOutput.

        Raises:
            ShapeError: a shape is not the documented one.
        """
        inputs = _checked(global_orient, hand_pose, betas, translation_m)
        vertices, joints = self._pose(*inputs, (self.v_template, self.directions, self.skinning))
        tips = vertices.index_select(1, self.tip_vertices)
        return ManoOutput(vertices.contiguous(), self._named(joints, tips))

    def joints_m(
        self, global_orient: Tensor, hand_pose: Tensor, betas: Tensor, translation_m: Tensor
    ) -> Tensor:
        """`forward`'s joints without its mesh, of which only the five tips are posed.

        Args:
            global_orient, hand_pose, betas, translation_m: as `forward`.

        Returns:
            (B, J, 3) metres, frame of the inputs, OPENPOSE21 order.

        Raises:
            ShapeError: as `forward`.
        """
        inputs = _checked(global_orient, hand_pose, betas, translation_m)
        arrays = self._of_tips(self.v_template), self._of_tips(self.directions)
        tips, joints = self._pose(*inputs, (*arrays, self.skinning.index_select(1, self.tip_vertices)))
        return self._named(joints, tips)

    def _of_tips(self, of_vertices: Tensor) -> Tensor:
        """The tips' columns of a (..., 3V) coordinate-major array, (..., 15)."""
        columns = of_vertices.view(*of_vertices.shape[:-1], 3, self.skinning.shape[1])
        return columns.index_select(-1, self.tip_vertices).flatten(-2)

    def _named(self, joints: Tensor, tips: Tensor) -> Tensor:
        """(B, K, 3) joints of the tree and (B, 5, 3) tips -> (B, J, 3) OPENPOSE21."""
        return torch.cat([joints, tips], dim=1).index_select(1, self.openpose_from_ho3d)

    def _pose(
        self,
        root: Tensor,
        pose: Tensor,
        betas: Tensor,
        translation: Tensor,
        arrays: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Some vertices (B, v, 3) and the joints of the tree (B, K, 3), everything in one dtype.

        The vertices are those of `arrays`: (3v,) at rest, (145, 3v) directions, (K, v) skinning weights.
        """
        with torch.autocast(device_type=betas.device.type, enabled=False):
            batch, dtype = betas.shape[0], betas.dtype
            template, directions, skinning = (array.to(dtype) for array in arrays)
            count = skinning.shape[1]
            features = torch.cat([betas, (pose - self.identity.to(dtype)).reshape(batch, 135)], dim=1)
            rest = torch.addmm(template, features, directions).view(batch, 1, 3, count)
            rest_joints = self._rest_joints(betas)
            rotations, joints = _forward_kinematics(root, pose, rest_joints)
            # x -> R x + (joint - R rest_joint), blended per vertex with the skinning weights by one product.
            offset = joints - (rotations @ rest_joints[..., None])[..., 0]
            rows = torch.cat([rotations, offset[..., None]], dim=-1).permute(0, 2, 3, 1)
            blended = (rows.reshape(batch * 12, 16) @ skinning).view(batch, 3, 4, count)
            vertices = (blended[:, :, :3] * rest).sum(2) + blended[:, :, 3] + translation[..., None]
            return vertices.transpose(1, 2), joints + translation[:, None]

    def rest_root_m(self, betas: Tensor) -> Tensor:
        """J0(betas): the wrist of the rest pose.

        Args:
            betas: (B, 10).

        Returns:
            (B, 3) m, rest frame; wrist = translation_m + this.
        """
        if betas.ndim != 2 or betas.shape[1] != 10:
            raise ShapeError(f"betas: got {tuple(betas.shape)}, want (B, 10)")
        with torch.autocast(device_type=betas.device.type, enabled=False):
            return self._rest_joints(betas if betas.dtype == torch.float64 else betas.float())[:, 0]

    def _rest_joints(self, betas: Tensor) -> Tensor:
        """(B, K, 3) rest joints; linear in betas, so the mesh is not needed."""
        template, directions = self.joints_template.to(betas.dtype), self.joints_shapedirs.to(betas.dtype)
        return torch.addmm(template, betas, directions).view(betas.shape[0], len(MANO16), 3)


def _forward_kinematics(root: Tensor, pose: Tensor, rest_joints: Tensor) -> tuple[Tensor, Tensor]:
    """Global rotations (B, K, 3, 3) and joints (B, K, 3); five fingers at once, one link after the other.

    MANO16 lists the wrist and then five chains of three, so a reshape separates fingers and links.
    """
    batch = root.shape[0]
    local = pose.reshape(batch, _CHAINS, _LINKS, 3, 3)
    wrist, chains = rest_joints[:, :1], rest_joints[:, 1:].reshape(batch, _CHAINS, _LINKS, 3)
    bones = torch.cat([chains[:, :, :1] - wrist[:, None], chains[:, :, 1:] - chains[:, :, :-1]], dim=2)
    rotation, joint = root[:, None], wrist
    rotations, joints = [], []
    for link in range(_LINKS):
        joint = joint + (rotation @ bones[:, :, link, :, None])[..., 0]
        rotation = rotation @ local[:, :, link]
        rotations.append(rotation)
        joints.append(joint)
    all_rotations = torch.stack(rotations, dim=2).reshape(batch, _CHAINS * _LINKS, 3, 3)
    all_joints = torch.stack(joints, dim=2).reshape(batch, _CHAINS * _LINKS, 3)
    return torch.cat([root[:, None], all_rotations], dim=1), torch.cat([wrist, all_joints], dim=1)


def _checked(
    global_orient: Tensor, hand_pose: Tensor, betas: Tensor, translation_m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The inputs of `ManoLayer.forward` in float32, or in float64 when one of them is."""
    batch = betas.shape[0] if betas.ndim else 0
    wanted = {
        "global_orient": (global_orient, (batch, 3, 3)),
        "hand_pose": (hand_pose, (batch, 15, 3, 3)),
        "betas": (betas, (batch, 10)),
        "translation_m": (translation_m, (batch, 3)),
    }
    for name, (tensor, want) in wanted.items():
        if tuple(tensor.shape) != want:
            raise ShapeError(f"ManoLayer {name}: got {tuple(tensor.shape)}, want {want}")
    double = any(tensor.dtype == torch.float64 for tensor, _ in wanted.values())
    root, pose, shape, place = (t.to(torch.float64 if double else torch.float32) for t, _ in wanted.values())
    return root, pose, shape, place
