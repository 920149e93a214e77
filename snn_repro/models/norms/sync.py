"""Batch norms that take their statistics over several processes."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) with mean and variance over the samples of all processes; x [N, C, ...]."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalised x in float32 at least, and the mean [C], variance [C] and count [1] that it was made with."""
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        axes, shape = [i for i in range(x.dim()) if i != 1], [1, -1] + [1] * (x.dim() - 2)
        total = torch.cat([values.sum(axes), values.new_full((1,), values.numel() // values.shape[1])])
        dist.all_reduce(total)
        mean, count = total[:-1] / total[-1], total[-1:]
        centred = values - mean.view(shape)
        var = centred.square().sum(axes)
        dist.all_reduce(var)
        var = var / count
        scale = (var + eps).rsqrt()
        normal = centred * scale.view(shape)
        ctx.save_for_backward(normal, scale, count)
        ctx.dtype = x.dtype
        ctx.mark_non_differentiable(mean, var, count)
        return normal, mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor, None]:
        normal, scale, count = ctx.saved_tensors
        axes, shape = [i for i in range(grad.dim()) if i != 1], [1, -1] + [1] * (grad.dim() - 2)
        sums = torch.stack([grad.sum(axes), (grad * normal).sum(axes)])
        dist.all_reduce(sums)
        along, across = (sums / count).unbind()
        grad = (grad - along.view(shape) - normal * across.view(shape)) * scale.view(shape)
        return grad.to(ctx.dtype), None


class _Together(nn.modules.batchnorm._BatchNorm):
    """A batch norm whose training statistics are those of all processes' samples together.

    torch's own SyncBatchNorm refuses CPU tensors, and its conversion would replace BN and TEBN by a plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...] -> the same shape and type; N may differ between processes."""
        if not self.training:
            return super().forward(x)
        normal, mean, var, count = _Normalise.apply(x, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        shape = [1, -1] + [1] * (x.dim() - 2)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


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
                module.__class__ = type(f"Sync{kind.__name__}", (kind, together), {})
