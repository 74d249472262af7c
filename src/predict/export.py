"""A network -> files that run without this program, and how they compare with the network itself.

`utnet.*` start from raw crops (`RAW_INPUTS`), `utnet_normalised.*` from normalised ones; both answer
`GraphHands` for any number of hands. What must be known to use them is inside as JSON (`exported.FACTS`).

Legend: B hands, H W crop.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataloader.crop.prepare import normalise_depth, normalise_rgb
from dataloader.synthetic.domains import DOMAINS
from dataloader.synthetic.frames import place_in_camera
from dataloader.synthetic.motion.rig import Rig
from src.errors import AssetError, ConfigError, plain_text
from src.hand.mano_assets import HandAsset
from src.predict.crops import raw_crops
from src.predict.exported import FACTS, FORMAT, INSTALL, Compute, open_file, seal
from src.predict.frame import Frame, HandBox
from src.predict.graph import NORMALISED_INPUTS, RAW_INPUTS, GraphHands, RawNetwork, example_inputs
from src.predict.predictor import Facts
from src.runtime.files.disk import crc32
from src.schema import CropView

NAMES = {"raw": "utnet", "normalised": "utnet_normalised"}
"""File names without ending, by what they start from."""

TOLERANCE_MM = 0.01
"""No joint or vertex of an exported file may be farther from the network's own."""

TRIALS = 32
"""Frames that are compared, each with and without depth."""
_BATCHES = (1, 2, 7, 33)
"""Numbers of hands at once in the comparison; the last one takes the rest."""

_EXAMPLE = 5
"""Hands in the example that is traced; unlike any other size, so that none is taken for it."""
_MOST_PROTOBUF = 1_900_000_000
"""Bytes of weights from which ONNX puts them into a file of their own: protobuf ends at 2 GiB."""
_REPEATS, _SECONDS = 20, 4.0
"""Most repeats of a latency, and seconds after which no more begin; at least three."""


def require_onnx() -> None:
    """ConfigError: what ONNX files are made and tried with is not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise ConfigError(
            f"an ONNX file needs onnx, onnxscript and onnxruntime ({error}): {INSTALL}"
        ) from None
    del onnx, onnxruntime, onnxscript


def write_files(
    kind: str, graph: RawNetwork, facts: Facts, about: Mapping[str, Any], folder: Path
) -> list[Path]:
    """Write a network as .pt2 and as .onnx.

    Args:
        kind: of `NAMES`: what the files start from.
        graph: on the CPU, float32 throughout.
        facts: of the network; go into each file.
        about: the model card; goes into each file.
        folder: an empty one, not yet the final one.

    Returns:
        the two files.
    """
    raw = example_inputs(facts.image_size, _EXAMPLE)
    module: nn.Module = graph if kind == "raw" else graph.normalised
    example, inputs = (raw, RAW_INPUTS) if kind == "raw" else (normalised_crops(raw), NORMALISED_INPUTS)
    program = _traced(module, example)
    text = _facts_text(facts, kind, inputs, about)
    paths = [folder / f"{NAMES[kind]}{ending}" for ending in (".pt2", ".onnx")]
    program.example_inputs = None  # they would be the only pickle in the file
    with _quiet():
        torch.export.save(program, paths[0], extra_files={f"{FACTS}.json": text})
        _write_onnx(program, example, inputs, text, paths[1])
    return paths


def normalised_crops(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`RAW_INPUTS` -> `NORMALISED_INPUTS`."""
    view = CropView(**{name: raw[name] for name in list(RAW_INPUTS)[2:]})
    depth, valid = normalise_depth(raw["depth_m"], view)
    made = {"rgb": normalise_rgb(raw["rgb_u8"]), "depth": depth, "depth_valid": valid}
    return {name: made.get(name, raw.get(name)) for name in NORMALISED_INPUTS}  # type: ignore[misc]


def _traced(module: nn.Module, example: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """The module as one graph whose number of hands is free; no trace of where it was made."""
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            module, (), kwargs=example, dynamic_shapes={name: {0: batch} for name in example}, strict=False
        )
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta = {name: node.meta[name] for name in ("val", "tensor_meta") if name in node.meta}
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and the converter say of their own work."""
    talker = logging.getLogger("onnxscript")
    level = talker.level
    talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talker.setLevel(level)


def _facts_text(facts: Facts, kind: str, inputs: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """What travels in a file, as JSON."""
    told = {
        "format": FORMAT,
        "inputs_kind": kind,
        "inputs": dict(inputs),
        "outputs": list(GraphHands.__annotations__),
        "image_size": list(facts.image_size),
        "box_scale": facts.box_scale,
        "batch_size": facts.batch_size,
        "named": facts.named,
        "card": dict(about),
        "faces": facts.faces.tolist(),
    }
    return json.dumps(told, allow_nan=False)


def _write_onnx(
    program: torch.export.ExportedProgram,
    example: dict[str, Tensor],
    inputs: Mapping[str, str],
    text: str,
    path: Path,
) -> None:
    """Write a sealed ONNX file."""
    names = list(GraphHands.__annotations__)
    made = torch.onnx.export(
        program, kwargs=example, dynamo=True, verbose=False, input_names=list(inputs), output_names=names
    )
    assert made is not None
    for value in made.model.graph.inputs:
        value.doc_string = inputs[str(value.name)]
    for node in made.model.graph:
        node.metadata_props.clear()  # torch's account of how it came about
    made.model.metadata_props[FACTS] = text
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    made.save(path, external_data=size > _MOST_PROTOBUF)
    with path.open("rb") as file:
        end = seal(crc32(file))
    with path.open("ab") as file:
        file.write(end)


def trial_crops(asset: HandAsset, facts: Facts) -> dict[str, Tensor]:
    """Raw crops to try a network on: `TRIALS` frames that the generator renders, with and without depth.

    Args:
        asset: the network's hand. No data set is needed.
        facts: of the network.

    Returns:
        2 `TRIALS` crops, in turn with depth and without.
    """
    rig, domain, asked = Rig(asset), DOMAINS["table"], []
    for number in range(TRIALS // 4):
        motion = domain.motion(rig, 0, number, 4)
        camera = domain.cameras(0, motion, 1)[0]
        vertices, joints = rig.decode(motion.hand_pose, motion.betas)
        (stage,) = domain.stages(rig, motion, [camera], 0)
        pixels = place_in_camera(joints, motion, camera) @ camera.intrinsics_px.T
        pixels = pixels[..., :2] / pixels[..., 2:]
        for row, mesh in enumerate(place_in_camera(vertices, motion, camera)):
            rgb, depth_m = stage.draw(row, mesh)
            box = HandBox((*pixels[row].min(0).tolist(), *pixels[row].max(0).tolist()))
            for depth in (depth_m.astype(np.float32), None):
                asked.append((Frame(f"trial {number}/{row}", rgb, depth, camera.intrinsics_px), box))
    return raw_crops(asked, facts.image_size, facts.box_scale)


def deviation_mm(graph: RawNetwork, path: Path, raw: dict[str, Tensor]) -> float:
    """Largest distance between the same joint or vertex of the network and of an exported file.

    Args:
        graph: the network, float32.
        path: the file.
        raw: crops, at least 2 `TRIALS`; they go through in batches of different sizes.

    Returns:
        millimetres; nan or infinite if an answer is not finite.
    """
    told, compute = open_file(path, "cpu")
    worst = 0.0
    ends = [*np.cumsum(_BATCHES).tolist(), len(raw["z_ref_m"])]
    for start, end in zip([0, *ends], ends, strict=False):
        rows = {name: tensor[start:end] for name, tensor in raw.items()}
        with torch.no_grad():
            ours = graph(**rows)
        theirs = compute(rows if told["inputs_kind"] == "raw" else normalised_crops(rows))
        for name in ("joints_m", "vertices_m"):
            gap = np.linalg.norm(ours[name].numpy().astype(np.float64) - theirs[name], axis=-1)
            worst = float(np.maximum(worst, 1000.0 * gap.max()))  # keeps nan
    return worst


def require_parity(gaps_mm: Mapping[str, float]) -> None:
    """AssetError: a file deviates by more than `TOLERANCE_MM` from the network."""
    if bad := {name: gap for name, gap in gaps_mm.items() if not gap <= TOLERANCE_MM}:
        text = ", ".join(f"{name} {gap:.4f} mm" for name, gap in bad.items())
        raise AssetError(
            f"exported files differ from the network by more than {TOLERANCE_MM} mm: {text}. Nothing was "
            "kept; another version of torch or onnxruntime may do better"
        )


@dataclass(frozen=True)
class Latency:
    """How long one hand takes."""

    runtime: str
    threads: int
    batch: int
    """Hands at once."""
    ms_a_hand: float | None
    """Median; None: it does not run here."""
    note: str = ""
    """Why it does not."""


def latencies(
    graph: RawNetwork, folder: Path, raw: dict[str, Tensor], *, compiled: bool
) -> Iterator[Latency]:
    """Time the network, compiled, and its files that start from raw crops, on the CPU.

    Args:
        graph: the network, float32.
        folder: of the files.
        raw: crops, at least 16.
        compiled: time torch's compiler too, which works for minutes for each of the rows.

    Yields:
        one thread and all that torch uses, each with 1 and 16 hands at once, for each runtime.
    """
    pt2 = open_file(folder / f"{NAMES['raw']}.pt2", "cpu")[1]
    for threads in sorted({1, torch.get_num_threads()}):
        onnx = open_file(folder / f"{NAMES['raw']}.onnx", "cpu", threads)[1]
        runtimes = {"eager": _plain(graph), "pt2": pt2, "ONNX Runtime": onnx}
        if compiled:
            runtimes["compiled"] = _compiled(graph)
        for name, run in runtimes.items():
            for batch in (1, 16):
                rows = {key: tensor[:batch] for key, tensor in raw.items()}
                yield Latency(name, threads, batch, *_timed(run, rows, batch, threads))


def _plain(graph: nn.Module) -> Callable[[dict[str, Tensor]], Any]:
    """The network as it is called."""
    return torch.no_grad()(lambda rows: graph(**rows))


def _compiled(graph: RawNetwork) -> Callable[[dict[str, Tensor]], Any]:
    """The network compiled as one graph, by torch's own compiler."""
    torch.compiler.reset()
    return _plain(torch.compile(graph, fullgraph=True, dynamic=False))  # type: ignore[arg-type]


def _timed(
    run: Compute | Callable[[dict[str, Tensor]], Any], rows: dict[str, Tensor], batch: int, threads: int
) -> tuple[float | None, str]:
    """Median milliseconds a hand, or None and why not."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run(rows)
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 3 or (len(times) < _REPEATS and time.perf_counter() - began < _SECONDS):
            start = time.perf_counter()
            run(rows)
            times.append(time.perf_counter() - start)
    except RuntimeError as error:  # torch's compiler: there is none for C++, or it failed
        return None, plain_text(str(error).strip().splitlines()[0])[:120]
    finally:
        torch.set_num_threads(before)
    return 1000.0 * median(times) / batch, ""


def latency_lines(rows: Sequence[Latency]) -> list[str]:
    """A Markdown table."""
    columns = sorted({(row.threads, row.batch) for row in rows})
    head = " | ".join(f"{threads} thread{'s' * (threads > 1)}, batch {batch}" for threads, batch in columns)
    lines = [f"| ms a hand | {head} |", "|---" * (1 + len(columns)) + "|"]
    for name in dict.fromkeys(row.runtime for row in rows):
        found = {(row.threads, row.batch): row for row in rows if row.runtime == name}
        cells = [
            f"{row.ms_a_hand:.2f}" if row.ms_a_hand else row.note for row in map(found.get, columns) if row
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
