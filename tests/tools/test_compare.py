"""The comparison of two validations: paired, honest about what it can say, refused where frames differ."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from src.runtime.seed import stream
from src.tools import compare

SEQUENCES, FRAMES = 12, 50


def names(sequences: int = SEQUENCES, frames: int = FRAMES) -> list[str]:
    """Two cameras of each motion."""
    return [f"train/S{k // 2:02d}{k % 2}/{f:04d}" for k in range(sequences) for f in range(frames)]


def errors(seed: int, count: int = SEQUENCES * FRAMES) -> np.ndarray:
    return 10.0 + stream(seed, "errors").gamma(4.0, 2.0, count)


def write(
    path: Path,
    values: np.ndarray,
    frames: list[str] | None = None,
    *,
    split: str = "val",
    split_hash: str = "abc",
    unit: str = "mm",
    **more: np.ndarray,
) -> Path:
    """A per-sample file as `write_per_sample` makes it, without predictions."""
    count = len(values)
    arrays = {
        "sample_index": np.arange(count),
        "frame": np.array(names() if frames is None else frames),
        "mpjpe_mm": values,
        "pa_mpjpe_mm": values / 2.0,
        "loss": values / 100.0,
        "label_usable": np.ones(count, bool),
        **more,
    }
    columns = np.array(list(arrays))
    facts = {"split": np.array(split), "split_hash": np.array(split_hash)}
    np.savez(path, **arrays, columns=columns, units=np.array([unit] * len(columns)), **facts)
    return path


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = compare.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out if status == 0 else captured.err


def test_a_small_steady_gain_is_seen_through_large_errors(tmp_path, capsys) -> None:
    """Errors vary by 4 mm between frames: unpaired, a gain of 0.2 mm would drown."""
    a = errors(0)
    noise = stream(1, "noise").normal(0.0, 0.1, len(a))
    files = write(tmp_path / "a.npz", a), write(tmp_path / "b.npz", a - 0.2 + noise)
    status, text = report(capsys, *files)
    assert status == 0
    assert "B is better than A" in text
    assert f"A {a.mean():.4f}, B {(a - 0.2 + noise).mean():.4f}" in text
    low, high = map(float, re.search(r"interval \[(\S+), (\S+)\]", text).groups())
    assert -0.25 < low < high < -0.15
    assert "600 of 600 frames" in text
    assert f"better in {np.mean(noise < 0.2):.1%} of the frames" in text
    _, text = report(capsys, *files[::-1])
    assert "B is worse than A" in text


@pytest.mark.parametrize("metric", ["xyz_sc_tr_al_auc3d", "f_score_5", "f_al_score_15"])
def test_more_of_a_score_is_better(metric, tmp_path, capsys) -> None:
    """An area under a curve and an F-score grow with quality: read as errors, the worse network wins."""
    scores = stream(0, "scores").uniform(0.4, 0.6, SEQUENCES * FRAMES)
    a = write(tmp_path / "a.npz", errors(0), **{metric: scores})
    b = write(tmp_path / "b.npz", errors(0), **{metric: scores + 0.1})
    status, text = report(capsys, a, b, "--metric", metric)
    assert status == 0
    assert "higher is better" in text
    assert "B is better than A" in text
    assert "B is better in 100.0% of the frames" in text


def test_frames_of_one_sequence_do_not_make_a_difference_sure(tmp_path, capsys) -> None:
    """B is 3 mm better in one sequence, 50 frames: over frames that looks sure, over sequences it is not."""
    a = errors(0)
    b = a + stream(1, "noise").normal(0.0, 0.01, len(a))
    b[:FRAMES] -= 3.0
    status, text = report(capsys, write(tmp_path / "a.npz", a), write(tmp_path / "b.npz", b))
    assert status == 0
    assert "no difference seen at this level (95%)" in text
    assert "Frames of one sequence are not independent" in text
    assert "over 12 sequences" in text
    _, text = report(capsys, tmp_path / "a.npz", tmp_path / "b.npz", "--group", "motion")
    assert "over 6 motions" in text
    assert "with only 6 of them the interval is narrower than it should be" in text


def test_one_sequence_gives_no_verdict(tmp_path, capsys) -> None:
    """A difference in one recording says nothing about another."""
    frames = names(1)
    a = errors(0, FRAMES)
    files = write(tmp_path / "a.npz", a, frames), write(tmp_path / "b.npz", a - 1.0, frames)
    status, text = report(capsys, *files)
    assert status == 0
    assert "Verdict: none" in text
    assert "interval [" not in text
    assert "Difference B - A: -1.0000" in text


def test_equal_files_are_equal(tmp_path, capsys) -> None:
    """The same checkpoint twice must not look like progress."""
    files = write(tmp_path / "a.npz", errors(0)), write(tmp_path / "b.npz", errors(0))
    _, text = report(capsys, *files)
    assert "no difference seen" in text
    assert "better in 0.0% of the frames, worse in 0.0%, equal in 100.0%" in text
    assert text.count(": none") == 2


def test_the_frames_that_changed_most_are_named_in_both_directions(tmp_path, capsys) -> None:
    """They are what one looks at next."""
    a = errors(0)
    b = a.copy()
    b[[7, 300]] += [5.0, 9.0]
    b[[20, 400]] -= [6.0, 2.0]
    files = write(tmp_path / "a.npz", a), write(tmp_path / "b.npz", b)
    _, text = report(capsys, *files, "--top", 2)
    worse, better = text.split("Frames that are most worse")[1].split("Frames that are most better")
    frames = names()
    assert [line.split()[0] for line in worse.splitlines()[1:]] == [frames[300], frames[7]]
    assert [line.split()[0] for line in better.splitlines()[1:]] == [frames[20], frames[400]]
    assert "+9.0000" in worse
    assert "-6.0000" in better
    by_sequence = text.split("By sequence")[1].split("Frames that")[0].splitlines()[1:]
    assert len(by_sequence) == SEQUENCES
    assert by_sequence[0].split()[0] == "train/S030"
    assert by_sequence[0].split()[-1] == f"{9.0 / FRAMES:+.4f}"


def test_any_column_can_be_compared_and_f_scores_grow(tmp_path, capsys) -> None:
    """More F-score, or area under a curve, is better: the sign of the verdict must follow the metric."""
    a = errors(0)
    score = stream(2, "f").uniform(0.2, 0.8, len(a))
    for name in ("xyz_auc3d", "f_al_score_15", "f_score_5"):
        files = [write(tmp_path / f"{k}.npz", a, **{name: score + 0.1 * k}) for k in range(2)]
        _, text = report(capsys, *files, "--metric", name)
        assert "higher is better" in text, name
        assert "B is better than A" in text
        assert "better in 100.0%" in text
        assert "most worse in B: none" in text
    status, text = report(capsys, *files, "--metric", "mpjpe")
    assert status == 2
    assert "mpjpe_mm, pa_mpjpe_mm, loss, f_score_5" in text


def test_rows_without_a_number_are_left_out_and_counted(tmp_path, capsys) -> None:
    """A network that fails on hard frames must not look better for it unsaid."""
    a, b = errors(0), errors(0) - 0.5
    usable = np.ones(len(a), bool)
    usable[:3] = False
    a[:3] = b[:3] = np.nan
    b[[10, 11]] = np.nan
    files = (
        write(tmp_path / "a.npz", a, label_usable=usable),
        write(tmp_path / "b.npz", b, label_usable=usable),
    )
    status, text = report(capsys, *files)
    assert status == 0
    assert "Compared: 595 of 600 frames" in text
    assert "3 frames without a usable label" in text
    assert "2 frames not finite in B (first: train/S000/0010): this flatters B" in text
    assert "Difference B - A: -0.5000" in text
    b[:] = np.nan
    status, text = report(capsys, files[0], write(tmp_path / "b.npz", b))
    assert status == 2
    assert "nothing to compare" in text


@pytest.mark.parametrize("without", ["a", "b"])
def test_a_label_that_one_file_lacks_is_no_failure_of_its_network(tmp_path, capsys, without: str) -> None:
    """Labels came or went between two evaluations: such a frame flatters neither, and is counted as it is."""
    usable, values = np.ones(SEQUENCES * FRAMES, bool), errors(0)
    usable[:4] = False
    files = [
        write(tmp_path / "a.npz", values, label_usable=usable | (without != "a")),
        write(tmp_path / "b.npz", values, label_usable=usable | (without != "b")),
    ]
    values = np.where(usable, values, np.nan)
    write(tmp_path / f"{without}.npz", values, label_usable=usable)
    status, text = report(capsys, *files)
    assert status == 0
    assert "Left out: 4 frames without a usable label" in text
    assert "not finite" not in text


@pytest.mark.parametrize(
    "metric", ["mpvpe_mm", "pa_mpvpe_mm", "mesh_mean3d", "mesh_al_auc3d", "f_score_5", "f_al_score_15"]
)
def test_meshes_without_labels_are_not_failures(tmp_path, capsys, metric) -> None:
    """A frame whose mesh nobody labelled is nan in both files; no network failed on it."""
    a = errors(0)
    labelled = np.ones(len(a))
    labelled[:5] = 0.0
    mesh = np.where(labelled == 1.0, a, np.nan)
    files = [
        write(tmp_path / f"{name}.npz", a, mesh_usable=labelled, **{metric: mesh - gain})
        for name, gain in (("a", 0.0), ("b", 1.0))
    ]
    _, text = report(capsys, *files, "--metric", metric)
    assert "5 frames without a usable label" in text
    assert "not finite" not in text
    _, text = report(capsys, *files)
    assert "600 of 600" in text


def test_other_frames_are_refused_unless_the_common_ones_are_asked_for(tmp_path, capsys) -> None:
    """Means over different frames differ for reasons that are no merit of the network."""
    a = errors(0)
    reverse = slice(None, 9, -1)
    files = (
        write(tmp_path / "a.npz", a[:-5], names()[:-5]),
        write(tmp_path / "b.npz", a[reverse] - 1.0, names()[reverse]),
    )
    status, text = report(capsys, *files)
    assert status == 2
    assert "585 frames are in both; 10 only in A (train/S000/0000, " in text
    assert "5 only in B" in text
    assert "--common" in text
    status, text = report(capsys, *files, "--common", "--csv", tmp_path / "common.csv")
    assert status == 0
    assert "585 of 585 frames" in text
    assert "Difference B - A: -1.0000" in text
    with (tmp_path / "common.csv").open() as file:
        differences = [float(row["b_minus_a"]) for row in csv.DictReader(file)]
    # By name, not by row: a mean does not tell how frames were paired.
    assert differences == pytest.approx([-1.0] * 585), "mm between the two numbers of one frame"
    reordered = write(tmp_path / "c.npz", a[::-1], names()[::-1])
    status, text = report(capsys, write(tmp_path / "a.npz", a), reordered)
    assert status == 2
    assert "in another order" in text
    other = write(tmp_path / "d.npz", a, [name.replace("train", "evaluation") for name in names()])
    status, text = report(capsys, tmp_path / "a.npz", other, "--common")
    assert status == 2
    assert "0 frames are in both" in text


def test_the_csv_holds_every_compared_frame_exactly(tmp_path, capsys) -> None:
    """Whoever plots the differences must get the numbers, not their print."""
    a, b = errors(0), errors(1)
    files = write(tmp_path / "a.npz", a), write(tmp_path / "b.npz", b)
    status, _ = report(capsys, *files, "--csv", tmp_path / "out" / "frames.csv")
    assert status == 0
    with (tmp_path / "out" / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == names()
    for column, values in (("a_mpjpe_mm", a), ("b_mpjpe_mm", b), ("b_minus_a", b - a)):
        assert [float(row[column]) for row in rows] == values.tolist(), column


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"split": "evaluation"}, "A is of split 'val', B of 'evaluation'"),
        ({"split_hash": "def"}, "A is of split abc, B of def: other labels"),
        ({"unit": "m"}, "mpjpe_mm is in 'mm' in A and in 'm' in B"),
    ],
)
@pytest.mark.parametrize("common", [[], ["--common"]])
def test_numbers_of_other_things_are_not_compared(tmp_path, capsys, other, message, common) -> None:
    """Edited labels, another split or another unit gave a verdict about the network."""
    a = errors(0)
    files = write(tmp_path / "a.npz", a), write(tmp_path / "b.npz", a - 1.0, **other)
    status, text = report(capsys, *files, *common)
    assert status == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1


def test_common_frames_of_two_divisions_are_compared_when_asked_for(tmp_path, capsys) -> None:
    """Another seed of the division is another split of the same labels: what both hold out is comparable."""
    a = errors(0)
    b = write(tmp_path / "b.npz", a[5:] - 1.0, names()[5:], split_hash="def")
    status, text = report(capsys, write(tmp_path / "a.npz", a), b, "--common")
    assert status == 0
    assert "(600 frames of val, split abc)" in text
    assert "(595 frames of val, split def)" in text


def test_a_flag_is_no_metric(tmp_path, capsys) -> None:
    """Whether a mesh is labelled says nothing about the network that was scored on it."""
    a = errors(0)
    files = [write(tmp_path / f"{name}.npz", a, mesh_usable=np.ones(len(a))) for name in "ab"]
    status, text = report(capsys, *files, "--metric", "mesh_usable")
    assert status == 2
    assert "has no metric 'mesh_usable'; it has mpjpe_mm, pa_mpjpe_mm, loss" in text


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
        status, text = report(capsys, good, bad, "--top", 0)
        assert status == 2 or "Difference B - A: +0.0000" in text
        assert status == 0 or len(text.strip().splitlines()) == 1


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def not_ours(path: Path) -> None:
    np.savez(path, frame=np.array(["a"]), joints=np.zeros(3))


def text_file(path: Path) -> None:
    path.write_text("frame,mpjpe\n")


def pickled(path: Path) -> None:
    np.savez(path, frame=np.array([{}], dtype=object), label_usable=0, columns=0, units=0)


def scalars(path: Path) -> None:
    write(path, errors(0))
    with np.load(path) as file:
        np.savez(path, **{**file, "frame": np.array("a")})


def twice(path: Path) -> None:
    write(path, errors(0, 2), ["train/S000/0001"] * 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (torn, "is torn, or no .npz of arrays"),
        (one_array, "is torn, or no .npz of arrays"),
        (not_ours, "holds no label_usable, columns, units, split, split_hash"),
        (scalars, "holds no frame"),
        (text_file, "is torn, or no .npz of arrays"),
        (pickled, "is torn, or no .npz of arrays"),
        (twice, "a frame is there twice"),
        (Path.unlink, "no such file"),
    ],
)
def test_a_file_that_is_not_a_per_sample_file_is_named(tmp_path, capsys, spoil, message: str) -> None:
    """A disk that filled up, or a file picked by mistake: one line, status 2, no traceback."""
    good, bad = write(tmp_path / "good.npz", errors(0)), write(tmp_path / "bad.npz", errors(0))
    spoil(bad)
    status, text = report(capsys, good, bad)
    assert status == 2
    assert "bad.npz" in text
    assert message in text
    assert len(text.strip().splitlines()) == 1
