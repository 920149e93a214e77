"""Whether the output of a time step depends on later ones: every norm, neuron or network that looks ahead says so itself."""

from torch import nn


def sees_future(model: nn.Module) -> list[str]:
    """Names of the modules of `model` whose outputs in evaluation depend on later time steps: those with `causal = False`.

    Where there are any, the accuracy of single time steps says nothing about an inference that ends there. In training,
    batch statistics are over all time steps in any network.
    """
    return [name or type(m).__name__ for name, m in model.named_modules() if not getattr(m, "causal", True)]
