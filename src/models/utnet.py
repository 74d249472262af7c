"""UTNet: one RGB-D crop in, one hand out. This file only wires its parts together.

    batch -> tokens (picture + depth, queries) -> ViT -> feature maps -> dense read-out -> coarse hand
          -> maps sampled under the coarse hand's vertices -> mesh refinement -> hand model -> hand

All predictions are in the crop camera, metres. The backbone, that is tokens, ViT and feature maps, may run in
bf16; everything after it, where rotations, skinning and projection are, runs in float32.

Legend: B batch, N image tokens, Q queries, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.config import ModelConfig
from src.hand.mano import ManoLayer
from src.hand.upright import turned, turned_back, upright_roll
from src.models.gcn import MeshRefiner
from src.models.heads import CoarseHead, HandDecoder, RestSkeleton
from src.models.readout import DenseReadout
from src.models.tokens import NUM_POSE_QUERIES, TokenEmbedding
from src.models.upsample import FeaturePyramid
from src.models.vertex_sampling import sample_points
from src.models.vit import PRESETS, ViT
from src.schema import NetworkInput, Prediction

_HEAD_QUERIES = NUM_POSE_QUERIES + 3
"""pose, shape, camera, intrinsics: the last queries of the sequence."""


class UTNet(nn.Module):
    """The network.

    At the start its output is the same with and without depth, and the refined hand equals the coarse one.

    Args:
        config: sizes and options.
        mano: hand model; shared, not learned, in no checkpoint of this module.

    Attributes:
        backbone_dtype: arithmetic of the backbone, float32 or bfloat16; the entry point sets it.
    """

    def __init__(self, config: ModelConfig, mano: ManoLayer) -> None:
        super().__init__()
        sizes, size = PRESETS[config.preset], config.image_size
        self.backbone_dtype = torch.float32
        self.refine_iterations = config.refine_iterations
        self.second_look = config.second_look
        self.embed = TokenEmbedding(sizes, size)
        self.vit = ViT(sizes, config.drop_path)
        rest = RestSkeleton(mano)
        self.readout = DenseReadout(sizes, size, rest.mean)
        self.coarse = CoarseHead(sizes, rest)
        self.pyramid = FeaturePyramid(sizes, self.embed.grid)
        # Parameters that take no part in a step are an error under DDP.
        self.refiner = MeshRefiner(sizes, self.embed.grid, mano) if self.refine_iterations else None
        self.decoder = HandDecoder(mano, size)

    def forward(self, batch: NetworkInput) -> Prediction:
        """Estimate the hand of each crop; with `model.second_look` from the turned crop, but while training.

        Args:
            batch: crops of the configured size.

        Returns:
            Refined and coarse hand and the voted joints, float32, crop camera.

        Raises:
            ShapeError: crops of another size.
        """
        first = self._look(batch)
        if self.training or not self.second_look:
            return first
        roll = upright_roll(first.hand.joints_root_m)
        height, width = batch.rgb.shape[-2:]
        return turned_back(self._look(turned(batch, roll)), roll, (height, width))

    def _look(self, batch: NetworkInput) -> Prediction:
        """Estimate the hand of each crop as it is."""
        device = batch.rgb.device.type
        low = self.backbone_dtype != torch.float32
        with torch.autocast(device, dtype=self.backbone_dtype if low else None, enabled=low):
            tokens = self.embed(batch)
            features = self.vit(torch.cat([tokens.queries, tokens.image], dim=1))
            queries, image = features.tensor_split([tokens.queries.shape[1]], dim=1)
            maps = self.pyramid(image, tokens.skips)
        with torch.autocast(device, enabled=False):
            maps = tuple(level.float() for level in maps)
            return self._hands(image.float(), queries.float(), maps, batch)

    def _hands(
        self, image: Tensor, queries: Tensor, maps: tuple[Tensor, ...], batch: NetworkInput
    ) -> Prediction:
        """(B, N, D) and (B, Q, D) features of the backbone and their maps -> prediction, in float32."""
        readout = self.readout(image, maps[-1], batch)
        state = self.coarse(readout, queries[:, -_HEAD_QUERIES:])
        coarse = hand = self.decoder(state, batch.intrinsics_crop_px, batch.z_ref_m)
        seen = () if self.refiner is None else self.refiner.project(maps)
        for _ in range(self.refine_iterations):
            points = torch.cat([hand.vertices_cam_m, hand.joints_cam_m], dim=1)
            assert self.refiner is not None
            state = self.refiner(state, hand, sample_points(seen, points, batch), readout.summary)
            hand = self.decoder(state, batch.intrinsics_crop_px, batch.z_ref_m)
        return Prediction(
            hand=hand,
            coarse=coarse,
            vote_joints_root_m=readout.joints_root_m,
            vote_joints_unit=readout.joints_unit,
            vote_logits=readout.logits,
        )
