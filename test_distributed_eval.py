"""Proof that validation on this machine or cluster scores every sample exactly once. Needs no data.

    torchrun --nproc_per_node=4 test_distributed_eval.py
    python test_distributed_eval.py --world 4 --num-samples 8332      # starts its own ranks on the CPU
    torchrun --nproc_per_node=4 test_distributed_eval.py --inject kill@2   # how is a dead rank reported?

Seeded predictions go through the project's own shards, collection and metrics, and are compared bit for bit
with the same samples scored by one process. With --inject one rank is made to fail: the proof then must not
pass, and shows how the failure is reported. Exit status: 0 all passed, 1 something failed, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader.batches.samplers import validation_batches
from src.errors import ConfigError, UTNetError
from src.evaluation.evaluator import CheckedResult, EvaluationShard, evaluate
from src.evaluation.report import report_lines
from src.evaluation.seeded import MESH_COLUMNS, Samples, known_answers, make_samples, mesh_columns
from src.runtime.command_line import make_parser
from src.runtime.ranks.distributed import DistContext, setup_distributed, spawn_ranks, teardown
from src.runtime.ranks.meeting import lost_peer

KINDS = ("duplicate", "missing", "nan", "raise", "stall", "kill")
"""What --inject does to a rank."""
_TIMEOUT_S = 60.0
_STALL_TIMEOUT_S = 2.0
_LONGEST_TIMEOUT_S = 86_400.0
_LAST_WORDS_S = 4.0
"""What a rank has left, once another one failed, to say why."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is proved."""

    num_samples: int
    batch_size: int
    seed: int = 0
    timeout_s: float = _TIMEOUT_S
    """Longest wait for a message."""
    vertices: bool = False
    inject: str = ""
    """A failure of KINDS, or '' for none."""
    bad_rank: int = -1
    """The rank that fails."""
    at: str = "collection"
    """When a rank stalls or dies: before the `collection`, or during its `send`."""


Outcome = tuple[list[str], bool]
"""What a rank has to say (rank 0 alone says something), and whether all passed."""


class _FailingShard(EvaluationShard):
    """Stalls or dies between its indices and its rows."""

    fault = ""

    def rows(self) -> Tensor:
        """As ever, unless this is the moment."""
        _strike(self.fault)
        return super().rows()


def fill_shard(samples: Samples, plan: Plan, rank: int, world: int, device: torch.device) -> EvaluationShard:
    """The shard of rank `rank` of `world`, with the injected failure if it is the one that fails."""
    fault = plan.inject if rank == plan.bad_rank else ""
    batches = validation_batches(len(samples.loss), plan.batch_size, rank, world)
    capacity = sum(map(len, batches)) + (fault == "duplicate")
    shard = _FailingShard(capacity, columns=MESH_COLUMNS if plan.vertices else ())
    shard.fault = fault if plan.at == "send" else ""
    if fault == "missing":
        batches[-1] = batches[-1][:-1]
    if fault == "duplicate":
        batches.append(batches[0][:1])
    if fault == "nan":
        samples = dataclasses.replace(samples, pred=samples.pred.clone())
        samples.pred[batches[0].start] = math.nan
    there = Samples(*(part.to(device) for part in vars(samples).values()))
    with shard.guard():
        for batch in batches:
            meshes = mesh_columns(samples, batch, plan.seed) if plan.vertices else None
            there.add_to(shard, batch, meshes)
        if fault == "raise":
            raise RuntimeError("injected: the loop over this rank's batches fails")
    if plan.at == "collection":
        _strike(fault)
    return shard


def _strike(fault: str) -> None:
    """Stall or die, if that is the fault."""
    if fault == "stall":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it will have nothing to say at the end
        while True:  # until torchrun, or who started the ranks, ends it
            time.sleep(1.0)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def score(samples: Samples, plan: Plan, context: DistContext) -> CheckedResult:
    """Score `samples` as the rank of `context` would."""
    return evaluate(
        fill_shard(samples, plan, context.rank, context.world, context.device),
        num_samples=plan.num_samples,
        split_hash=f"{plan.num_samples} samples of seed {plan.seed}",
        group=context.side_group,
        timeout_s=plan.timeout_s,
        device_label=context.devices_label,
    )


def prove(context: DistContext, plan: Plan) -> Outcome:
    """Body of a rank."""
    samples = make_samples(plan.num_samples, plan.seed)
    context.barrier()
    result = score(samples, plan, context)
    if not result.is_finite and result.num_samples:
        owners = {index: index // plan.batch_size % context.world for index in result.nonfinite_indices}
        first = ", ".join(f"{index} of rank {rank}" for index, rank in owners.items())
        line = f"FAIL  {result.nonfinite_count} predictions are not finite: samples {first}. "
        return [f"{line}MPJPE {result.mpjpe_mm:.3f} mm, PA-MPJPE {result.pa_mpjpe_mm:.3f} mm"], False
    everywhere = context.gather_objects(_fields(result))
    lines, passed = [], True
    if context.is_main:
        checks = _checks(samples, plan, context, result, everywhere)
        passed = all(checks.values()) and not plan.inject
        lines = [f"{'PASS' if good else 'FAIL'}  {name}" for name, good in checks.items()]
        if plan.inject:
            lines.append(f"FAIL  {plan.inject} at rank {plan.bad_rank} was injected and nobody noticed")
        elif passed:  # no score beside a proof that failed
            lines += report_lines(result, context.world, context.devices_label)
    return lines, bool(context.broadcast_object(passed))


def _head(plan: Plan, backend: str, device: str, hosts: Sequence[str]) -> Iterator[str]:
    """Where and what is proved; `hosts`: of each rank."""
    where = ", ".join(f"{host} ({count})" for host, count in Counter(hosts).items())
    collection = "gloo" if len(hosts) > 1 else "none"
    yield f"Main group {backend}, collection {collection}, device {device}, world {len(hosts)}, hosts {where}"
    columns = f", columns {', '.join(MESH_COLUMNS)}" if plan.vertices else ""
    yield (
        f"{plan.num_samples} samples of seed {plan.seed} in batches of {plan.batch_size}{columns}; "
        f"a message may take {plan.timeout_s:g} s"
    )
    if plan.inject:
        when = f" ({'before the collection' if plan.at == 'collection' else 'during its send'})"
        moment = when if plan.inject in ("stall", "kill") else ""
        yield f"Injected: {plan.inject} at rank {plan.bad_rank}{moment}. This run must fail."


def _checks(
    samples: Samples, plan: Plan, context: DistContext, result: CheckedResult, everywhere: list[str]
) -> dict[str, bool]:
    """What is proved, on rank 0."""
    assert result.rows is not None
    single = dataclasses.replace(context, rank=0, world=1, side_group=None)
    alone = score(samples, dataclasses.replace(plan, inject=""), single)
    assert alone.rows is not None
    return {
        f"every sample exactly once: {result.receipt.num_samples} of {plan.num_samples}": (
            result.receipt.num_samples == result.num_samples == plan.num_samples
        ),
        "row i holds sample i": np.array_equal(result.rows.pred_joints_cam_m, samples.pred.numpy()),
        "per-sample rows equal one process, bit for bit": _row_bytes(result) == _row_bytes(alone),
        "metrics equal one process, bit for bit": _fields(result) == _fields(alone),
        f"the same result on all {context.world} ranks": len(set(everywhere)) == 1,
        "known answers: equal hands 0 mm, a turned and scaled hand 0 mm after alignment": known_answers(),
    }


def _row_bytes(result: CheckedResult) -> dict[str, bytes]:
    """Every per-sample array, to the last bit."""
    arrays = dict(vars(result.rows))
    arrays |= arrays.pop("columns")
    return {name: array.tobytes() for name, array in arrays.items()}


def _fields(result: CheckedResult) -> str:
    """The result's public numbers, to the last bit."""
    numbers = {name: value for name, value in vars(result).items() if name not in ("rows", "receipt")}
    return repr(sorted(numbers.items()))


def _number(kind: type, least: float, most: float = math.inf) -> Callable[[str], Any]:
    """Reader of an argument within bounds."""

    def number(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            bounds = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"got {text}, want {bounds}")
        return value

    return number


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("test_distributed_eval.py", (__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--world", type=_number(int, 1), help="start so many gloo ranks here (without torchrun)")
    add("--num-samples", type=_number(int, 0), default=8332, help="samples of the split (8332)")
    add("--batch-size", type=_number(int, 1), default=64, help="samples of a global batch (64)")
    add("--seed", type=_number(int, 0), default=0, help="of the made-up samples (0)")
    add("--with-vertices", action="store_true", help="score made-up meshes on the ranks as well")
    add("--inject", metavar="KIND@RANK", help=f"make a rank fail: {', '.join(KINDS)}; for example kill@2")
    add("--inject-at", choices=("collection", "send"), default="collection",
        help="when it stalls or dies: before the collection, or during its send (collection)")  # fmt: skip
    add("--timeout", type=_number(float, 0.001, _LONGEST_TIMEOUT_S),
        help=f"longest wait for a message, seconds ({_TIMEOUT_S:g}; {_STALL_TIMEOUT_S:g} for --inject stall)"
    )  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="with torchrun (auto)")
    return parser


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Plan]:
    """Arguments and what they ask for; leaves with status 2 if they are wrong."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.world is not None and "WORLD_SIZE" in os.environ:
        parser.error("--world starts its own ranks; torchrun has started them already")
    if given.world is not None and given.device == "cuda":
        parser.error(f"--world starts ranks on the CPU; for GPUs: torchrun --nproc_per_node={given.world}")
    kind, _, number = (given.inject or "").partition("@")
    if given.inject is not None and (kind not in KINDS or not number.isdecimal()):
        parser.error(f"--inject is {given.inject}, want KIND@RANK with KIND one of {', '.join(KINDS)}")
    plan = Plan(
        num_samples=given.num_samples,
        batch_size=given.batch_size,
        seed=given.seed,
        timeout_s=given.timeout or (_STALL_TIMEOUT_S if kind == "stall" else _TIMEOUT_S),
        vertices=given.with_vertices,
        inject=kind,
        bad_rank=int(number or -1),
        at=given.inject_at,
    )
    world = given.world or int(os.environ.get("WORLD_SIZE", "1"))
    if (fault := _no_injection(plan, world)) is not None:
        parser.error(f"--inject {given.inject}: {fault}")
    return given, plan


def _no_injection(plan: Plan, world: int) -> str | None:
    """Why a failure cannot be injected into one of `world` ranks."""
    if plan.bad_rank >= world:
        return f"there are {world} ranks, 0 to {world - 1}"
    if plan.inject in ("stall", "kill") and world == 1:
        return "it needs at least two ranks: nobody would be left to notice"
    if plan.inject in ("missing", "nan", "duplicate") and plan.bad_rank * plan.batch_size >= plan.num_samples:
        return (
            f"rank {plan.bad_rank} has none of {plan.num_samples} samples in batches of {plan.batch_size}; "
            "raise --num-samples or lower --batch-size"
        )
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; exit status."""
    arguments, plan = _parse(argv)
    if arguments.world is not None:
        return _prove_here(arguments.world, plan)
    _speak_before_ending()
    status = 1
    try:
        # The groups are made with the ordinary patience: only messages of the collection have plan's.
        context = setup_distributed(arguments.device, max(plan.timeout_s, _TIMEOUT_S))
        hosts = context.gather_objects(socket.gethostname())
        if context.is_main:
            backend = torch.distributed.get_backend() if context.world > 1 else "none"
            _say(*_head(plan, backend, context.device.type, hosts))
        lines, passed = prove(context, plan)
        if context.is_main:
            _say(*lines)
        status = 0 if passed else 1
    except ConfigError as error:
        _say(f"FAIL  {error}")
        status = 2
    except (UTNetError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not lost_peer(error):
            raise
        _say(f"FAIL  rank {os.environ.get('RANK', '0')}: {error}")
    if status and torch.distributed.is_initialized():
        os._exit(status)  # groups with a lost rank can block their own destructors
    teardown()
    return status


def _prove_here(world: int, plan: Plan) -> int:
    """Run the proof in ranks of this machine; exit status."""
    _say(*_head(plan, "gloo", "cpu", [socket.gethostname()] * world))
    limit = 2.0 * plan.timeout_s + 60.0
    # Ranks that wait for a stalled one give up together; one that lost another may first ask the rest.
    grace_s = _LAST_WORDS_S / 2 if plan.inject == "stall" else _LAST_WORDS_S
    ranks = spawn_ranks(prove, world, (plan,), limit, check=False, grace_s=grace_s)
    lines, passed = ranks[0].value or ([], False)
    if failed := [rank for rank in ranks if rank.error is not None]:
        lines, passed = [f"FAIL  rank {rank.rank}: {rank.brief}" for rank in failed], False
    _say(*lines)
    return 0 if passed else 1


def _say(*lines: str) -> None:
    """Print lines in one piece: several ranks write to the same terminal."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _speak_before_ending() -> None:
    """Give this rank of torchrun a few seconds after SIGTERM.

    torchrun ends all ranks as soon as it sees one gone, mostly before they could say which one and why.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    # The main thread may be inside a wait of gloo: another one must hear of the signal and keep the time.
    received, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno())
    signal.signal(signal.SIGTERM, lambda number, frame: None)

    def end_in_time() -> None:
        with told:
            while received.recv(1) != bytes([signal.SIGTERM]):
                pass
            time.sleep(_LAST_WORDS_S)
            os._exit(1)

    threading.Thread(target=end_in_time, name="last-words", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
