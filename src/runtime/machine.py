"""Settings of torch that hold for a whole process."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from src.config import RuntimeConfig
from src.errors import ConfigError


def configure_torch(config: RuntimeConfig) -> None:
    """Set threads, determinism and the arithmetic of float32 before the first computation.

    No product or convolution of float32 runs in TF32, which keeps three digits: labels turned to the image
    camera, the hand layer and projections would be up to 0.4 mm off, in training and in scores. A switch for
    the backbone alone would not reach its backward pass, which runs later, so there is none: the backbone's
    speed comes from bf16, and with `training.precision=fp32` it gives up TF32's too. What a GPU pays for that
    was not measured.
    """
    torch.set_num_threads(config.threads)
    # Both said aloud: TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which some containers set, and torch's own default
    # for convolutions are TF32.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        # A few CUDA kernels (grid_sample's gradient) have no deterministic form: torch then warns by name.
        torch.use_deterministic_algorithms(True, warn_only=True)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Inside, float32 keeps its digits as under `configure_torch`; a user's own settings come back after."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def worker_count() -> int:
    """How many processes read a data set at once, and how many threads `make learn` computes with.

    One a core that this process may use, at most eight: more wait for the disk, and for each other.
    """
    return min(len(os.sched_getaffinity(0)), 8)


def require_short_temporary_folder() -> None:
    """Refuse a temporary folder that no socket fits into: loader processes hand over their batches by one.

    Raises:
        ConfigError: its name is too long.
    """
    folder = tempfile.gettempdir()
    most = _SOCKET_BYTES - len("/pymp-12345678/listener-12345678")
    if (length := len(os.fsencode(folder))) > most:
        raise ConfigError(
            f"the folder for temporary files, {folder}, has a name of {length} bytes, too long for the "
            f"sockets of loader processes: at most {most}. Set TMPDIR to a shorter one, such as /tmp"
        )


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes bfloat16 itself. One that does not is slower in it than in float32: a CPU
    that emulates it takes 13 times as long for the tiny network's forward and backward pass.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(_CPU_BF16 & cpu_flags())


_SOCKET_BYTES = 107
"""Longest name of a local socket (unix(7): 108 with the byte that ends it)."""
_CPU_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of Linux's /proc/cpuinfo, on x86 and on ARM."""


@functools.cache
def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor can do, by Linux's names; empty where the system does not say."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    named = [line.partition(":") for line in lines]
    return frozenset(
        flag for key, _, value in named if key.strip() in ("flags", "Features") for flag in value.split()
    )
