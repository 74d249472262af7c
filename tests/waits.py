"""What would make a GPU's host wait: a list of such operators, each with the line that asked for it.

Each number that the host asks for, each shape that depends on values, each copy that is not made beside the
work empties a GPU's queue; the GPU then idles until the next kernels come. On the CPU the same operators run,
so they can be counted there: CPU tensors stand for a GPU's. On a fake GPU (`tests/fake_gpu.py`) copies
between host and device are seen too.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]

# fmt: off
ASKING = frozenset({
    "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "argwhere",
    "masked_select", "masked_scatter_backward", "unique_dim", "_unique", "_unique2", "unique_consecutive",
    "unique_dim_consecutive", "bincount", "histc", "histogram", "multinomial", "embedding_renorm_",
    "geqrf", "ormqr", "triangular_solve", "cholesky", "cholesky_solve", "cholesky_inverse", "lu_solve",
    "lu_unpack", "_lu_with_info", "lstsq",
})
# fmt: on
"""Operators that hand a value, or a shape that depends on values, to the host."""

HARMLESS = frozenset(["linalg_cross", "linalg_vector_norm", "linalg_vecdot"])
"""The operators called linalg that do not report errors, or choose their steps, on the host."""

INDEXING = frozenset(["index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"])
HOST_METHODS = frozenset(["tolist", "numpy", "__array__", "cpu"])
"""What turns a tensor into something of the host without an operator that could be seen."""

FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray)


class Waits:
    """Context in which waits are listed in `seen`, as `what at file:line function`.

    Args:
        device: kind of tensors that stand for a GPU's: cpu, or cuda on a fake GPU.
        allowed: `file:function` whose waits are meant; they are listed in `meant` instead.
    """

    def __init__(self, device: str = "cpu", *, allowed: Collection[str] = ()) -> None:
        self.device = device
        self.allowed = frozenset(allowed)
        self.seen: list[str] = []
        self.meant: list[str] = []
        self.calls: list[str] = []
        """Names of torch functions that are running, the innermost last."""
        self._modes = (_Calls(self), _Operators(self))

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def add(self, what: str) -> None:
        """Take down a wait."""
        path, line, function = _place()
        kept = self.meant if f"{path}:{function}" in self.allowed else self.seen
        kept.append(f"{what} at {path}:{line} {function}")

    def mine(self, value: object) -> bool:
        """Whether it is a tensor on the device."""
        return isinstance(value, Tensor) and value.device.type == self.device

    def named(self, target: object) -> bool:
        """Whether an argument names the device."""
        return isinstance(target, str | torch.device) and torch.device(target).type == self.device


class _Calls(TorchFunctionMode):
    """Sees calls that reach no operator."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, waits = kwargs or {}, self.waits
        name = getattr(func, "__name__", str(func))
        target = kwargs.get("device", args[1] if name == "to" and len(args) > 1 else None)
        if name in HOST_METHODS and waits.mine(args[0]):
            waits.add(f"Tensor.{name}()")
        elif name == "to" and target == "cpu":
            waits.add("Tensor.to('cpu')")
        elif func in FROM_HOST and not isinstance(args[0], Tensor) and waits.named(target):
            waits.add(f"torch.{name}(numbers, device=...)")
        waits.calls.append(name)
        try:
            return func(*args, **kwargs)
        finally:
            waits.calls.pop()


class _Operators(TorchDispatchMode):
    """Sees operators, those of backward passes and optimisers too."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (what := self._wait(func, args, kwargs)) is not None:
            self.waits.add(what)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.layout != torch.strided:
            self.waits.add(f"{func} (sparse)")
        return result

    def _wait(self, func: Any, args: Any, kwargs: Any) -> str | None:
        """Why this call makes the host wait; None: it does not."""
        name, mine = func.overloadpacket.__name__, self.waits.mine
        if name in ("_to_copy", "copy_"):
            return self._copy(func, args, kwargs)
        if name == "lift_fresh":  # a list as index, or as what is put there
            listed = args[0].ndim > 0 and self.waits.calls[-1:] in (["__getitem__"], ["__setitem__"])
            return "index by a list" if listed else None
        if not any(mine(arg) for arg in torch.utils._pytree.tree_leaves((args, kwargs))):
            return None
        if name in INDEXING:
            places = [place for place in args[1] if place is not None]
            if any(place.dtype in (torch.bool, torch.uint8) for place in places):
                return f"{func} by a mask"
            return None if all(mine(place) for place in places) else f"{func} by places on the host"
        factor = name.startswith(("linalg_", "_linalg_")) and name not in HARMLESS
        repeat = name == "repeat_interleave" and kwargs.get("output_size") is None
        return str(func) if name in ASKING or factor or repeat else None

    def _copy(self, func: Any, args: Any, kwargs: Any) -> str | None:
        """Copies between host and device wait unless they run beside the work, from or to pinned memory."""
        if self.waits.device == "cpu":
            return None
        source = args[1] if func.overloadpacket.__name__ == "copy_" else args[0]
        target = args[0].device if source is not args[0] else kwargs.get("device") or source.device
        beside = kwargs.get("non_blocking", len(args) > 2 and args[2])
        if (source.device.type, target.type) == (self.waits.device, "cpu"):
            # A copy that makes its own target on the host, beside the work, makes it in pinned memory.
            return None if beside and (source is args[0] or pinned(args[0])) else f"{func} to the host"
        if (source.device.type, target.type) == ("cpu", self.waits.device):
            return None if beside and pinned(source) else f"{func} from the host"
        return None


def pinned(tensor: Tensor) -> bool:
    """Whether a fake GPU was told that this is page-locked memory."""
    return getattr(tensor, "pinned_on_fake_gpu", False)


def _place() -> tuple[str, int, str]:
    """File, line and function of the project's that is running; of a test where there is none."""
    frame, tests = sys._getframe(1), ("", 0, "")
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and path != Path(__file__):
            place = str(path.relative_to(ROOT)), frame.f_lineno, frame.f_code.co_name
            if place[0].startswith("tests"):
                tests = tests if tests[0] else place
            else:
                return place
        frame = frame.f_back
    return tests
