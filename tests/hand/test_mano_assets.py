"""Hand model files: the official form loads without chumpy, everything else is refused in one clear line."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import sparse

from src.errors import AssetError
from src.hand.joints import MANO_PARENTS
from src.hand.mano_assets import HandAsset, banner, load_hand_asset


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes and text as Python 2 did: raw strings, to be read as latin-1."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _raw(self, value: bytes | str) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[bytes] = _raw
    dispatch[str] = _raw


class Ch:
    """In a file: of chumpy.ch."""


class Select:
    """In a file: of chumpy.reordering."""


class csc_matrix:  # noqa: N801  # the library's name
    """In a file: of scipy.sparse.csc."""


def _dump_like_python2(content: object) -> bytes:
    """A pickle that names classes of libraries that are not there."""
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(content)
    written = buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    for kind, module in ((Ch, "chumpy.ch"), (Select, "chumpy.reordering"), (csc_matrix, "scipy.sparse.csc")):
        ours, theirs = (f"c{place}\n{kind.__name__}\n".encode() for place in (__name__, module))
        assert ours in written
        written = written.replace(ours, theirs)
    return written


def _with(kind: type, **fields: Any) -> Any:
    made = kind()
    made.__dict__.update(fields)
    return made


def _fields(asset: HandAsset) -> dict[str, Any]:
    """MANO's own keys, plain arrays, no marker of the stand-in."""
    parents = np.where(np.array(MANO_PARENTS) < 0, 2**32 - 1, MANO_PARENTS)
    return {
        "v_template": asset.v_template,
        "f": asset.faces.astype(np.uint32),
        "shapedirs": asset.shapedirs,
        "posedirs": asset.posedirs,
        "weights": asset.lbs_weights,
        "J_regressor": asset.joint_regressor,
        "kintree_table": np.stack([parents, np.arange(16)]).astype(np.uint32),
        "hands_mean": asset.hands_mean,
        "hands_components": np.eye(45),
        "bs_style": "lbs",
    }


def _saved(folder: Path, fields: object, protocol: int = 2) -> Path:
    """A model file of this content."""
    path = folder / "MANO_RIGHT.pkl"
    path.write_bytes(fields if isinstance(fields, bytes) else pickle.dumps(fields, protocol=protocol))
    return path


def test_official_form_loads_without_chumpy(asset: HandAsset, tmp_path: Path) -> None:
    """A user's MANO_RIGHT.pkl (chumpy Select and Ch, old scipy csc, Python 2 strings) is read as is; and a
    file saved again (another module name, protocol 5), its entries in two parts, is the same hand.
    """
    # As chumpy stores it: the shape directions chosen out of a longer array.
    longer = np.concatenate([asset.shapedirs, np.full((778, 3, 4), 7.0)], axis=2)
    chosen = np.arange(longer.size).reshape(longer.shape)[:, :, :10].ravel()
    whole = _with(Ch, x=longer, _dirty_vars=set())
    csc = sparse.csc_matrix(asset.joint_regressor)
    fields = {
        **_fields(asset),
        "shapedirs": _with(Select, a=whole, idxs=chosen, preferred_shape=(778, 3, 10)),
        "v_template": _with(Ch, x=asset.v_template, _dirty_vars=set(), _itr=None),
        "J_regressor": _with(
            csc_matrix, data=csc.data, indices=csc.indices, indptr=csc.indptr, _shape=csc.shape, maxprint=50
        ),
    }
    content = _dump_like_python2(fields)
    assert b"__builtin__\nset" in content
    loaded = load_hand_asset(_saved(tmp_path, content))
    assert "chumpy" not in sys.modules
    assert loaded.fingerprint == asset.fingerprint
    assert not loaded.is_standin
    assert banner(loaded) is None
    parts = np.repeat(csc.data / 2, 2), np.repeat(csc.indices, 2), 2 * csc.indptr
    today = {**_fields(asset), "J_regressor": sparse.csc_matrix(parts, shape=csc.shape)}
    assert load_hand_asset(_saved(tmp_path, today, protocol=5)).fingerprint == asset.fingerprint


class _Hostile:
    """Touches a file when it is unpickled by an ordinary reader."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch it-ran",)


def test_foreign_content_is_one_line(
    asset: HandAsset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file from the wrong site, which runs nothing; a pickle of something else; a truncated download; a web
    page.
    """
    monkeypatch.chdir(tmp_path)
    for content, said in (
        ({**_fields(asset), "extra": _Hostile()}, r"MANO_RIGHT\.pkl.*(posix|nt)\.system"),
        ([1, 2], "list"),
        (pickle.dumps(_fields(asset), protocol=2)[:100_000], "100000 bytes"),
        (b"<!DOCTYPE html><html>please log in</html>", r"MANO_RIGHT\.pkl"),
    ):
        with pytest.raises(AssetError, match=said):
            load_hand_asset(path := _saved(tmp_path, content))
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    """Lesson 2: no hand model is an error, with the way out; never a model of zeros."""
    with pytest.raises(AssetError) as caught:
        load_hand_asset(tmp_path / "MANO_RIGHT.pkl")
    for part in ("https://mano.is.tue.mpg.de", "data/mano/MANO_RIGHT.pkl", "config/demo.yaml", str(tmp_path)):
        assert part in str(caught.value)


def test_left_hand_is_refused(asset: HandAsset, tmp_path: Path) -> None:
    """A left hand would train and score badly without a word; also when its mean pose is flat."""
    mirrored = {
        **_fields(asset),
        "v_template": asset.v_template * [-1, 1, 1],
        "shapedirs": asset.shapedirs * np.array([-1, 1, 1])[:, None],
    }
    mean = asset.hands_mean.reshape(15, 3) * [1, -1, -1]
    for pose in (mean.reshape(45), np.zeros(45)):
        with pytest.raises(AssetError, match="left hand"):
            load_hand_asset(_saved(tmp_path, {**mirrored, "hands_mean": pose}))
    load_hand_asset(_saved(tmp_path, {**_fields(asset), "hands_mean": np.zeros(45)}))


def _csc(**parts: Any) -> Any:
    """A sparse regressor whose parts contradict each other."""
    matrix = sparse.csc_matrix(np.ones((16, 778)))
    matrix.__dict__.update(parts)
    return matrix


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("v_template", np.zeros((6890, 3)), r"v_template has shape \(6890, 3\), want \(778, 3\)"),
        ("shapedirs", np.zeros((778, 3, 45)), r"shapedirs has shape \(778, 3, 45\), want \(778, 3, 10\)"),
        ("weights", None, r"fields \['weights'\] are missing"),
        ("f", np.full((1538, 3), 778, np.uint32), "0..777"),
        ("hands_mean", np.full(45, np.nan), "hands_mean holds numbers that are not finite"),
        ("hands_mean", np.full(45, "x"), "hands_mean has dtype <U1, want numbers"),
        ("kintree_table", np.zeros((2, 16), np.uint32), "kinematic tree"),
        ("J_regressor", "text", "J_regressor is a str"),
        ("J_regressor", np.full((16, 778), 1.01 / 778), r"rows of J_regressor sum to 1 \+- 0\.01, want 1"),
        ("J_regressor", _csc(indices=np.full(16 * 778, 999, np.int32)), "J_regressor: .* contradicts itself"),
        ("J_regressor", _csc(_shape=(10**9, 10**9)), "J_regressor: .* contradicts itself"),
    ],
)
def test_wrong_fields_are_named(asset: HandAsset, tmp_path: Path, key: str, value: Any, message: str) -> None:
    """SMPL's or another release's file is refused with the field, what it has and what is wanted."""
    fields = {**_fields(asset), key: value}
    if value is None:
        del fields[key]
    with pytest.raises(AssetError, match=message):
        load_hand_asset(_saved(tmp_path, fields))


def test_fingerprint_follows_every_array(asset: HandAsset, tmp_path: Path) -> None:
    """A checkpoint of one hand is not evaluated with another that differs in a single weight."""
    seen = {asset.fingerprint}
    for key in ("v_template", "shapedirs", "posedirs", "hands_mean"):
        changed = _fields(asset)
        changed[key] = changed[key].copy()
        changed[key].flat[5] += 1e-6
        seen.add(load_hand_asset(_saved(tmp_path, changed)).fingerprint)
    assert len(seen) == 5
