"""Distillation from a teacher: a finished run, or a trained network of torchvision."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_repro.errors import UserError
from snn_repro.files import sha256
from snn_repro.losses.loss import Loss, at_least_float32, cross_entropy_of_mean, register_loss
from snn_repro.settings import Setting

TORCHVISION = "torchvision/"


class Taught(Loss):
    """Base class of losses with a teacher, whose logits are `self.taught` [B, K].

    A subclass adds its settings to these. Training sets `teach` (`load_teacher` of trained/load.py) and calls
    `begin_batch`. The digest makes the teacher's weights part of the configuration's hash.
    """

    settings = {
        "teacher": Setting("", "folder of a finished run, or torchvision/NAME: the network whose logits teach"),
        "teacher_digest": Setting("", "hash of the teacher's weights, found by the run"),
    }
    teach: Any  # input of the student -> logits [B, K]

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The settings, with the digest of the teacher."""
        return values | {"teacher_digest": values["teacher_digest"] or digest(values["teacher"])}

    def begin_batch(self, x: Tensor) -> None:
        self.taught = at_least_float32(self.teach(x))


def digest(teacher: str) -> str:
    """Hash of a teacher's weights; "" for no finished run. Raises UserError: unknown network."""
    if teacher.startswith(TORCHVISION):
        from torchvision.models import get_model_weights  # takes seconds to import

        try:  # the file's name ends with its hash, which torchvision verifies
            return Path(get_model_weights(teacher.removeprefix(TORCHVISION)).DEFAULT.url).stem.rpartition("-")[2]
        except ValueError:
            raise UserError(f"loss.teacher={teacher} is not in torchvision, as torchvision/resnet34 is") from None
    file = Path(teacher, "checkpoint_last.pt")
    return sha256(file)[:16] if file.is_file() and file.with_name("result.json").is_file() else ""


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """temperature^2 KL(softmax(teacher / temperature) || softmax(student / temperature)), the mean over all but K."""
    log_p, log_q = ((y.flatten(0, -2) / temperature).log_softmax(-1) for y in (teacher, student))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


@register_loss("distill")
class Distill(Taught):
    """SDT mixed with a teacher's softened output z (Hinton et al., 2015, arXiv:1503.02531).

        (1 - alpha) CE(mean_t y[t], q) + alpha temperature^2 KL(softmax(z / temperature) || softmax(mean_t y[t] / temperature))

    The paper tunes both settings; these defaults are ours. The teacher is used in training only.
    """

    settings = Taught.settings | {
        "alpha": Setting(0.9, "weight of the teacher; the labels have the rest", low=0, high=1),
        "temperature": Setting(4.0, "temperature of both distributions", above=0),
    }

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = cross_entropy_of_mean(logits, target)
        if not torch.is_grad_enabled():
            return loss
        taught = divergence(at_least_float32(logits).mean(0), self.taught, self.temperature)
        return (1 - self.alpha) * loss + self.alpha * taught
