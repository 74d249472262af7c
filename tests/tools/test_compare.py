"""The comparison of two validations: paired, honest about what it can say, refused where frames differ."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from src.runtime.seed import stream
from src.tools import compare

SEQUENCES, FRAMES = 24, 25


def names(sequences: int = SEQUENCES, frames: int = FRAMES) -> list[str]:
    """Two cameras of each motion."""
    return [f"train/S{k // 2:02d}{k % 2}/{f:04d}" for k in range(sequences) for f in range(frames)]


def errors(seed: int, count: int = SEQUENCES * FRAMES) -> np.ndarray:
    return 10.0 + stream(seed, "errors").gamma(4.0, 2.0, count)


def write(
    path: Path,
    values: np.ndarray,
    frames: list[str] | np.ndarray | None = None,
    *,
    split: str = "val",
    split_hash: str = "abc",
    unit: str = "mm",
    **more: np.ndarray,
) -> Path:
    """A per-sample file as `write_per_sample` makes it."""
    count = len(values)
    arrays = {
        "sample_index": np.arange(count),
        "frame": np.array(names() if frames is None else frames),
        "mpjpe_mm": values,
        "pa_mpjpe_mm": values / 2.0,
        "loss": values / 100.0,
        "label_usable": np.ones(count, bool),
        "pred_joints_cam_m": np.zeros((count, 21, 3), np.float32),
        **more,
    }
    columns = np.array(list(arrays))
    facts = {"split": np.array(split), "split_hash": np.array(split_hash)}
    np.savez(path, **arrays, columns=columns, units=np.array([unit] * len(columns)), **facts)
    return path


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a comparison says."""
    assert compare.main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which a comparison is refused."""
    assert compare.main([str(a) for a in arguments]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    return error


@pytest.fixture
def pair(tmp_path):
    """Writes A and B: what else is in both files, and in B alone under `other`."""

    def written(a: np.ndarray, b: np.ndarray, *frames: list[str], other=(), **more: object):
        first = write(tmp_path / "a.npz", a, *frames, **more)
        return first, write(tmp_path / "b.npz", b, *frames, **(more | dict(other)))

    return written


def test_a_small_steady_gain_is_seen_through_large_errors(pair, capsys) -> None:
    """Errors vary by 4 mm between frames: unpaired, a gain of 0.2 mm would drown."""
    a = errors(0)
    noise = stream(1, "noise").normal(0.0, 0.1, len(a))
    files = pair(a, a - 0.2 + noise)
    text = report(capsys, *files)
    assert "B is better than A" in text
    assert f"A {a.mean():.4f}, B {(a - 0.2 + noise).mean():.4f}" in text
    low, high = map(float, re.search(r"interval \[(\S+), (\S+)\]", text).groups())
    assert -0.25 < low < high < -0.15
    assert "600 of 600 frames" in text
    assert f"better in {np.mean(noise < 0.2):.1%} of the frames" in text
    assert "B is worse than A" in report(capsys, *files[::-1])


def test_frames_of_one_motion_do_not_make_a_difference_sure(pair, capsys) -> None:
    """B is 3 mm better in one motion, 50 frames of two cameras: over frames or cameras that looks sure."""
    a = errors(0)
    b = a + stream(1, "noise").normal(0.0, 0.01, len(a))
    b[: 2 * FRAMES] -= 3.0
    files = pair(a, b)
    text = report(capsys, *files)
    assert "no difference seen at this level (95%)" in text
    assert "Frames of one motion are not independent" in text
    assert "over 12 motions" in text
    assert "narrower" not in text
    some = 12 * FRAMES
    text = report(capsys, *pair(a[:some], a[:some] - 1.0, names(12)))
    assert "Verdict: B is likely better than A" in text
    assert "with only 6 of them the interval is narrower than it should be" in text
    few = 8 * FRAMES
    text = report(capsys, *pair(a[:few], a[:few] - 1.0, names(8)))
    assert "Verdict: none: all frames are of 4 motions" in text


def test_one_motion_gives_no_verdict(pair, capsys) -> None:
    """A difference in one recording says nothing about another, however many cameras film it."""
    text = report(capsys, *pair(errors(0, 2 * FRAMES), errors(0, 2 * FRAMES) - 1.0, names(2)))
    assert "Verdict: none" in text
    assert "interval [" not in text
    assert "Difference B - A: -1.0000" in text


def test_the_frames_that_changed_most_are_named_in_both_directions(pair, capsys) -> None:
    """They are what one looks at next."""
    a = errors(0)
    b = a.copy()
    b[[7, 300]] += [5.0, 9.0]
    b[[20, 400]] -= [6.0, 2.0]
    text = report(capsys, *pair(a, b), "--top", 2)
    worse, better = text.split("Frames that are most worse")[1].split("Frames that are most better")
    frames = names()
    for part, rows, most in ((worse, (300, 7), "+9.0000"), (better, (20, 400), "-6.0000")):
        lines = [line for line in part.splitlines()[1:] if line.startswith("  ")]
        assert [line.split()[0] for line in lines] == [frames[row] for row in rows]
        assert lines[0].endswith(most)
    by_sequence = text.split("By sequence")[1].split("Frames that")[0].splitlines()[1:]
    assert len(by_sequence) == SEQUENCES
    assert by_sequence[0].split()[0] == "train/S060"
    assert by_sequence[0].split()[-1] == f"{9.0 / FRAMES:+.4f}"


@pytest.mark.parametrize("metric", ["xyz_auc3d", "xyz_sc_tr_al_auc3d", "f_score_5", "f_al_score_15"])
def test_more_of_a_score_is_better(metric, tmp_path, capsys) -> None:
    """An area under a curve and an F-score grow with quality: read as errors, the worse network wins."""
    score = stream(2, "f").uniform(0.2, 0.8, SEQUENCES * FRAMES)
    files = [write(tmp_path / f"{k}.npz", errors(0), **{metric: score + 0.1 * k}) for k in range(2)]
    text = report(capsys, *files, "--metric", metric)
    assert "higher is better" in text
    assert "B is better than A" in text
    assert "better in 100.0%" in text
    assert "most worse in B: none" in text


def test_what_is_no_metric_is_refused_with_the_metrics_there(pair, capsys) -> None:
    """A misspelt name; and whether a mesh is labelled says nothing about the network."""
    files = pair(errors(0), errors(0), mesh_usable=np.ones(SEQUENCES * FRAMES))
    for metric in ("mpjpe", "mesh_usable"):
        said = f"has no metric '{metric}'; it has mpjpe_mm, pa_mpjpe_mm, loss"
        assert said in refusal(capsys, *files, "--metric", metric)


def test_rows_without_a_number_are_left_out_and_counted(pair, capsys) -> None:
    """A network that fails on hard frames must not look better for it unsaid."""
    a, b = errors(0), errors(0) - 0.5
    usable = np.ones(len(a), bool)
    usable[:3] = False
    a[:3] = b[:3] = np.nan
    b[[10, 11]] = np.nan
    text = report(capsys, *pair(a, b, label_usable=usable))
    assert "Compared: 595 of 600 frames" in text
    assert "3 frames without a usable label" in text
    assert "2 frames not finite in B (first: train/S000/0010): this flatters B" in text
    assert "Difference B - A: -0.5000" in text
    assert "nothing to compare" in refusal(capsys, *pair(a, b * np.nan))


@pytest.mark.parametrize("lacking", ["a", "b"])
def test_a_label_that_one_file_lacks_is_no_failure_of_its_network(tmp_path, capsys, lacking: str) -> None:
    """Labels came or went between two evaluations: such a frame flatters neither, and is counted as it is."""
    usable, values = np.ones(SEQUENCES * FRAMES, bool), errors(0)
    usable[:4] = False
    files = [write(tmp_path / f"{name}.npz", values) for name in "ab"]
    write(tmp_path / f"{lacking}.npz", np.where(usable, values, np.nan), label_usable=usable)
    text = report(capsys, *files)
    assert "Left out: 4 frames without a usable label" in text
    assert "not finite" not in text


@pytest.mark.parametrize("metric", ["mpvpe_mm", "pa_mpvpe_mm", "mesh_al_auc3d", "f_score_5"])
def test_meshes_without_labels_are_not_failures(pair, capsys, metric) -> None:
    """A frame whose mesh nobody labelled is nan in both files; no network failed on it."""
    labelled = np.ones(SEQUENCES * FRAMES)
    labelled[:5] = 0.0
    mesh = np.where(labelled == 1.0, errors(1), np.nan)
    files = pair(errors(0), errors(0), mesh_usable=labelled, **{metric: mesh})
    text = report(capsys, *files, "--metric", metric)
    assert "5 frames without a usable label" in text
    assert "not finite" not in text
    assert "600 of 600" in report(capsys, *files)


def test_other_frames_are_refused_unless_the_common_ones_are_asked_for(tmp_path, capsys) -> None:
    """Means over different frames differ for reasons that are no merit of the network."""
    a = errors(0)
    reverse = slice(None, 9, -1)
    files = (
        write(tmp_path / "a.npz", a[:-5], names()[:-5]),
        write(tmp_path / "b.npz", a[reverse] - 1.0, names()[reverse]),
    )
    text = refusal(capsys, *files)
    assert "585 frames are in both; 10 only in A (train/S000/0000, " in text
    assert "5 only in B" in text
    assert "--common" in text
    text = report(capsys, *files, "--common")
    assert "585 of 585 frames" in text
    assert "Difference B - A: -1.0000" in text
    assert "B is better in 100.0% of the frames" in text  # by name: a mean does not tell how they were paired
    whole = write(tmp_path / "a.npz", a)
    assert "in another order" in refusal(capsys, whole, write(tmp_path / "c.npz", a[::-1], names()[::-1]))
    other = write(tmp_path / "d.npz", a, [name.replace("train", "evaluation") for name in names()])
    assert "0 frames are in both" in refusal(capsys, whole, other, "--common")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"split": "evaluation"}, "A is of split 'val', B of 'evaluation'"),
        ({"split_hash": "def"}, "A is of split abc, B of def: other labels"),
        ({"unit": "m"}, "mpjpe_mm is in 'mm' in A and in 'm' in B"),
    ],
)
def test_numbers_of_other_things_are_not_compared(pair, capsys, other, message) -> None:
    """Edited labels, another split or another unit gave a verdict about the network."""
    files = pair(errors(0), errors(0) - 1.0, other=other)
    for common in ((), ("--common",)):
        assert message in refusal(capsys, *files, *common)


def test_common_frames_of_two_divisions_are_compared_when_asked_for(tmp_path, capsys) -> None:
    """Another seed of the division is another split of the same labels: what both hold out is comparable."""
    a = errors(0)
    b = write(tmp_path / "b.npz", a[5:] - 1.0, names()[5:], split_hash="def")
    text = report(capsys, write(tmp_path / "a.npz", a), b, "--common")
    assert "(600 frames of val, split abc)" in text
    assert "(595 frames of val, split def)" in text


def test_no_damage_ends_in_a_traceback(tmp_path, capsys) -> None:
    """A flipped bit can ask for an unknown compression, a password or an array of any size."""
    good, bad = write(tmp_path / "good.npz", errors(0)), tmp_path / "bad.npz"
    content, random = good.read_bytes(), stream(0, "damage")
    directory = content.index(b"PK\x01\x02")
    places = [directory + 8, directory + 10, 6, 8, *random.integers(0, len(content), 60).tolist()]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= int(random.integers(1, 256))
        bad.write_bytes(changed)
        status = compare.main([str(good), str(bad), "--top", "0"])
        out, error = capsys.readouterr()
        assert status == 2 or "Difference B - A: +0.0000" in out
        assert error.count("\n") == (1 if status == 2 else 0)


def resaved(path: Path, **changed: np.ndarray) -> None:
    with np.load(path) as file:
        np.savez(path, **{**file, **changed})


def test_runs_are_compared_by_their_last_validation(tmp_path, capsys) -> None:
    """People name the two runs; the message said that a folder was a torn file."""
    for run, change in (("a", 0.0), ("b", -1.0)):
        (tmp_path / run / "val").mkdir(parents=True)
        write(tmp_path / run / "val" / "epoch_0001.npz", errors(0) + 9)
        write(tmp_path / run / "val" / "epoch_0002.npz", errors(0) + change)
        write(tmp_path / run / "val" / "epoch_0002_rgb.npz", errors(0) + 9)
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "Difference B - A: -1.0000" in capsys.readouterr().out
    assert (tmp_path / "b" / "val" / "compare.html").is_file()
    text = refusal(capsys, tmp_path / "a", tmp_path)
    assert "no val/*.npz of a validation is there" in text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "is torn, or no .npz of arrays"),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "is torn, or no .npz of arrays"),
        (lambda path: path.write_text("frame,mpjpe\n"), "is torn, or no .npz of arrays"),
        (lambda path: resaved(path, frame=np.array([{}], object)), "is torn, or no .npz of arrays"),
        (
            lambda path: np.savez(path, frame=np.array(["a"])),
            "holds no mpjpe_mm, pa_mpjpe_mm, loss, label_usable, pred_joints_cam_m, columns, units, split",
        ),
        (lambda path: resaved(path, frame=np.array("a")), "holds no frame"),
        (lambda path: resaved(path, loss=np.zeros(3)), "columns differ in length"),
        (lambda path: resaved(path, loss=np.full(len(errors(0)), "1.0")), "holds no loss"),
        (lambda path: resaved(path, label_usable=np.full(len(errors(0)), "no")), "holds no label_usable"),
        (lambda path: resaved(path, frame=np.arange(len(errors(0)))), "holds no frame"),
        (
            lambda path: resaved(path, sample_index=np.full(len(errors(0)), "1")),
            "sample_index are no num",
        ),
        (lambda path: resaved(path, pred_joints_cam_m=np.zeros((len(errors(0)), 5, 3))), "want (N, 21, 3)"),
        (lambda path: write(path, np.zeros(0), np.array([], "U1")), "it has no rows"),
        (lambda path: write(path, errors(0, 2), ["train/S000/0001"] * 2), "a frame is there twice"),
        (Path.unlink, "no such file"),
    ],
)
def test_a_file_that_is_not_a_per_sample_file_is_named(pair, capsys, spoil, message: str) -> None:
    """A disk that filled up, or a file picked by mistake: one line that says how to get another."""
    good, bad = pair(errors(0), errors(0))
    spoil(bad)
    text = refusal(capsys, good, bad)
    assert "b.npz is not a per-sample file" in text
    assert message in text
    assert "train.py --evaluate CHECKPOINT" in text
