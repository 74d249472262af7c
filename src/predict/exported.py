"""Networks from files that `src.tools.export` wrote: run without the checkpoint and the hand model.

How far such a file may be trusted. An `.onnx` is data: ONNX Runtime computes what it lists. A `.pt2` is not:
`torch.export.load` unpickles records without restriction where its safe reader fails, starts libraries that
are inside, and evaluates expressions, guards and names of functions as Python. So only files in the narrow
form that we write are handed to it: no pickle, no library, operators of ATen that touch no file, guards and
sizes of a few fixed shapes, every byte under its checksum. That keeps accidents and simple tricks out; it is
no proof. From people you do not trust take the `.onnx`.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export.passes import move_to_device_pass

from src.errors import AssetError, ConfigError, plain_text
from src.predict.graph import RAW_INPUTS
from src.predict.predictor import Facts, find_device
from src.runtime.files.disk import ZIP_FAILURES, crc32, open_plain, read_plain
from src.runtime.machine import full_float32

FORMAT = 1
"""Of the facts inside a file."""
FACTS = "utnet"
"""Name of the facts: a key of ONNX's metadata, and with `.json` an extra file of a .pt2."""
SEAL_KEY = b"utnet_crc32"
INSTALL = ".venv/bin/pip install --group export, in the folder of this program"

Compute = Callable[[dict[str, Tensor]], dict[str, NDArray[np.float32]]]
"""A file's named inputs, on the CPU -> its named outputs."""

_MOST_BYTES = 1 << 34
_ADVICE = "Copy it again, or export it again: python -m src.tools.export"
_TORCH_FAILURES = (*ZIP_FAILURES, AssertionError, AttributeError, ImportError, TypeError, IndexError)
"""What a file of another version of torch can raise while it is read."""

_RECORD = re.compile(
    r"[^/]+/(data/(weights/(weight_\d+|model_weights_config\.json)"
    r"|constants/(tensor_\d+|model_constants_config\.json))|models/model\.json|extra/utnet\.json"
    r"|archive_(format|version)|byteorder|\.data/(version|serialization_id|alignment)"
    r"|\.format_version|\.storage_alignment)"
)
"""Records of a .pt2; beside them one empty record where sample inputs would be."""
_SAMPLES = "/data/sample_inputs/model.pt"
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file|save|_print|set_data)\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_autocast|_operator\.(add|sub|mul|floordiv|getitem)|torch\.sym_\w+"
)
_EXPRESSION = re.compile(
    r"(Symbol\('s\d+', positive=True, integer=True\)|(Mul|Add|Integer)\(|-?\d{1,9}|[), ])*"
)
_SIZE = r"L\['\w+'\]\.size\(\)\[\d\]"
_GUARD = re.compile(rf"{_SIZE} (==|<=|>=) ({_SIZE}|\d{{1,9}})")


class ExportedEngine:
    """An `Engine` that computes an exported file."""

    def __init__(self, facts: Facts, compute: Compute) -> None:
        self.facts = facts
        self._compute = compute

    def __call__(self, crops: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
        """As of `Engine`."""
        return self._compute({name: crops[name] for name in RAW_INPUTS})


def open_exported(path: Path, device: torch.device | str | None = None) -> ExportedEngine:
    """A network that starts from raw crops, ready to run.

    Args:
        path: `utnet.pt2` or `utnet.onnx`.
        device: as of `Predictor.from_checkpoint`.

    Raises:
        AssetError: it is missing, damaged, not ours, or starts from normalised crops.
        ConfigError: onnxruntime is not installed, or it has no such device.
    """
    told, compute = open_file(path, device)
    if told["inputs_kind"] != "raw":
        raise AssetError(
            f"{path} starts from normalised crops, which a program of your own makes; want the file that "
            f"starts from raw ones, {path.name.replace('_normalised', '')} of the same export"
        )
    faces = np.array(told["faces"], np.int64)
    height, width = told["image_size"]
    named = f"{path}, exported from {plain_text(told['named'])}"
    return ExportedEngine(
        Facts((height, width), float(told["box_scale"]), told["batch_size"], faces, named), compute
    )


def open_file(
    path: Path, device: torch.device | str | None = None, threads: int | None = None
) -> tuple[dict[str, Any], Compute]:
    """The facts inside an exported file, of raw or normalised crops, and what computes it.

    Args:
        path, device: as of `open_exported`.
        threads: of ONNX Runtime; None: as many as torch uses.

    Raises:
        AssetError, ConfigError: as of `open_exported`, but for normalised crops.
    """
    try:
        with open_plain(path):
            pass
    except OSError as error:
        raise AssetError(f"exported network {path}: cannot be read ({error.strerror}). {_ADVICE}") from None
    if path.suffix == ".onnx":
        return _open_onnx(path, device, threads)
    return _open_pt2(path, find_device(device))


def _open_onnx(
    path: Path, device: torch.device | str | None, threads: int | None
) -> tuple[dict[str, Any], Compute]:
    """`open_file` of an ONNX file."""
    try:
        import onnxruntime as ort  # an extra
        from onnxruntime.capi import onnxruntime_pybind11_state as failures
    except ImportError as error:
        raise ConfigError(f"{path}: running it needs onnxruntime ({error}). Install it: {INSTALL}") from None
    _require_seal(path)
    asked = torch.device("cpu") if device is None else _named_device(device)
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(asked.type)
    if provider not in (there := ort.get_available_providers()):
        raise ConfigError(
            f"device {device}: this onnxruntime has {', '.join(there)}. Use cpu, or install onnxruntime-gpu"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    chosen = {"device_id": asked.index or 0, "use_tf32": 0} if asked.type == "cuda" else {}
    try:
        session = ort.InferenceSession(path, options, providers=[(provider, chosen)])
    except (failures.Fail, failures.InvalidGraph, failures.InvalidProtobuf, failures.NotImplemented,
            failures.NoSuchFile, failures.InvalidArgument, failures.RuntimeException) as error:  # fmt: skip
        said = plain_text(" ".join(str(error).split()))[:300]
        raise AssetError(f"{path}: onnxruntime {ort.__version__} cannot open it: {said}. {_ADVICE}") from None
    told = _facts(path, session.get_modelmeta().custom_metadata_map.get(FACTS))
    names = [output.name for output in session.get_outputs()]

    def compute(inputs: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
        feed = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        return dict(zip(names, session.run(names, feed), strict=True))

    return told, compute


def _open_pt2(path: Path, device: torch.device) -> tuple[dict[str, Any], Compute]:
    """`open_file` of a .pt2."""
    content = read_plain(path, _MOST_BYTES)
    refused = f"{path} is damaged, or not written by src.tools.export"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (torn := archive.testzip()) is not None:
                raise ValueError(f"{torn} is damaged")
            told = _facts(path, _require_plain(archive))
    except (*ZIP_FAILURES, RecursionError) as error:
        raise AssetError(f"{refused}: {plain_text(str(error))[:200]}. {_ADVICE}") from None
    try:
        program = torch.export.load(io.BytesIO(content))
        if device.type != "cpu":
            program = move_to_device_pass(program, device)
        module = program.module()
    except _TORCH_FAILURES as error:
        said = plain_text(" ".join(str(error).split()))[:200]
        raise AssetError(f"{path}: torch {torch.__version__} cannot open it: {said}. {_ADVICE}") from None

    @torch.no_grad()
    def compute(inputs: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
        with full_float32():
            hands = module(**{name: tensor.to(device) for name, tensor in inputs.items()})
        return {name: value.cpu().numpy() for name, value in hands.items()}

    return told, compute


def _require_plain(archive: zipfile.ZipFile) -> bytes | None:
    """Refuse, by ValueError, a .pt2 that is more than graph and numbers; its facts, if it has any."""
    records = archive.infolist()
    names = [record.filename for record in records]
    if len(set(names)) != len(names):
        raise ValueError("a record is there twice")
    for record in records:
        empty = record.filename.endswith(_SAMPLES) and record.file_size == 0
        if not empty and not _RECORD.fullmatch(record.filename):
            raise ValueError(f"it holds {record.filename}, which no network needs; nothing of it was run")
    facts = None
    for name in names:
        if name.endswith(f"/extra/{FACTS}.json"):
            facts = archive.read(name)
        elif name.endswith(".json"):
            for key, value in _leaves(json.loads(archive.read(name))):
                if not _is_plain(key, value):
                    raise ValueError(
                        f"it asks for {key} {value!r:.80}, which is not allowed; nothing was run"
                    )
    return facts


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of all that is no container; items of a list have the list's name."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield name, None
            yield from _leaves(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, key)
    else:
        yield key, tree


def _is_plain(key: str, value: Any) -> bool:
    """Whether a value of a graph's description is one of those that are harmless to read."""
    if key in ("target", "expr_str", "guards_code") and value is not None:
        allowed = {"target": _TARGET, "expr_str": _EXPRESSION, "guards_code": _GUARD}[key]
        return isinstance(value, str) and allowed.fullmatch(value) is not None
    if key == "use_pickle":
        return value in (None, False)
    return key not in ("as_custom_obj", "__enum__") and not (isinstance(value, str) and "__enum__" in value)


def _facts(path: Path, text: str | bytes | None) -> dict[str, Any]:
    """What a file says of itself, checked.

    Raises:
        AssetError: nothing, or not what this program writes.
    """
    try:
        told = json.loads(text or "null")
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or "format" not in told:
        raise AssetError(f"{path} was not written by src.tools.export: it does not say what it is. {_ADVICE}")
    if told["format"] != FORMAT:
        raise AssetError(f"{path} has format {told['format']!r:.20}, this program reads {FORMAT}. {_ADVICE}")
    wanted: dict[str, Callable[[Any], bool]] = {
        "inputs_kind": lambda v: v in ("raw", "normalised"),
        "image_size": lambda v: _whole(v, 2, 1, 1 << 14),
        "box_scale": lambda v: type(v) in (int, float) and 0 < v < 100,
        "batch_size": lambda v: _whole([v], 1, 1, 1 << 20),
        "faces": lambda v: isinstance(v, list) and all(_whole(row, 3, 0, 777) for row in v),
        "named": lambda v: isinstance(v, str),
    }
    if odd := [name for name, fits in wanted.items() if not fits(told.get(name))]:
        raise AssetError(f"{path} is not what this program writes: {odd[0]} is missing or odd. {_ADVICE}")
    return told


def _whole(value: Any, count: int, least: int, most: int) -> bool:
    """Whether it is a list of so many whole numbers within bounds."""
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(number) is int and least <= number <= most for number in value)
    )


def seal(content_crc: int) -> bytes:
    """The end of an ONNX file: one more entry of its metadata (a field may stand anywhere), with the CRC-32
    of all bytes before it. ONNX itself has no checksum: a flipped bit would bend hands without a word.
    """
    value = b"%08x" % content_crc
    entry = b"\x0a%c" % len(SEAL_KEY) + SEAL_KEY + b"\x12%c" % len(value) + value
    return b"\x72%c" % len(entry) + entry  # field 14, of a known length


def _require_seal(path: Path) -> None:
    """AssetError: an ONNX file does not end with the checksum of its content."""
    length = path.stat().st_size - len(seal(0))
    with open_plain(path) as file:
        whole = length > 0 and seal(crc32(file, length)) == file.read()
    if not whole:
        raise AssetError(f"{path} is damaged, or not written by src.tools.export. {_ADVICE}")


def _named_device(device: torch.device | str) -> torch.device:
    """ConfigError: torch knows no device of that name."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device {device!r}: {str(error).splitlines()[0]}. Use cpu, cuda or cuda:N"
        ) from None
