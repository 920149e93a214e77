"""An average pool that keeps nothing for the backward pass: torch's own keeps its input, of which it needs the sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AvgPool2d(nn.AvgPool2d):
    """nn.AvgPool2d without an input kept in training; same numbers, no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H', W']."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        sizes = ([n, n] if isinstance(n, int) else [*n] for n in (self.kernel_size, self.stride, self.padding))
        return _AvgPool.apply(x, *sizes, self.ceil_mode, self.count_include_pad, self.divisor_override)


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *settings):
        ctx.shape, ctx.settings = x.shape, settings
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        ctx.format = torch.channels_last if last else torch.contiguous_format
        return F.avg_pool2d(x, *settings)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy):
        gx = torch.empty(ctx.shape, dtype=gy.dtype, device=gy.device, memory_format=ctx.format)
        # Of the pool's input torch reads the sizes alone, and the place of the result has them.
        torch.ops.aten.avg_pool2d_backward.grad_input(gy, gx, *ctx.settings, grad_input=gx)
        return gx, *[None] * len(ctx.settings)
