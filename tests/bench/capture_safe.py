"""A mode that refuses what a CUDA graph cannot hold: host reads, shapes that depend on data, copies between host and device; and
operators that `--deterministic` could not execute on CUDA.

With real tensors it checks every operator that runs, backward passes included. On the `meta` device, where no numbers exist, it also
tells host from device: a constant made on the host inside a step, or a tensor brought to the device in it, is found on a machine
without a GPU.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = frozenset(
    """_local_scalar_dense item is_nonzero equal allclose nonzero nonzero_numpy argwhere masked_select _unique _unique2 unique_dim
    unique_consecutive unique_dim_consecutive bincount histc _linalg_check_errors _linalg_eigh _linalg_svd _linalg_eigvals linalg_eig
    linalg_lstsq linalg_qr geqrf _assert_async resize_""".split()
)
"""ATen operators that wait for the device or whose result's shape depends on data (or, in linear algebra, that may do so on CUDA)."""

UNORDERED = frozenset(
    """_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_max_pool2d_backward avg_pool3d_backward max_pool3d_with_indices_backward
    fractional_max_pool2d_backward max_unpool2d upsample_linear1d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward
    upsample_trilinear3d_backward reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward nll_loss2d_forward kthvalue
    grid_sampler_2d_backward grid_sampler_3d_backward _ctc_loss_backward put_ scatter_reduce""".split()
)
"""ATen operators without a deterministic algorithm on CUDA (documentation of torch.use_deterministic_algorithms); sums along a dimension of
floating-point numbers (`cumsum`) and a median with its index are told by their arguments."""

_MASKED = ("index", "index_put", "index_put_", "_index_put_impl_")


class NotCapturable(RuntimeError):
    """An operator that a captured step cannot contain; names it."""


class _Made(TorchFunctionMode):
    """Finds tensors made from Python numbers on the device: not every version of torch dispatches anything for them on `meta`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            raise NotCapturable("torch.tensor: a tensor made from Python numbers is a copy from the host; make it before the step")
        return func(*args, **kwargs)


class CaptureSafe(TorchDispatchMode):
    """Raises NotCapturable at the first operator inside that cannot be captured. `seen` counts the operators that passed.

    `on_meta`: the step's tensors are on the `meta` device, and tensors of more than one value on the host are refused too.
    """

    def __init__(self, on_meta: bool = False) -> None:
        super().__init__()
        self.on_meta, self.seen = on_meta, 0
        self._made = _Made()

    def __enter__(self) -> "CaptureSafe":
        if self.on_meta:
            self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self.on_meta:
            self._made.__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in READS or (name == "repeat_interleave" and isinstance(args[0], Tensor) and kwargs.get("output_size") is None):
            raise NotCapturable(f"{func}: the host waits for it, or its shape depends on data")
        if name in _MASKED and _by_mask(name, args):
            raise NotCapturable(f"{func} with a mask: its shape depends on data; use torch.where or masked_fill")
        if name in UNORDERED or (name == "cumsum" and args[0].is_floating_point()) or (name == "median" and len(args) > 1):
            raise NotCapturable(f"{func} has no deterministic algorithm on CUDA: --deterministic would end the run")
        inputs = list(_tensors((args, kwargs)))
        if self.on_meta:
            _check_inputs(func, inputs, kwargs)
        # The fused update has no form for meta tensors.
        result = None if self.on_meta and name == "_fused_sgd_" else func(*args, **kwargs)
        if self.on_meta and any(not t.is_meta and t.numel() > 1 for t in _tensors(result)):
            raise NotCapturable(f"{func} makes a tensor on the host: give it device=, before the step if it is a constant")
        self.seen += 1
        return result


def _by_mask(name: str, args: tuple) -> bool:
    masked = any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return masked and not (name != "index" and args[2].numel() == 1)  # writing one value is a masked_fill


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _check_inputs(func: Any, inputs: list[Tensor], kwargs: dict[str, Any]) -> None:
    """A host scalar among the inputs becomes a constant of the recording and is allowed; copies either way and other host tensors are not."""
    name, on_meta = name_of(func), any(t.is_meta for t in inputs)
    to = kwargs.get("device")
    if name == "lift_fresh" and on_meta:
        raise NotCapturable(f"{func}: a tensor made from Python numbers is a copy from the host; make it before the step")
    if (name == "_to_copy" and to is not None and any(t.device.type != to.type for t in inputs)) or (
        name == "copy_" and len({t.is_meta for t in inputs}) > 1
    ):
        raise NotCapturable(f"{func} copies between host and device")
    if on_meta and any(not t.is_meta and t.numel() > 1 for t in inputs):
        raise NotCapturable(f"{func} uses a tensor on the host: make it on the device, before the step if it is a constant")


def name_of(func: Any) -> str:
    """An operator's name without its namespace and overload, e.g. `copy_`."""
    return func._schema.name.removeprefix("aten::")
