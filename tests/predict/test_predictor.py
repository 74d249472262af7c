"""The door for own frames: arrays in, hands in the camera of the picture out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dataloader.build import build_dataset, build_eval_loader
from src.errors import AssetError, ConfigError, DataError, ShapeError
from src.hand.mano import ManoLayer
from src.predict import Hands, Predictor
from src.predict.frames import open_source
from src.predict.hands import PER_HAND
from src.predict.predictor import ROOT, eager_engine
from tests.dataloader.tree import run_config, write_tree
from tests.hand_file import hand_file
from tests.predict.network import write_network

H, W = 120, 160
K = np.array([[150.0, 0, 82.5], [0, 152.0, 57.0], [0, 0, 1]])
BOX = (50.0, 30.0, 100.0, 95.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "best.pt"
    write_network(path)
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return Predictor.from_checkpoint(checkpoint, device="cpu")


def scene(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A picture and its depth, with holes."""
    rng = np.random.default_rng(seed)
    depth = (0.6 + 0.1 * rng.random((H, W))).astype(np.float32)
    depth[rng.random((H, W)) < 0.1] = 0
    return rng.integers(0, 256, (H, W, 3), dtype=np.uint8), depth


def gap_m(a: Hands, b: Hands) -> float:
    return max(float(np.abs(a.joints_m - b.joints_m).max()), float(np.abs(a.vertices_m - b.vertices_m).max()))


def test_an_ho3d_tree_is_predicted_as_it_is_validated(tmp_path: Path) -> None:
    """Whoever compares the two would look for a fault in their own files."""
    write_tree(tmp_path / "HO3D", {"MC1": 2}, {"SM1": 2, "AP10": 3})
    config = write_network(tmp_path / "best.pt", run_config(tmp_path / "HO3D").dataset)
    dataset = build_dataset(config, "evaluation", ManoLayer.from_file(hand_file()))
    engine = eager_engine(tmp_path / "best.pt", device="cpu")
    source = open_source(str(tmp_path / "HO3D"))
    assert source.labels is not None
    asked = [(frame, source.labels.find(frame)[0]) for frame in source.frames()]
    assert [frame.name for frame, _ in asked] == [dataset.frames.frame_id(i) for i in range(len(dataset))]
    ours = Predictor(engine).predict(asked)
    for batch in build_eval_loader(config, dataset, 0, 1, torch.device("cpu")):
        with torch.no_grad():
            hand = engine.graph.normalised.network(batch).hand
        theirs = batch.to_image_camera(hand.vertices_cam_m).numpy()
        assert np.array_equal(ours.vertices_m[batch.sample_index.numpy()], theirs)


@pytest.mark.parametrize("exact", [True, False])
def test_a_mirrored_picture_gives_the_mirrored_hand(predictor: Predictor, exact: bool) -> None:
    """Left hands are read as the right hands of a mirror; a half-mirrored input would bend them elsewhere."""
    rgb, depth = scene()
    right = predictor(rgb[None], depth[None], K[None], np.array([BOX]), exact=exact)
    k = K.copy()
    k[0, 2] = W - 1 - k[0, 2]
    box = np.array([[W - 1 - BOX[2], BOX[1], W - 1 - BOX[0], BOX[3]]])
    left = predictor(rgb[None, :, ::-1], depth[None, :, ::-1], k[None], box, np.array([True]), exact=exact)
    mirror = np.array([-1, 1, 1], np.float32)
    assert np.abs(left.vertices_m - right.vertices_m * mirror).max() < 1e-5
    assert np.abs(left.joints_m - right.joints_m * mirror).max() < 1e-5
    both_sides = mirror[:, None] * mirror
    for name in ("global_orient", "hand_pose"):
        assert np.abs(getattr(left, name) - getattr(right, name) * both_sides).max() < 1e-5
    outside = [float(np.sum(normal_sums(h, 0))) for h in (left, right)]
    assert outside[0] == pytest.approx(outside[1], rel=1e-4)
    assert outside[0] > 0, "faces are seen from inside"


def normal_sums(hands: Hands, i: int) -> NDArray[np.float64]:
    """Signed volumes between triangles and the middle of a mesh: positive where it is turned outwards."""
    v = hands.vertices_m[i].astype(np.float64)
    a, b, c = (v - v.mean(0))[hands.faces_of(i)].transpose(1, 0, 2)
    return np.einsum("ij,ij->i", a, np.cross(b, c))


def test_the_parameters_decode_to_the_mesh(predictor: Predictor) -> None:
    """People fit, animate and retarget by parameters; without the translation the mesh would be elsewhere."""
    rgb, depth = scene()
    hands = predictor(rgb[None], depth[None], K, np.array([BOX]))
    inputs = (hands.global_orient, hands.hand_pose, hands.betas, hands.translation_m)
    out = ManoLayer.from_file(hand_file())(*map(torch.from_numpy, inputs))
    assert np.abs(out.vertices_m.numpy() - hands.vertices_m).max() < 1e-5
    assert np.abs(out.joints_m.numpy() - hands.joints_m).max() < 1e-5
    assert {name: getattr(hands, name).shape[1:] for name in PER_HAND} == PER_HAND


def test_depth_is_read_where_it_is_given_and_missing_depth_is_no_number(predictor: Predictor) -> None:
    """nan and inf of a sensor are holes like 0; a picture without depth is predicted by colour alone."""
    rgb, depth = scene()
    given = predictor(rgb[None], depth[None], K[None], np.array([BOX]))
    holes = np.where(depth == 0, np.nan, depth).astype(np.float32)
    holes[0, 0] = np.inf
    depth[0, 0] = 0
    assert gap_m(predictor(rgb[None], holes[None], K[None], np.array([BOX])), given) == 0
    assert gap_m(predictor(rgb[None], None, K[None], np.array([BOX])), given) > 1e-3


def test_tensors_are_answered_by_tensors_and_batches_row_by_row(predictor: Predictor) -> None:
    """The answer lies where the pictures lie, and a hand does not depend on its neighbours."""
    scenes = [scene(seed) for seed in range(3)]
    rgb, depth = (np.stack(part) for part in zip(*scenes, strict=True))
    boxes = np.array([BOX] * 3)
    together = predictor(*map(torch.from_numpy, (rgb, depth)), torch.from_numpy(K), torch.from_numpy(boxes))
    assert isinstance(together.joints_m, torch.Tensor)
    alone = predictor(rgb[2:], depth[2:], K, boxes[2:])
    assert np.abs(together.joints_m[2].numpy() - alone.joints_m[0]).max() < 2e-3  # bf16 where the CPU has it
    assert len(predictor(rgb[:0], depth[:0], K, boxes[:0])) == 0


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"box_px": np.array([[200.0, 30, 260, 90]])}, DataError, "outside the picture of 160 x 120"),
        ({"box_px": np.array([[50.0, 30, 50, 30]])}, DataError, "at least 8 px"),
        ({"box_px": np.array([[np.nan, 30, 90, 90]])}, DataError, "finite"),
        ({"rgb": np.zeros((1, H, W, 3), np.float32)}, ShapeError, "rgb: got .* float32, want .* uint8"),
        ({"depth_m": np.zeros((1, H, W + 1), np.float32)}, ShapeError, "depth_m: got .*161"),
        ({"depth_m": np.zeros((1, H, W), np.uint16)}, ShapeError, "depth_m: got .* uint16, want .* float"),
        ({"intrinsics_px": np.zeros((1, 4, 4))}, ShapeError, "intrinsics_px"),
        ({"intrinsics_px": np.zeros((1, 3, 3))}, DataError, "picture 0: .*no inverse"),
        ({"left": np.array([1])}, ShapeError, "left: .*want .* bool"),
    ],
)
def test_a_wrong_argument_is_named(predictor: Predictor, change: dict, error: type, said: str) -> None:
    """Broadcast or cast silently, each would give a hand somewhere else."""
    rgb, depth = scene()
    given = {"rgb": rgb[None], "depth_m": depth[None], "intrinsics_px": K[None], "box_px": np.array([BOX])}
    with pytest.raises(error, match=said):
        predictor(**{**given, **change})


def test_a_checkpoint_of_another_hand_or_device_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Another hand's mesh would be posed by rotations that were learned for this one."""
    with pytest.raises(AssetError, match="no such file"):
        Predictor.from_checkpoint(checkpoint, hand_model=tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(AssetError, match=r"none\.pt"):
        Predictor.from_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ConfigError, match=r"device 'gpu0'.* Use cpu, cuda or cuda:N"):
        Predictor.from_checkpoint(checkpoint, device="gpu0")


def test_five_lines_run_from_another_folder(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint names its hand relative to the program's folder, and users work elsewhere."""
    lines = (
        "import numpy as np",
        "from src.predict import Predictor",
        f"p = Predictor.from_checkpoint({str(checkpoint)!r})",
        f"h = p(np.zeros((1, 120, 160, 3), np.uint8), None, np.array({K.tolist()}), np.array([{BOX}]))",
        "print(h.joints_m.shape, h.vertices_m.shape)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "(1, 21, 3) (1, 778, 3)\n", done.stderr


def test_the_user_s_settings_are_left_alone(checkpoint: Path) -> None:
    """A library that reseeds its user's experiments, or changes their arithmetic, changes their numbers."""
    torch.manual_seed(7)
    before, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    rgb, depth = scene()
    try:
        Predictor.from_checkpoint(checkpoint, device="cpu")(rgb[None], depth[None], K, np.array([BOX]))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.equal(before, torch.get_rng_state())


def test_with_depth_a_box_s_side_does_not_move_the_hand(predictor: Predictor) -> None:
    """Detectors and people draw boxes of 0.7 to 1.5 times the hand: another zoom would turn the wrist."""
    rgb, depth = scene()
    middle, half = np.array([75.0, 62.0]), np.array([25.0, 30.0])
    boxes = np.stack([np.concatenate([middle - half * s, middle + half * s]) for s in (0.8, 1.0, 1.3)])
    rgbs, depths = np.stack([rgb] * 3), np.stack([depth] * 3)
    sized = predictor(rgbs, depths, K, boxes, exact=False)
    assert np.abs(sized.joints_m - sized.joints_m[1]).max() < 0.004
    given = predictor(rgbs, depths, K, boxes)
    assert np.abs(given.joints_m - given.joints_m[1]).max() > 0.01
    without = predictor(rgbs, None, K, boxes, exact=False)
    assert gap_m(without, predictor(rgbs, None, K, boxes)) == 0, "there is no depth to size them by"
