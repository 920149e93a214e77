"""A neuron, a loss, a norm, an export and a logger that are added to a copy of the package: its own tests take them in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REFERENCE = "tests/neurons/test_every_neuron.py"
IDEAS = {
    "snn_repro/neurons/idea_neuron.py": '''from snn_repro.neurons.node import Neuron, register


@register("idea_neuron")
class IdeaNeuron(Neuron):
    """h = v / 2 + x"""

    def charge(self, v, x):
        return v / 2 + x
''',
    "conf/neuron/idea_neuron.yaml": "# keeps half of its potential\nname: idea_neuron\n",
    "snn_repro/losses/idea_loss.py": '''from torch.nn import functional as F

from snn_repro.losses.loss import Loss, at_least_float32, check_shapes, register_loss, smooth


@register_loss("idea_loss")
class IdeaLoss(Loss):
    """The squared error of scores, at every step."""

    def __call__(self, logits, target):
        check_shapes(logits, target)
        y = at_least_float32(logits)
        return F.mse_loss(y, smooth(target, y.shape[-1], 0.1).to(y.dtype).expand_as(y))
''',
    "conf/loss/idea_loss.yaml": "# the squared error of scores\nname: idea_loss\n",
    "snn_repro/models/idea_norm.py": '''from torch import nn

from snn_repro.models.norms import BN, register_norm


@register_norm("idea_norm")
class IdeaNorm(BN):
    """BN whose factor starts at 1 / 2."""

    def __init__(self, channels, timesteps):
        super().__init__(channels)
        nn.init.constant_(self.weight, 0.5)
''',
    "snn_repro/trained/export/idea_export.py": '''"""the names of all weights"""

from snn_repro.registry import EXPORTS


@EXPORTS.register("idea_export")
def write(run, folder):
    """names.txt"""
    (folder / "names.txt").write_text("\\n".join(run.model.state_dict()))
    return "The names of all weights, one a line."
''',
    "snn_repro/runs/loggers/idea_logger.py": '''from snn_repro.registry import LOGGERS


@LOGGERS.register("idea_logger")
class Log:
    """epochs.txt in the run's folder."""

    def __init__(self, config, folder, say):
        self.file = folder / "epochs.txt"

    def start(self, history):
        self.file.write_text("." * len(history))

    def epoch(self, line):
        self.file.write_text(self.file.read_text() + ".")

    def finish(self, result):
        pass
''',
    "conf/logger/idea_logger.yaml": "# epochs.txt in the run's folder\nto: {idea_logger: true}\n",
}
USED = """
import sys
from snn_repro import cli
from snn_repro.trained.export import export
words = "neuron=idea_neuron loss=idea_loss model.norm=idea_norm logger=idea_logger recipe.epochs=2 debug.max_steps=2"
assert cli._main([*words.split(), "debug.max_eval_batches=1", "hydra.run.dir=run"]) == 0
export("run", "idea_export")
"""


@pytest.mark.slow
def test_the_tests_of_a_copy_take_them_in(tmp_path):
    """A file each, its yaml, and the neuron's line in REFERENCE; what tests say of all things of a kind holds for them too."""
    for name in ("snn_repro", "conf", "tests", "docs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (f for f in ROOT.iterdir() if f.suffix in (".md", ".toml", ".yml")):
        shutil.copy(file, tmp_path)
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "results" / "paper_tables.yaml", tmp_path / "results")
    for name, content in IDEAS.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    text = (tmp_path / REFERENCE).read_text()
    line = '    "idea_neuron": plain(lambda v, x, p: v / 2 + x),\n'
    (tmp_path / REFERENCE).write_text(text.replace("REFERENCE = {\n", "REFERENCE = {\n" + line, 1))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    files = [
        "tests/neurons", "tests/losses", "tests/models", "tests/runs/test_loggers.py", "tests/trained/test_export.py",
        "tests/test_golden_losses.py", "tests/test_causality.py", "tests/docs/test_site.py", "tests/config/test_settings.py",
    ]  # fmt: skip
    of_all = "idea_ or a_reference_and_a_yaml or every_logger or has_its_place or what_they_were or every_option or are_current or are_there"
    pytest_ = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", of_all, *files]
    for words in (pytest_, ["-c", USED]):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert (tmp_path / "run/epochs.txt").read_text() == ".." and list(tmp_path.glob("run/export/idea_export/names.txt"))
