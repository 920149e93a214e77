"""Batch norms that take their statistics over several processes."""

import torch
from torch import Tensor, nn

from snn_repro import distributed
from snn_repro.models.norms.bn import learn


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias with mean and variance over the samples of all processes; x [N, C, ...].

    Weight and bias get the gradient of this process's samples alone, as everywhere before gradients are averaged. What the
    processes tell each other is what the fused layer tells: one of them may compute it so and another so.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the result in x's type, and the mean [C], variance [C] and count [1] that it was made with."""
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(values, [i for i in range(x.dim()) if i != 1], correction=0)
        ctx.n = values.numel() // values.shape[1]
        n, middle, _, square = distributed.moments(mean, var, ctx.n).double().unbind(1)
        count = n.sum(0)
        mean = (n * middle).sum(0) / count
        var = ((square + n * (middle - mean).square()).sum(0) / count).to(values.dtype)
        mean, count = mean.to(values.dtype), count[:1].to(values.dtype)
        ctx.shape, inverse = [1, -1] + [1] * (x.dim() - 2), (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, var, count)
        out = (values - mean.view(ctx.shape)) * (inverse * weight).view(ctx.shape) + bias.view(ctx.shape)
        return out.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        axes = [i for i in range(grad.dim()) if i != 1]
        centred, grad = x.to(mean.dtype) - mean.view(ctx.shape), grad.to(mean.dtype)
        sums = torch.stack([grad.sum(axes), (grad * centred).sum(axes)])
        along, across = distributed.means(sums, ctx.n)
        across = across * inverse.square()
        gx = (grad - along.view(ctx.shape) - centred * across.view(ctx.shape)) * (weight * inverse).view(ctx.shape)
        return gx.to(x.dtype), sums[1] * inverse, sums[0], None


class _Together(nn.modules.batchnorm._BatchNorm):
    """A batch norm whose training statistics are those of all processes' samples together.

    torch's own SyncBatchNorm refuses CPU tensors, and its conversion would replace BN and TEBN by a plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...] -> the same shape and type; N may differ between processes."""
        if not self.training:
            return super().forward(x)
        out, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        learn(self, mean, var, count)
        return out


class SyncBatchNorm1d(_Together, nn.BatchNorm1d):
    pass


class SyncBatchNorm2d(_Together, nn.BatchNorm2d):
    pass


def synchronise(model: nn.Module) -> None:
    """Make every batch norm of `model`, those inside BN and TEBN too, take its statistics over all processes.

    Parameters, buffers and their names stay. Needs a process group.
    """
    for module in model.modules():
        kind = type(module)
        for plain, together in ((nn.BatchNorm1d, SyncBatchNorm1d), (nn.BatchNorm2d, SyncBatchNorm2d)):
            if kind is plain:
                module.__class__ = together
            elif isinstance(module, plain) and not isinstance(module, together):
                # BN and its kin first, then the synchronised layer where they call torch's
                module.__class__ = type(f"Sync{kind.__name__}", (kind, together), {"together": True})
