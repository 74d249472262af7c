"""Hand model files: the official form loads without chumpy, everything else is refused in one clear line."""

from __future__ import annotations

import dataclasses
import io
import logging
import pickle
import struct
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import sparse

from src.errors import AssetError
from src.hand import mano_assets
from src.hand.joints import MANO_PARENTS
from src.hand.mano_assets import STANDIN_KEY, HandAsset, banner, load_hand_asset


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes and text as Python 2 did: raw strings, to be read as latin-1."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _raw(self, value: bytes | str) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[bytes] = _raw
    dispatch[str] = _raw


def _dump_like_python2(content: object) -> bytes:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def _library_class(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> type:
    """A class that pickles under a name of a library that is not there."""
    parent = module.rpartition(".")[0]
    for each in (parent, module):
        if each and each not in sys.modules:
            monkeypatch.setitem(sys.modules, each, types.ModuleType(each))
    made = type(name, (), {"__module__": module})
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return made


def _with(kind: type, **fields: Any) -> Any:
    made = kind()
    made.__dict__.update(fields)
    return made


def _fields(asset: HandAsset) -> dict[str, Any]:
    """MANO's own keys, plain arrays, no marker of the stand-in."""
    parents = np.array(MANO_PARENTS)
    return {
        "v_template": asset.v_template,
        "f": asset.faces.astype(np.uint32),
        "shapedirs": asset.shapedirs,
        "posedirs": asset.posedirs,
        "weights": asset.lbs_weights,
        "J_regressor": asset.joint_regressor,
        "J": asset.joint_regressor @ asset.v_template,
        "kintree_table": np.stack([np.where(parents < 0, 2**32 - 1, parents), np.arange(16)]).astype(
            np.uint32
        ),
        "hands_mean": asset.hands_mean,
        "hands_components": np.eye(45),
        "hands_coeffs": np.zeros((2, 45)),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


def _save(path: Path, fields: dict[str, Any]) -> Path:
    path.write_bytes(pickle.dumps(fields, protocol=2))
    return path


def test_official_form_loads_without_chumpy(
    asset: HandAsset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's MANO_RIGHT.pkl (chumpy Select and Ch, old scipy csc, Python 2 strings) is read as is."""
    path = tmp_path / "MANO_RIGHT.pkl"
    with monkeypatch.context() as libraries:
        ch = _library_class(libraries, "chumpy.ch", "Ch")
        select = _library_class(libraries, "chumpy.reordering", "Select")
        csc = _library_class(libraries, "scipy.sparse.csc", "csc_matrix")
        fields = _fields(asset)
        # As chumpy stores it: the shape directions chosen out of a longer array.
        longer = np.concatenate([asset.shapedirs, np.full((778, 3, 4), 7.0)], axis=2)
        chosen = np.arange(longer.size).reshape(longer.shape)[:, :, :10].ravel()
        fields["shapedirs"] = _with(
            select, a=_with(ch, x=longer, _dirty_vars=set()), idxs=chosen, preferred_shape=(778, 3, 10)
        )
        fields["v_template"] = _with(ch, x=asset.v_template, _dirty_vars=set(), _itr=None)
        matrix = sparse.csc_matrix(asset.joint_regressor)
        fields["J_regressor"] = _with(
            csc, data=matrix.data, indices=matrix.indices, indptr=matrix.indptr, _shape=(16, 778), maxprint=50
        )
        path.write_bytes(_dump_like_python2(fields))
    content = path.read_bytes()
    for name in (
        b"chumpy.ch\nCh",
        b"chumpy.reordering\nSelect",
        b"scipy.sparse.csc\ncsc_matrix",
        b"__builtin__\nset",
    ):
        assert name in content
    assert "chumpy" not in sys.modules
    loaded = load_hand_asset(path)
    assert "chumpy" not in sys.modules
    assert loaded.fingerprint == asset.fingerprint
    assert not loaded.is_standin
    assert banner(loaded) is None


def test_modern_scipy_regressor_loads(asset: HandAsset, tmp_path: Path) -> None:
    """A file saved again with today's scipy (another module name, protocol 5) is the same hand."""
    fields = {**_fields(asset), "J_regressor": sparse.csc_matrix(asset.joint_regressor)}
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps(fields, protocol=5))
    assert load_hand_asset(path).fingerprint == asset.fingerprint


def test_repeated_entries_of_a_sparse_regressor_add_up(asset: HandAsset, tmp_path: Path) -> None:
    """A regressor stored with entries in two parts, as assembled matrices are, puts no joint elsewhere."""
    whole = sparse.csc_matrix(asset.joint_regressor)
    halves = sparse.csc_matrix(
        (np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2), 2 * whole.indptr), shape=whole.shape
    )
    path = _save(tmp_path / "MANO_RIGHT.pkl", {**_fields(asset), "J_regressor": halves})
    np.testing.assert_array_equal(load_hand_asset(path).joint_regressor, asset.joint_regressor)


class _Hostile:
    """Touches a file when it is unpickled by an ordinary reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.path}",)


def test_hostile_file_is_refused_by_name(asset: HandAsset, tmp_path: Path) -> None:
    """A MANO file from the wrong site runs nothing and is named."""
    trace = tmp_path / "it-ran"
    path = _save(tmp_path / "MANO_RIGHT.pkl", {**_fields(asset), "extra": _Hostile(trace)})
    with pytest.raises(AssetError, match=r"MANO_RIGHT\.pkl.*(posix|nt)\.system"):
        load_hand_asset(path)
    assert not trace.exists()
    assert list(tmp_path.glob("*.npz")) == []


def test_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    """Lesson 2: no hand model is an error, with the way out; never a model of zeros."""
    with pytest.raises(AssetError) as caught:
        load_hand_asset(tmp_path / "MANO_RIGHT.pkl")
    for part in ("https://mano.is.tue.mpg.de", "data/mano/MANO_RIGHT.pkl", "config/demo.yaml", str(tmp_path)):
        assert part in str(caught.value)


def test_left_hand_is_refused(asset: HandAsset, tmp_path: Path) -> None:
    """A left hand would train and score badly without a word; also when its mean pose is flat."""
    mirrored = _fields(asset)
    mirrored["v_template"] = asset.v_template * [-1, 1, 1]
    mirrored["shapedirs"] = asset.shapedirs * np.array([-1, 1, 1])[:, None]
    mean = asset.hands_mean.reshape(15, 3) * [1, -1, -1]
    for number, pose in enumerate((mean.reshape(45), np.zeros(45))):
        with pytest.raises(AssetError, match="left hand"):
            load_hand_asset(_save(tmp_path / f"{number}.pkl", {**mirrored, "hands_mean": pose}))
    right = load_hand_asset(_save(tmp_path / "flat.pkl", {**_fields(asset), "hands_mean": np.zeros(45)}))
    assert right.v_template.shape == (778, 3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("v_template", np.zeros((6890, 3)), r"v_template: shape \(6890, 3\), want \(778, 3\)"),
        ("shapedirs", np.zeros((778, 3, 45)), r"shapedirs: shape \(778, 3, 45\), want \(778, 3, 10\)"),
        ("posedirs", np.zeros((778, 3, 45)), "posedirs"),
        ("weights", np.zeros((778, 16)), "weights"),
        ("f", np.full((1538, 3), 778, np.uint32), "0..777"),
        ("hands_mean", np.full(45, np.nan), "hands_mean"),
        ("kintree_table", np.zeros((2, 16), np.uint32), "kinematic tree"),
        ("J_regressor", "text", "J_regressor is a str"),
        ("J_regressor", np.full((16, 778), 1.01 / 778), r"rows of J_regressor sum to 1 \+- 0\.01, want 1"),
    ],
)
def test_wrong_fields_are_named(asset: HandAsset, tmp_path: Path, key: str, value: Any, message: str) -> None:
    """SMPL's or another release's file is refused with the field, what it has and what is wanted."""
    path = _save(tmp_path / "MANO_RIGHT.pkl", {**_fields(asset), key: value})
    with pytest.raises(AssetError, match=message):
        load_hand_asset(path)


def test_missing_field_and_foreign_content(asset: HandAsset, tmp_path: Path) -> None:
    """A pickle of something else, a truncated download and a web page: one line each."""
    fields = _fields(asset)
    del fields["weights"]
    with pytest.raises(AssetError, match="weights"):
        load_hand_asset(_save(tmp_path / "a.pkl", fields))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(AssetError, match="list"):
        load_hand_asset(tmp_path / "b.pkl")
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(_fields(asset), protocol=2)[:100_000])
    with pytest.raises(AssetError, match="100000 bytes"):
        load_hand_asset(tmp_path / "c.pkl")
    (tmp_path / "d.pkl").write_bytes(b"<!DOCTYPE html><html>please log in</html>")
    with pytest.raises(AssetError, match=r"d\.pkl"):
        load_hand_asset(tmp_path / "d.pkl")


def test_cache_is_used_replaced_and_optional(
    asset: HandAsset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The second start reads arrays only; a broken or foreign cache never decides what is loaded."""
    path = _save(tmp_path / "MANO_RIGHT.pkl", _fields(asset))
    first = load_hand_asset(path)
    (cache,) = tmp_path.glob(".utnet/hand-*/posedirs.npy")

    def unexpected(*_: object, **__: object) -> object:
        raise AssertionError("the pickle was read again")

    with monkeypatch.context() as patched:
        patched.setattr(mano_assets.safe_pickle, "load", unexpected)
        second = load_hand_asset(path)
    for field in dataclasses.fields(HandAsset):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))

    for damaged in (
        cache.read_bytes()[:5000],
        bytes([cache.read_bytes()[-1] ^ 1]).rjust(cache.stat().st_size),
    ):
        next(tmp_path.glob(".utnet/hand-*/posedirs.npy")).write_bytes(damaged)
        assert load_hand_asset(path).fingerprint == first.fingerprint

    moved = {**_fields(asset), "v_template": asset.v_template + 0.001}
    _save(path, moved)
    assert load_hand_asset(path).v_template[0, 0] == moved["v_template"][0, 0]

    # A folder where the arrays cannot be put: a file of its name is in the way.
    (tmp_path / "sub").mkdir()
    blocked = _save(tmp_path / "sub/MANO_RIGHT.pkl", _fields(asset))
    (tmp_path / "sub/.utnet").touch()
    with caplog.at_level(logging.INFO):
        assert load_hand_asset(blocked).fingerprint == first.fingerprint
    assert "are not kept (hand model: cannot write to" in caplog.text


def test_standin_is_recognised(asset: HandAsset, standin_path: Path) -> None:
    """Nobody mistakes a stand-in number for a MANO number: the marker survives the cache."""
    assert asset.is_standin
    assert load_hand_asset(standin_path).is_standin
    text = banner(asset)
    assert text is not None
    assert "STAND-IN" in text
    content = pickle.loads(standin_path.read_bytes())
    assert STANDIN_KEY in content
    assert content["J_regressor"].format == "csc"


def test_fingerprint_follows_every_array(asset: HandAsset, tmp_path: Path) -> None:
    """A checkpoint of one hand is not evaluated with another that differs in a single weight."""
    seen = {asset.fingerprint}
    for key in ("v_template", "shapedirs", "posedirs", "hands_mean"):
        changed = _fields(asset)
        changed[key] = changed[key].copy()
        changed[key].flat[5] += 1e-6
        seen.add(load_hand_asset(_save(tmp_path / f"{key}.pkl", changed)).fingerprint)
    assert len(seen) == 5
