"""A GPU that computes no values, on any machine: for shapes, devices and waiting.

Tensors on it are torch's fake ones: they know their shape, type and device. Tensors on
the CPU stay real. So an operation that mixes both fails as on a GPU, and whatever needs
a value of the GPU on the host, and would wait for it, raises `HostSync`.
"""

import weakref

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class HostSync(RuntimeError):
    """The host would wait for the device."""


class FakeCuda(TorchDispatchMode):
    """Within it, the device "cuda" is there."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self):
        # Below this mode: torch asks for a driver where there is none.
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        device = kwargs.get("device")
        device = device and torch.device(device).type
        if device != "cuda" and not any(isinstance(x, FakeTensor) for x in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HostSync(f"{func} needs a value") from error
        outputs = tree_leaves(result)
        if func in _COPIES and any(is_on(x, "cpu") for x in outputs):
            raise HostSync(f"{func} copies to the CPU")
        return result

    def move(self, module):
        """Moves a module there, in place; its values are lost."""
        moved = {}
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in moved:
                        moved[id(tensor)] = self.like(tensor)
                    tensors[name] = moved[id(tensor)]
            if isinstance(part, nn.RNNBase):
                weights = [getattr(part, name) for name in part._flat_weights_names]
                part._flat_weights = weights
                part._flat_weight_refs = [weakref.ref(weight) for weight in weights]
        return module

    def like(self, tensor):
        """A tensor, or a parameter, like another one."""
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, tensor.requires_grad)
        return made


def is_on(x, device):
    return isinstance(x, torch.Tensor) and x.device.type == device


def pretend_backward(loss):
    """Gives each parameter that a loss depends on a gradient, in place of `backward`.

    torch's engine asks the driver for a GPU's streams, so it does not run without one.
    """
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty(node.variable.shape, device=CUDA)
