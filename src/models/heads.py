"""The coarse hand: voted joints, rotations from them in closed form, learned residuals on top.

Why this way round: orientation is the hard part of the task and comes first. A network finds joints sooner
than rotations, but joints average into a shrunken hand; the hand model keeps the shape. So joints are voted,
turned into rotations in closed form without gradient (which has no bound where two rotations fit equally
well), and a residual rotation that the loss does reach corrects them. Everything here runs in float32.

Legend: B batch, N image tokens, D channels, J 21 joints in OPENPOSE21, S 15 local rotations in MANO16 order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.geometry.camera import unproject
from src.geometry.procrustes import fit_rotation
from src.geometry.rotation import rotation_between, rotation_from_6d, sixd_from_rotation
from src.hand.joints import FINGERS, MANO16, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.models.layers import SmallLinear
from src.models.readout import JOINT_STEP_M, NUM_JOINTS, Readout
from src.models.tokens import NUM_POSE_QUERIES
from src.models.vit import Preset
from src.schema import HandEstimate

NUM_BETAS = 10
WRIST_STEP = 0.25
"""Wrist code 1 = a quarter of the crop in u, v and a factor exp(0.25) in depth."""

_CHAIN15 = tuple(f"{finger}_{k}" for finger in FINGERS for k in (1, 2, 3))
"""Joints that bend, finger by finger from knuckle outwards."""

_KNUCKLES = tuple(OPENPOSE21.index(f"{finger}_1") for finger in FINGERS)


@dataclass(frozen=True)
class HandState:
    """A hand as the heads write it: what refinement changes and `HandDecoder` turns into a `HandEstimate`."""

    global_orient: Tensor
    """(B, 3, 3) crop camera."""
    hand_pose: Tensor
    """(B, S, 3, 3)."""
    betas: Tensor
    """(B, 10)."""
    wrist_code: Tensor
    """(B, 3) a with pixel (u, v) = (W, H) (0.5 + 0.25 a_uv) and z = z_ref exp(0.25 a_z)."""


class RestSkeleton(nn.Module):
    """Joints of the unposed hand as a linear function of shape, read off the hand model once.

    Buffers only: nothing is learned, nothing goes into a checkpoint.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, mano: ManoLayer) -> None:
        super().__init__()
        shapes = torch.cat([torch.zeros(1, NUM_BETAS), torch.eye(NUM_BETAS)])
        eye = torch.eye(3)
        with torch.no_grad():
            out = mano(eye.expand(11, 3, 3), eye.expand(11, 15, 3, 3), shapes, torch.zeros(11, 3))
        joints = out.joints_m - out.joints_m[:, :1]
        self.register_buffer("mean", joints[0].clone(), persistent=False)
        directions = (joints[1:] - joints[:1]).permute(1, 2, 0)
        self.register_buffer("directions", directions.clone(), persistent=False)

    def forward(self, betas: Tensor) -> Tensor:
        """(B, 10) -> (B, J, 3) wrist-relative, metres, OPENPOSE21, hand model's own frame."""
        return self.mean + torch.einsum("jck,bk->bjc", self.directions, betas)


@torch.no_grad()
def rotations_from_joints(joints_root_m: Tensor, rest_root_m: Tensor) -> tuple[Tensor, Tensor]:
    """Wrist and local rotations that put a rest hand's bones where joints say they are.

    The wrist is the rotation that best fits wrist-to-knuckles; each bone then swings by the smallest
    rotation, from knuckle to tip along the kinematic tree. Twist about a bone is not seen and stays zero.

    Args:
        joints_root_m: (B, J, 3) wrist-relative, OPENPOSE21.
        rest_root_m: (B, J, 3) the unposed hand's, any scale.

    Returns:
        (B, 3, 3) and (B, S, 3, 3) in MANO16 order, without gradient.
    """
    wrist = fit_rotation(_pick(rest_root_m, _KNUCKLES), _pick(joints_root_m, _KNUCKLES))
    b = joints_root_m.shape[0]
    parent = wrist[:, None].expand(b, len(FINGERS), 3, 3)
    swings = []
    for k in (1, 2, 3):
        near = [OPENPOSE21.index(f"{finger}_{k}") for finger in FINGERS]
        far = [OPENPOSE21.index(f"{finger}_{k + 1}") for finger in FINGERS]
        rest_bone = _pick(rest_root_m, far) - _pick(rest_root_m, near)
        seen_bone = _pick(joints_root_m, far) - _pick(joints_root_m, near)
        swing = rotation_between(rest_bone, (seen_bone[..., None, :] @ parent)[..., 0, :])
        parent = parent @ swing
        swings.append(swing)
    chain = torch.stack(swings, dim=2).flatten(1, 2)
    return wrist, _pick(chain, permutation(_CHAIN15, MANO16[1:]))


def _pick(joints: Tensor, indices: Sequence[int]) -> Tensor:
    """(B, J, ...) -> (B, len(indices), ...); a list as index would wait for the device to take it."""
    return torch.stack([joints[:, i] for i in indices], dim=1)


class HandDecoder(nn.Module):
    """Turns a `HandState` into a hand by the hand model and the crop camera. Nothing is learned."""

    def __init__(self, mano: ManoLayer, size: tuple[int, int]) -> None:
        super().__init__()
        self.mano = mano
        self.size = size

    def forward(self, state: HandState, intrinsics_crop_px: Tensor, z_ref_m: Tensor) -> HandEstimate:
        """State of B hands, (B, 3, 3) crop intrinsics, (B,) reference depths -> crop camera, metres."""
        origin = torch.zeros_like(state.wrist_code)
        out = self.mano(state.global_orient, state.hand_pose, state.betas, origin)
        wrist = out.joints_m[:, :1]
        height, width = self.size
        extent = torch.stack([torch.full_like(z_ref_m, width), torch.full_like(z_ref_m, height)], dim=-1)
        uv = extent * (0.5 + WRIST_STEP * state.wrist_code[:, :2])
        z = z_ref_m * torch.exp(WRIST_STEP * state.wrist_code[:, 2])
        return HandEstimate(
            global_orient=state.global_orient,
            hand_pose=state.hand_pose,
            betas=state.betas,
            root_cam_m=unproject(uv[:, None], z[:, None], intrinsics_crop_px)[:, 0],
            joints_root_m=out.joints_m - wrist,
            vertices_root_m=out.vertices_m - wrist,
        )


class CoarseHead(nn.Module):
    """Voted joints -> rotations in closed form -> learned rotations, shape and wrist.

    The wrist is the closed form turned by a residual. Uncertain votes fall short of the joints, and the
    swings of short bones exaggerate: a local rotation is a blend, in 6D, of the swing and the unbent joint,
    by a trust learned per joint, plus what is learned. That is read twice and added: from the summary of the
    picture and the votes in the wrist's own frame, and from the query tokens, which say more once the
    backbone is good.
    """

    identity: Tensor

    def __init__(self, sizes: Preset, rest: RestSkeleton) -> None:
        super().__init__()
        width, hidden = sizes.width, sizes.readout_width
        self.rest = rest
        self.pose_summary = SmallLinear(hidden, NUM_POSE_QUERIES * 6)
        self.pose_query = SmallLinear(width, 6)
        self.enter_votes = nn.Linear(NUM_JOINTS * 3, hidden)
        self.weigh = nn.Sequential(
            nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU()
        )
        self.trust = nn.Linear(hidden, NUM_POSE_QUERIES - 1)
        self.betas_summary = SmallLinear(hidden, NUM_BETAS)
        self.betas_query = SmallLinear(width, NUM_BETAS)
        self.wrist_summary = SmallLinear(hidden, 3, gain=0.25)
        self.wrist_query = SmallLinear(2 * width, 3, gain=0.25)
        nn.init.zeros_(self.trust.weight)
        nn.init.zeros_(self.trust.bias)
        self.register_buffer("identity", torch.tensor([1.0, 0, 0, 0, 1, 0]), persistent=False)

    def forward(self, readout: Readout, queries: Tensor) -> HandState:
        """Votes and (B, 19, D) [16 pose, shape, camera, intrinsics] -> a state with gradient in all parts."""
        b = queries.shape[0]
        pose, shape, camera = queries[:, :NUM_POSE_QUERIES], queries[:, NUM_POSE_QUERIES], queries[:, -2:]
        betas = self.betas_summary(readout.summary) + self.betas_query(shape)
        wrist, swing = rotations_from_joints(readout.joints_root_m, self.rest(betas))
        votes = readout.joints_root_m.detach() @ wrist / JOINT_STEP_M
        weighed = self.weigh(readout.summary + self.enter_votes(votes.flatten(1)))
        learned = self.pose_summary(weighed).view(b, NUM_POSE_QUERIES, 6) + self.pose_query(pose)
        trust = self.trust(weighed).sigmoid()[..., None]
        blend = torch.lerp(self.identity, sixd_from_rotation(swing), trust)
        global_orient = wrist @ rotation_from_6d(self.identity + learned[:, 0])
        hand_pose = rotation_from_6d(blend + learned[:, 1:])
        code = self.wrist_summary(readout.summary) + self.wrist_query(camera.flatten(1))
        # The wrist's own vote is the start, detached, and corrected by what is learned here.
        start = torch.cat([readout.joints_unit[:, 0], torch.zeros_like(code[:, :1])], dim=-1).detach()
        return HandState(global_orient, hand_pose, betas, start / WRIST_STEP + code)
