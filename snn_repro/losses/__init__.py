"""Training losses of spiking networks, each with the readout that measures its accuracy.

y[t] are the logits of time step t, q the target distribution, CE the cross entropy averaged over the batch:
    sdt    CE(mean_t y[t], q)                                      readout: mean over time
    tet    (1 - lam) mean_t CE(y[t], q) + lam mean((y - phi)^2)    readout: mean over time
    tet_s  mean_t CE(y[t], q'),  q' = (1 - epsilon) q + epsilon/K  readout: mean over time
    lts    CE(y[T-1], q)                                           readout: last step
    strong2weak, weak2strong, tks, rmp, distill: sdt and a further term   readout: mean over time
    sta, trt, seal_kd: tet and further terms                       readout: mean over time
`@register_loss("name")` above a class adds a loss. Logits are [T, B, K]. Targets are class indices int [B] or, after
Mixup or CutMix, distributions float [B, K] where accepted (`soft_targets`). Losses use float32 at least.
"""

from snn_repro.losses.loss import LOSSES, Loss, register_loss, smooth
from snn_repro.registry import import_all

__all__ = ["LOSSES", "Loss", "build_loss", "register_loss", "smooth"]

import_all(__name__, __path__)


def build_loss(name: str, **options) -> Loss:
    """Build a loss: sdt, tet (lam=0.0, phi=1.0), tet_s (epsilon=0.01), lts or another of LOSSES.

    None means an option's default. Raises UserError, naming the key, the value and what is allowed.
    """
    values = LOSSES.checked(name, options)
    return LOSSES[name](**values)
