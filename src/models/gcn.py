"""Refinement over the mesh: what vertices see is passed along the surface and read out as small corrections.

The graph is the hand's mesh with self-loops, normalised as D^-1/2 (A + I) D^-1/2 once when the module is
built. 778 vertices have about 6 neighbours each: on a CPU they are gathered, in an eighth of the dense
product's time. On a GPU, compiled or exported it is the dense product: one kernel, one operator that every
runtime has, 1.5 % of base's arithmetic (18 % of tiny's).

Legend: B batch, V vertices, C channels of a node, S 16 rotations in MANO16 order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.geometry.rotation import rotation_from_6d
from src.hand.joints import MANO16, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.models.heads import NUM_BETAS, HandState
from src.models.layers import SmallLinear
from src.models.readout import JOINT_STEP_M, NUM_JOINTS
from src.models.vertex_sampling import Sampled
from src.models.vit import Preset
from src.schema import HandEstimate

_ROTATIONS = len(MANO16)


def normalised_adjacency(faces: Tensor, num_vertices: int) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 of a mesh.

    Args:
        faces: (F, 3) int64 vertex indices.
        num_vertices: V.

    Returns:
        (V, V) symmetric float32; no eigenvalue exceeds 1.
    """
    dense = torch.eye(num_vertices, dtype=torch.float64)
    corners = faces.cpu().long()
    dense[corners[:, :, None], corners[:, None]] = 1.0  # each corner of a face with each
    scale = dense.sum(dim=1).rsqrt()
    return (scale[:, None] * dense * scale).float()


class _SymmetricProduct(torch.autograd.Function):
    """A x for a constant symmetric A as `MeshGraph` keeps it; the gradient is A g, gathered likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        """As `_gathered`."""
        ctx.save_for_backward(columns, values)
        return _gathered(x, columns, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of x alone."""
        return _gathered(grads[0].contiguous(), *ctx.saved_tensors), None, None


def _gathered(x: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """The product itself, (V, M), with the k-th term of each row in (K, V) columns and (K, V, 1) values."""
    first, *others = zip(columns, values, strict=True)
    total = x.index_select(0, first[0]).mul_(first[1])
    for index, value in others:
        total.add_(x.index_select(0, index).mul_(value))
    return total


class MeshGraph(nn.Module):
    """The normalised graph as plain buffers, which any device, copy or broadcast understands."""

    matrix: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, faces: Tensor, num_vertices: int) -> None:
        super().__init__()
        matrix = normalised_adjacency(faces, num_vertices)
        linked = matrix != 0
        most = int(linked.sum(dim=1).max())
        columns = linked.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        values = matrix.gather(1, columns)
        # A row with fewer adds 0 times itself: what is not finite reaches its neighbours alone.
        columns = torch.where(values == 0, torch.arange(num_vertices)[:, None], columns)
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("columns", columns.T.contiguous(), persistent=False)
        self.register_buffer("values", values.T[..., None].contiguous(), persistent=False)

    def forward(self, nodes: Tensor) -> Tensor:
        """(V, B, C) -> (V, B, C), each node the weighted mean of itself and its neighbours."""
        x = nodes.flatten(1)
        result: Tensor
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            result = _SymmetricProduct.apply(x, self.columns, self.values)
        else:
            result = self.matrix @ x
        return result.view_as(nodes)


class GraphLayer(nn.Module):
    """Residual graph convolution; the linear map comes first, on C channels, then the aggregation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, nodes: Tensor, graph: MeshGraph) -> Tensor:
        """(V, B, C) -> (V, B, C)."""
        return nodes + F.gelu(graph(self.linear(self.norm(nodes))))


class MeshRefiner(nn.Module):
    """One pass of refinement; call it again with what it returned for another, with the same weights.

    Args:
        sizes: of the preset.
        grid: (rows, cols) of image tokens, and of the coarsest map.
        mano: gives faces and skinning weights.
    """

    to_mano: Tensor

    def __init__(self, sizes: Preset, grid: tuple[int, int], mano: ManoLayer) -> None:
        super().__init__()
        width = sizes.graph_width
        skin = mano.lbs_weights.detach().float()
        self.num_vertices = skin.shape[0]
        self.graph = MeshGraph(mano.faces, self.num_vertices)
        self.register_buffer("skin", skin.clone(), persistent=False)
        self.register_buffer("readout", (skin / skin.sum(dim=0)).T.contiguous(), persistent=False)
        to_mano = torch.tensor(permutation(OPENPOSE21, MANO16))
        self.register_buffer("to_mano", to_mano, persistent=False)
        self.seen = list(sizes.map_channels)
        points = self.num_vertices + NUM_JOINTS
        self.early = [(grid[0] << level) * (grid[1] << level) <= points for level in range(len(self.seen))]
        self.enter = nn.Linear(sum(self.seen) + 6, width)
        self.enter_depth = nn.Linear(2, width, bias=False)
        self.enter_summary = nn.Linear(sizes.readout_width, width)
        self.vertex_identity = nn.Linear(_ROTATIONS, width, bias=False)
        self.joint_identity = nn.Parameter(torch.randn(_ROTATIONS, width) * 0.5)
        self.layers = nn.ModuleList(GraphLayer(width) for _ in range(sizes.graph_layers))
        self.joint = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU())
        self.whole = nn.Sequential(
            nn.Linear(_ROTATIONS * width, 2 * width), nn.LayerNorm(2 * width), nn.GELU()
        )
        self.joint_rotation = SmallLinear(width, 6, start=0.0)
        self.whole_out = SmallLinear(2 * width, _ROTATIONS * 6 + NUM_BETAS + 3, start=0.0)
        self.register_buffer("identity", torch.tensor([1.0, 0, 0, 0, 1, 0]), persistent=False)
        nn.init.zeros_(self.enter_depth.weight)

    def project(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The layer `enter` on those maps that have no more elements than the hand has points.

        A linear layer on samples of a map is a sample of the layer on the map: it is computed where there is
        less to compute, and once for all passes.

        Args:
            maps: (B, seen[i], h, w) each.

        Returns:
            Of each map (B, C, h, w), or the map itself, whose samples `forward` takes through the layer.
        """
        return tuple(
            (weight @ level.flatten(2)).view(-1, len(weight), *level.shape[2:]) if early else level
            for weight, level, early in zip(self._weights()[:-1], maps, self.early, strict=True)
        )

    def _weights(self) -> tuple[Tensor, ...]:
        """(C, seen[i]) of each map and, last, (C, 6) of the places: the columns of `enter`."""
        return torch.split(self.enter.weight, [*self.seen, 6], dim=1)

    def _enter(self, features: Sequence[Tensor], places: Tensor) -> Tensor:
        """Samples of what `project` returned and (B, P, 6) places -> (B, P, C) of the layer `enter`."""
        *weights, of_places = self._weights()
        points = F.linear(places, of_places, self.enter.bias)
        for feature, weight, early in zip(features, weights, self.early, strict=True):
            points = points + (feature if early else F.linear(feature, weight))
        return points

    def forward(
        self, state: HandState, estimate: HandEstimate, sampled: Sampled, summary: Tensor
    ) -> HandState:
        """Correct a hand by what its points see.

        Args:
            state: the hand now.
            estimate: what it decodes to; read without gradient.
            sampled: what `project` made of the maps, under its V vertices followed by its 21 joints.
            summary: (B, R).

        Returns:
            The corrected state: rotations composed, shape and wrist code added to.
        """
        b, v = summary.shape[0], self.num_vertices
        place = torch.cat([estimate.vertices_root_m, estimate.joints_root_m], dim=1).detach() / JOINT_STEP_M
        points = self._enter(sampled.features, torch.cat([sampled.place, place], dim=-1))
        points = points + self.enter_summary(summary)[:, None] + self.enter_depth(sampled.depth)
        nodes = (points[:, :v] + self.vertex_identity(self.skin)).transpose(0, 1).contiguous()
        for layer in self.layers:
            nodes = layer(nodes, self.graph)
        pooled = torch.einsum("sv,vbc->bsc", self.readout, nodes)
        joints = points[:, v:].index_select(1, self.to_mano) + self.joint_identity
        features = self.joint(torch.cat([pooled, joints], dim=-1))
        whole = self.whole_out(self.whole(features.flatten(1)))
        turn, betas, wrist = whole.split([_ROTATIONS * 6, NUM_BETAS, 3], dim=-1)
        sixd = self.identity + self.joint_rotation(features) + turn.view(b, _ROTATIONS, 6)
        residual = rotation_from_6d(sixd)
        return HandState(
            global_orient=state.global_orient @ residual[:, 0],
            hand_pose=state.hand_pose @ residual[:, 1:],
            betas=state.betas + betas,
            wrist_code=state.wrist_code + wrist,
        )
