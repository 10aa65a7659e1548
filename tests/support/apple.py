"""Tensors on the CPU that say they lie on an Apple device, and refuse what is refused there: float64, and the CPU's tensors."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

MPS = torch.device("mps")


class AppleTensor(torch.Tensor):
    """Holds the tensor `inner`; torch's C++ side takes it for one on the CPU. To be used within `AppleMode`."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        layout = {"dtype": inner.dtype, "strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), device="cpu", **layout)
        made.inner = inner
        return made

    @property
    def device(self):
        return MPS

    def tolist(self):
        return self.inner.tolist()

    def to(self, *where):
        devices = [torch.device(one) for one in where if isinstance(one, (str, torch.device))]
        dtypes = [one for one in where if isinstance(one, torch.dtype)]
        return self.inner.to(*where) if devices and devices[0].type == "cpu" else super().to(*(dtypes or [self.dtype]))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # A single number may lie anywhere.
        if any(tensor.ndim for tensor in tensors if not isinstance(tensor, AppleTensor)):
            raise RuntimeError(f"{func}: tensors on mps and on the CPU")
        args, kwargs = tree_map(lambda leaf: leaf.inner if isinstance(leaf, AppleTensor) else leaf, (args, kwargs or {}))
        return tree_map(_on_apple, func(*args, **kwargs))


class AppleMode(TorchFunctionMode):
    """What is moved to the device, or made there, is an AppleTensor; torch without MPS would refuse it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(isinstance(one, torch.device) and one == MPS for one in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        args, kwargs = tree_map(lambda leaf: torch.device("cpu") if isinstance(leaf, torch.device) else leaf, (args, kwargs))
        return tree_map(_on_apple, func(*args, **kwargs))


def _on_apple(leaf):
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.dtype == torch.float64:
        raise TypeError("an Apple device has no float64")
    return AppleTensor(leaf)
