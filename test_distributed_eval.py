"""Proof that validation on this machine or cluster scores every sample exactly once. Needs no data.

    torchrun --nproc_per_node=4 test_distributed_eval.py
    python test_distributed_eval.py --world 4 --num-samples 8332      # starts its own ranks on the CPU

Seeded predictions go through the project's own shards, collection and metrics, and are compared bit for bit
with the same samples scored by one process. Exit status: 0 all passed, 1 something failed, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dataloader.samplers import validation_batches
from src.errors import UTNetError
from src.evaluation import metrics
from src.evaluation.baselines import constant_baselines
from src.evaluation.evaluator import CheckedResult, EvaluationShard, evaluate, report_lines
from src.runtime.distributed import DistContext, setup_distributed, spawn_ranks, teardown
from src.runtime.seed import stream

_HAND_M = 0.05
_ERROR_M = 0.02


@dataclasses.dataclass(frozen=True)
class Samples:
    """Made-up validation: (N, 21, 3) float32 metres, weights, losses."""

    pred: Tensor
    target: Tensor
    conf: Tensor
    loss: Tensor


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What rank 0 saw."""

    lines: tuple[str, ...]
    passed: bool


def make_samples(num_samples: int, seed: int) -> Samples:
    """Seeded samples, the same on every rank."""
    random = stream(seed, "distributed-evaluation-proof")
    target = random.normal(0.0, _HAND_M, (num_samples, 21, 3)) + random.normal(0.0, 0.1, (num_samples, 1, 3))
    target[..., 2] += 0.6
    pred = target + random.normal(0.0, _ERROR_M, target.shape)
    loss = random.gamma(2.0, 2.0, num_samples)
    return Samples(
        pred=torch.from_numpy(pred.astype(np.float32)),
        target=torch.from_numpy(target.astype(np.float32)),
        conf=torch.ones(num_samples, 21),
        loss=torch.from_numpy(loss.astype(np.float32)),
    )


def score(
    samples: Samples, batch_size: int, rank: int, world: int, context: DistContext, timeout_s: float
) -> CheckedResult:
    """Score `samples` as rank `rank` of `world` would."""
    num_samples = len(samples.loss)
    batches = validation_batches(num_samples, batch_size, rank, world)
    shard = EvaluationShard(capacity=sum(map(len, batches)))
    with shard.guard():
        for batch in batches:
            rows = torch.arange(batch.start, batch.stop)
            shard.add(
                sample_index=rows.to(context.device),
                pred_joints_m=samples.pred[rows].to(context.device),
                target_joints_m=samples.target[rows].to(context.device),
                conf=samples.conf[rows].to(context.device),
                loss=samples.loss[rows].to(context.device),
            )
    targets = samples.target.numpy()
    baselines = {}
    if rank == 0 and num_samples:
        turns = np.broadcast_to(np.eye(3), (num_samples, 3, 3))
        baselines = constant_baselines(targets, turns, targets)
    return evaluate(
        shard,
        num_samples=num_samples,
        split_hash=f"seeded samples {num_samples}",
        group=context.side_group if world > 1 else None,
        timeout_s=timeout_s,
        baselines=baselines,
        device_label=context.devices_label,
    )


def prove(
    context: DistContext, num_samples: int, batch_size: int, seed: int, timeout_s: float
) -> Outcome | None:
    """Body of a rank; rank 0 returns what it found."""
    samples = make_samples(num_samples, seed)
    context.barrier()
    started = time.perf_counter()
    result = score(samples, batch_size, context.rank, context.world, context, timeout_s)
    seconds = time.perf_counter() - started
    everywhere = context.gather_objects(_fields(result))
    if not context.is_main or result.rows is None:
        return None
    single = dataclasses.replace(context, rank=0, world=1, side_group=None)
    alone = score(samples, batch_size, 0, 1, single, timeout_s)
    assert alone.rows is not None
    equal_rows = [
        field.name
        for field in dataclasses.fields(result.rows)
        if getattr(result.rows, field.name).tobytes() != getattr(alone.rows, field.name).tobytes()
    ]
    in_place = np.array_equal(result.rows.pred_joints_cam_m, samples.pred.numpy())
    checks = {
        f"every sample exactly once: {result.receipt.num_samples} of {num_samples}": (
            result.receipt.num_samples == result.num_samples == num_samples
        ),
        "row i holds sample i": in_place,
        "per-sample rows equal one process, bit for bit": not equal_rows,
        "metrics equal one process, bit for bit": _fields(result) == _fields(alone),
        f"the same result on all {context.world} ranks": all(
            fields == everywhere[0] for fields in everywhere
        ),
        "known answers: equal hands 0 mm, a turned and scaled hand 0 mm after alignment": _known_answers(),
    }
    lines = [f"{'PASS' if passed else 'FAIL'}  {name}" for name, passed in checks.items()]
    lines += report_lines(result, context.world, context.devices_label)
    sent = sum(tensor.numel() * tensor.element_size() for tensor in dataclasses.astuple(samples))
    lines.append(f"  {seconds:.3f} s for shards, collection and metrics of {sent / 2**20:.1f} MiB")
    return Outcome(tuple(lines), all(checks.values()))


def _fields(result: CheckedResult) -> str:
    """The result's public numbers, to the last bit."""
    numbers = {name: value for name, value in vars(result).items() if name not in ("rows", "receipt")}
    return repr(sorted(numbers.items()))


def _known_answers() -> bool:
    """Whether the metrics give what they must on inputs with a known answer."""
    hand = stream(0, "known-answers").normal(0.0, _HAND_M, (4, 21, 3))
    turned = 1.7 * hand[:, :, [1, 2, 0]] + 0.3  # a cyclic exchange of axes is a proper rotation
    mirrored = hand * np.array([-1.0, 1.0, 1.0])
    return bool(
        metrics.mpjpe_mm(hand, hand).max() == 0.0
        and metrics.pa_mpjpe_mm(turned, hand).max() < 1e-9
        and metrics.mpjpe_mm(turned, hand).min() > 1.0
        and metrics.pa_mpjpe_mm(mirrored, hand).min() > 1.0
        and math.isclose(metrics.mean(metrics.mpjpe_mm(hand + 1.0, hand)), 0.0, abs_tol=1e-9)
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="test_distributed_eval.py", description=summary)
    parser.add_argument("--world", type=int, help="start so many gloo ranks here (without torchrun)")
    parser.add_argument("--num-samples", type=int, default=8332, help="samples of the split (8332)")
    parser.add_argument("--batch-size", type=int, default=64, help="samples of a global batch (64)")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up samples (0)")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="longest wait for a message, seconds (60)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="with torchrun (auto)"
    )
    arguments = parser.parse_args(argv)
    for name, least in (("world", 1), ("num_samples", 0), ("batch_size", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} is {value}, want at least {least}")
    if not arguments.timeout > 0:
        parser.error(f"--timeout is {arguments.timeout}, want seconds above 0")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; exit status."""
    arguments = _parse(argv)
    size = (arguments.num_samples, arguments.batch_size, arguments.seed, arguments.timeout)
    try:
        if arguments.world is not None:
            limit = 2.0 * arguments.timeout + 60.0
            ranks = spawn_ranks(prove, arguments.world, size, limit, check=False)
            for failed in (rank for rank in ranks if rank.error is not None):
                print(f"FAIL  rank {failed.rank}: {failed.error.strip().splitlines()[-1]}")
            if any(rank.error is not None for rank in ranks):
                return 1
            outcome = ranks[0].value
        else:
            context = setup_distributed(arguments.device, side_timeout_s=arguments.timeout)
            outcome = prove(context, *size)
    except UTNetError as error:
        print(f"FAIL  {error}")
        return 1
    finally:
        teardown()
    if outcome is None:
        return 0
    print("\n".join(outcome.lines))
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
