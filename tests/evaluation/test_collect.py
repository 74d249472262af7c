"""Every sample exactly once for any number of ranks, and every fault named on every rank."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.errors import CollectError, ShapeError
from src.evaluation.collect import Link, collect, find_fault
from src.evaluation.evaluator import EvaluationShard
from src.evaluation.seeded import make_samples
from src.runtime.ranks.distributed import spawn_ranks
from tests.evaluation import ranks

SIZES = [0, 1, 2, 3, 5, 33, 8332]
WORLDS = [1, 2, 3, 4, 5, 8]


@pytest.fixture(scope="module")
def by_world(tmp_path_factory):
    """Rank -> rows of `ranks.digests` for each world."""
    folder = str(tmp_path_factory.mktemp("rows"))
    return {world: spawn_ranks(ranks.digests, world, (SIZES, folder), 120.0) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
def test_any_world_gives_the_bits_of_one_process(by_world, world):
    """A run on other hardware would otherwise report another score for the same checkpoint, and ranks that
    disagree about the score would disagree about the best checkpoint.
    """
    for column, size in enumerate(SIZES):
        assert len({rank[column][0] for rank in by_world[world]}) == 1
        public, digest, lines, in_place = by_world[world][0][column]
        assert (public, digest) == by_world[1][0][column][:2]
        assert in_place
        assert "nan" not in lines[0] or size == 0
        assert lines[1] == f"  Evaluated on {size} samples from all {world} CPU ranks"
        assert lines[2].startswith("  Vertices: MPVPE ")


@functools.cache
def _told() -> list[dict[str, str]]:
    return spawn_ranks(ranks.recoverable_faults, 3, (), 120.0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", ["rank 1 raised ValueError: unreadable frame S/0005"]),
        ("samples", ["disagree about samples", "9 on ranks 0, 2", "10 on rank 1"]),
        ("split", ["disagree about split", "on rank 1"]),
        ("columns", ["about columns: mpvpe_mm, pa_mpvpe_mm, mesh_usable on ", "pa_mpvpe_cm", "on rank 1"]),
        ("column order", ["disagree about columns", "pa_mpvpe_mm, mpvpe_mm, mesh_usable", "on rank 1"]),
        ("column count", ["disagree about columns", "none on rank 1"]),
        ("duplicate", ["1 samples came more than once (first: 8; 8 from ranks 1, 2)"]),
        ("missing", ["4 of 9 samples are missing (first: 4, 5, 6, 7)", "rank 1 holds 0 of the 4 rows"]),
        ("outside", ["index 9 from rank 1 is outside of the split's 9 samples"]),
    ],
)
def test_a_fault_is_named_on_every_rank(fault, words):
    """One rank's fault must stop all of them, with a message that says where to look, and no metric."""
    for told in _told():
        assert all(word in told[fault] for word in words), told[fault]
        assert told[fault].startswith("Validation over 3 CPU ranks: ")
        assert "Nothing was scored" in told[fault]
        assert told["sound"] == "9", "the group is still usable: training may validate again"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stall", "rank 1 did not reach the collection (nothing came for 2 s)"),
        ("stall send", "rank 2 did not deliver its rows (nothing came for 2 s)"),
        ("kill", "rank 1 did not reach the collection (its connection closed"),
        ("stall empty", "rank 1 did not deliver its rows (nothing came for 2 s)"),
        ("stall zero", "rank 0 did not answer about rows (nothing came for 2 s)"),
        ("kill gather", "rank 1 did not deliver its header (its connection closed"),
        ("kill send", "rank 1 did not deliver its rows (its connection closed"),
        ("kill empty", "rank 2 did not deliver its rows (its connection closed"),
        ("kill zero send", "rank 0 did not answer about rows (its connection closed"),
        ("kill zero", "rank 0 did not reach the collection (its connection closed"),
    ],
)
def test_a_rank_that_stalls_or_dies_is_named_by_all_others(fault, words, tmp_path):
    """gloo's own error names a socket; a night later nobody knows which machine it was."""
    outcomes = spawn_ranks(ranks.broken_peer, 3, (fault, str(tmp_path)), 60.0, check=False)
    guilty = ranks.BAD[fault][0]
    for rank in {0, 1, 2} - {guilty}:
        assert f"Validation over 3 CPU ranks: {words}" in outcomes[rank].brief, outcomes[rank]
    if "kill" in fault:
        assert outcomes[guilty].brief == "was ended by SIGKILL before it had a result"


def _alone(shard: EvaluationShard, num_samples: int):
    return collect(shard, Link(None, timeout_s=1.0, where="here"), num_samples=num_samples, split_hash="x")


def test_one_process_without_a_group_checks_too():
    """`python train.py` on a part of the split must not print a score of the whole."""
    shard = EvaluationShard(8)
    ranks.fill(shard, make_samples(8, 0), [range(0, 4)])
    with pytest.raises(CollectError, match=r"4 of 8 samples are missing \(first: 4, 5, 6, 7\)"):
        _alone(shard, 8)


def test_a_right_count_proves_nothing():
    """8331 samples padded to 8332 were reported as 8332 evaluated."""
    padded = np.resize(np.arange(8331), 8332)
    shares = [padded[rank::4] for rank in range(4)]
    assert "more than once" in find_fault(shares, 8331, list(map(len, shares)))
    assert find_fault([*shares[:3], shares[3][:-1]], 8331, list(map(len, shares))) == ""
    assert find_fault([np.array([0, 1]), np.array([2, 2])], 4, [2, 2]) == (
        "1 of 4 samples are missing (first: 3), 1 samples came more than once (first: 2; 2 from rank 1)"
    )


def test_a_guard_keeps_the_ranks_own_traceback_and_lets_ctrl_c_through():
    """UTNET_TRACE=1 must lead to the line that raised; who stops a run wants no validation report."""
    shard = EvaluationShard(1)
    with pytest.raises(KeyboardInterrupt), shard.guard():
        raise KeyboardInterrupt
    assert shard.error is None
    with shard.guard():
        raise ZeroDivisionError("in the loop")
    with pytest.raises(CollectError, match="rank 0 raised ZeroDivisionError: in the loop") as caught:
        _alone(shard, 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def row(**changed) -> dict[str, torch.Tensor]:
    """One sample, as `add` takes it."""
    return {
        "sample_index": torch.tensor([0]),
        "pred_joints_m": torch.zeros(1, 21, 3),
        "target_joints_m": torch.zeros(1, 21, 3),
        "conf": torch.ones(1, 21),
        "loss": torch.zeros(1),
        **changed,
    }


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("pred_joints_m", torch.zeros(1, 3, 21)),
        ("target_joints_m", torch.zeros(21, 3)),
        ("conf", torch.ones(1, 1)),
        ("loss", torch.zeros(())),
        ("sample_index", torch.tensor([0.0])),
    ],
)
def test_a_shard_refuses_what_does_not_fit(name, tensor):
    """A transposed or broadcast batch would be scored as something else."""
    shard = EvaluationShard(2)
    with pytest.raises(ShapeError, match=name):
        shard.add(**row(**{name: tensor}))
    assert shard.count == 0


def test_a_shard_copies_what_it_is_given_and_no_more_than_it_reserved():
    """Its arrays may not alias what the model returned; rows beyond the rank's share are somebody else's."""
    pred = torch.full((1, 21, 3), 0.5, requires_grad=True)
    shard = EvaluationShard(1)
    shard.add(**row(pred_joints_m=pred))
    shard.rows().zero_()
    assert pred.detach().eq(0.5).all()
    with pytest.raises(CollectError, match="2 rows added, 1 reserved"):
        shard.add(**row())


def test_columns_that_differ_behind_what_a_message_carries_are_refused():
    """Rows of other columns would be read by the wrong names, and scored."""
    other = torch.tensor([0] * 6 + [1])
    link = SimpleNamespace(
        where="here",
        gather=lambda own, _: torch.stack([own, own + other]),
        gather_texts=lambda text, _: [text[:1024]] * 2,
    )
    shard = EvaluationShard(0, columns=tuple(f"column_{k}_mm" for k in range(200)))
    with pytest.raises(CollectError, match="ranks disagree about columns"):
        collect(shard, link, num_samples=0, split_hash="x")


def test_columns_are_those_that_were_announced_in_whatever_order_a_batch_gives_them():
    """A column that is forgotten leaves what was in memory; one under another's name looks right."""
    shard = EvaluationShard(1, columns=("a_mm", "b_mm"))
    given = {"b_mm": torch.tensor([70.0]), "a_mm": torch.tensor([1.0])}
    for columns in (None, {"a_mm": given["a_mm"]}, {**given, "c": torch.zeros(1)}):
        with pytest.raises(ShapeError, match="got columns"):
            shard.add(**row(), columns=columns)
    with pytest.raises(ShapeError, match="column b_mm has shape"):
        shard.add(**row(), columns={**given, "b_mm": torch.zeros(1, 1)})
    shard.add(**row(), columns=given)
    rows, _ = _alone(shard, 1)
    assert (rows["a_mm"].tolist(), rows["b_mm"].tolist()) == ([1.0], [70.0])
