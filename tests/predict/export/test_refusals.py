"""Files that are not run: one line that says which file, and what to do."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.errors import AssetError, ConfigError
from src.predict.exported import _require_plain, open_exported, seal
from src.runtime.files.disk import crc32
from tests.predict.export.made import ENDINGS, Made


def refused(path: Path, error: type[Exception] = AssetError) -> str:
    """The sentence."""
    with pytest.raises(error) as caught:
        open_exported(path, "cpu")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_and_foreign_files_are_named(made: Made, ending: str, tmp_path: Path) -> None:
    """A bit that flipped in a weight would bend every hand a little."""
    content, path = made.file(ending).read_bytes(), tmp_path / f"x{ending}"
    for change in (
        content[: len(content) // 2],
        content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
        content[: len(content) // 3] + b"\0\1\2\3" + content[len(content) // 3 + 4 :],
        b"",
        b"not a network at all, but long enough to be one",
    ):
        path.write_bytes(change)
        assert "Copy it again, or export it again" in refused(path)
    assert "No such file" in refused(tmp_path / f"none{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    refused(tmp_path / f"folder{ending}")


def rewritten(made: Made, path: Path, change: Callable[[str, bytes], bytes], more: str = "") -> Path:
    """The .pt2 with other contents of its records, checksums and all."""
    with zipfile.ZipFile(made.file(".pt2")) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        if more:
            new.writestr(old.namelist()[0].partition("/")[0] + more, b"x")
    return path


def test_a_pt2_of_other_programs_or_normalised_crops_is_refused(made: Made, tmp_path: Path) -> None:
    """Fed with raw bytes, a network for normalised ones answers something."""

    def facts(name: str, **changes: object) -> Path:
        def change(record: str, content: bytes) -> bytes:
            if not record.endswith("utnet.json"):
                return content
            return json.dumps({**json.loads(content), **changes}).encode()

        return rewritten(made, tmp_path / name, change)

    assert "utnet.pt2 of the same export" in refused(facts("utnet_normalised.pt2", inputs_kind="normalised"))
    assert "format 9, this program reads 1" in refused(facts("a.pt2", format=9))
    assert "faces is missing or odd" in refused(facts("b.pt2", faces=[[0, 1, 778]]))
    assert "image_size is missing or odd" in refused(facts("c.pt2", image_size=[64]))
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), tmp_path / "foreign.pt2")
    refused(tmp_path / "foreign.pt2")


HOSTILE = {
    "a function of the system": (b'"torch.ops.aten.exp.default"', b'"torch.os.system"'),
    "a file": (b'"torch.ops.aten.exp.default"', b'"torch.ops.aten.from_file.default"'),
    "a guard that runs": (b"\"L['depth_m'].size()[0] == ", b"\"__import__('os').system('x') == "),
    "a size that runs": (b"\"Symbol('s", b"\"__import__('os').system('s"),
    "a pickle": (b'"use_pickle": false', b'"use_pickle": true'),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_pt2_that_would_run_something_is_not_loaded(made: Made, what: str, tmp_path: Path) -> None:
    """`torch.export.load` would do it; a checksum does not help, whoever changes a file writes a new one."""
    found, put = HOSTILE[what]
    seen = []

    def change(name: str, content: bytes) -> bytes:
        if name.endswith(".json") and found in content:
            seen.append(name)
        return content.replace(found, put) if name.endswith(".json") else content

    path = rewritten(made, tmp_path / "x.pt2", change)
    assert seen, "the file does not hold what is replaced"
    assert "not allowed" in refused(path)


@pytest.mark.parametrize("more", ["/data/sample_inputs/other.pt", "/data/aotinductor/model/x.so"])
def test_a_pt2_with_a_pickle_or_a_library_is_not_loaded(made: Made, more: str, tmp_path: Path) -> None:
    """A record that no network needs."""
    assert "nothing of it was run" in refused(
        rewritten(made, tmp_path / "x.pt2", lambda _, content: content, more)
    )
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("x/byteorder", b"little")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x/byteorder", b"little")
    with zipfile.ZipFile(twice) as archive, pytest.raises(ValueError, match="twice"):
        _require_plain(archive)


def test_a_foreign_onnx_file_is_refused_even_if_sealed(tmp_path: Path) -> None:
    """It does not say which box it wants."""
    onnx = pytest.importorskip("onnx", reason="onnx is an extra")
    pytest.importorskip("onnxruntime", reason="onnxruntime is an extra")
    helper, path = onnx.helper, tmp_path / "x.onnx"
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    assert "not written by src.tools.export" in refused(path)
    content = model.SerializeToString()
    path.write_bytes(content + seal(crc32(io.BytesIO(content))))
    assert "does not say what it is" in refused(path)
    assert [p.key for p in onnx.load(path).metadata_props] == ["utnet_crc32"]


def test_without_onnxruntime_or_its_device_it_is_said_how_to_install(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ImportError's pages do not name our file of requirements."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is an extra")
    with pytest.raises(ConfigError, match=r"device cuda: this onnxruntime has .*onnxruntime-gpu"):
        open_exported(made.file(".onnx"), "cuda")
    with pytest.raises(ConfigError, match="'gpu0'"):
        open_exported(made.file(".onnx"), "gpu0")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install --group export" in refused(made.file(".onnx"), ConfigError)
