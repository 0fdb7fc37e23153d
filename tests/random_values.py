"""Random audio and random weights."""

import torch


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator) - 0.5


def randomise(module, seed=0):
    """Gives every parameter a random value, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() < 2:
                change = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * change)
    return module.eval()
