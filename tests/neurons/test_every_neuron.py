"""Every neuron against an equation of its own in NumPy, and what a neuron must be able to do.

A new neuron adds a function to REFERENCE: its state equation, and nothing else here.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as again

from snn_repro.config import Config, choices, conf_files, load_config
from snn_repro.energy import E_AC_PJ, energy_report
from snn_repro.errors import UserError
from snn_repro.models import build_model
from snn_repro.neurons import NEURONS, SURROGATES, build_neuron, firing_rates, surrogates
from snn_repro.optim import build_optimizer, parameter_groups
from snn_repro.runs import checkpoint
from snn_repro.train import check_settings, run

T, B, C, H = 4, 2, 3, 2
SHAPE = (C, H, H)


def has_start(name: str) -> bool:
    return "imp_init" in NEURONS[name].settings


def build(name: str, **overrides):
    imp = overrides.pop("imp", has_start(name))
    return build_neuron(name, imp=imp, state_shape=SHAPE, timesteps=T, **overrides)


# ---------------------------------------------------------------- references: float64, NumPy, one step after the other
# x [T, B, C, H, W] the input, v [B, C, H, W] the initial potential, p the parameters and settings, f the functions that are
# not smooth (step, round, ceil). Each returns the outputs and the potentials after the reset, both [T, B, C, H, W].


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def reset(h, s, p):
    return h - p.v_threshold * s if p.reset == "soft" else h * (1 - s) + p.v_reset * s


def plain(charge):
    """Fire and reset as usual."""

    def all_steps(x, v, p, f):
        out = []
        for x_t in x:
            h = charge(v, x_t, p)
            s = f.step(h - p.v_threshold)
            v = reset(h, s, p)
            out.append((s, v))
        return out

    return all_steps


def decayed(v, x, p, share):
    return (1 - share) * v + (share if p.decay_input else 1) * x


def klif(x, v, p, f):
    out = []
    for x_t in x:
        h = np.maximum(p.k * decayed(v, x_t, p, 1 / p.tau), 0)
        s = f.step(h - p.v_threshold)
        if p.scale_reset:
            v = (h - p.v_threshold * s) / p.k if p.reset == "soft" else h / p.k * (1 - s) + p.v_reset * s
        else:
            v = reset(h, s, p)
        out.append((s, v))
    return out


def clif(x, v, p, f):
    m, out = 0, []
    for x_t in x:
        h = v - v / p.tau + x_t
        s = f.step(h - p.v_threshold)
        m = m * sigmoid(h / p.tau) + s
        v = h - s * (p.v_threshold + sigmoid(m))
        out.append((s, v))
    return out


def glif(x, v, p, f):
    wide = {k: sigmoid(q.reshape(*q.shape, 1, 1) if p.share == "channel" else q) for k, q in p.own.items()}
    g, s, out = SimpleNamespace(**wide), 0, []
    for t, x_t in enumerate(x):
        exponential = (1 - g.alpha * (1 - g.tau)) * v
        h = exponential * (1 - g.gamma * s) - (1 - g.alpha) * g.leak
        h = h + x_t * (1 - g.beta * (1 - g.conduct[t])) - (1 - g.gamma) * g.v_re * s
        s, v = f.step(h - g.v_th), h
        out.append((s, v))
    return out


def ilif(x, v, p, f):
    out = []
    for x_t in x:
        h = v - v / p.tau + x_t
        n = f.round(np.clip(h / p.v_threshold, 0, p.max_count))
        v = h - p.v_threshold * n
        out.append((n, v))
    return out


def qb_lif(x, v, p, f):
    scale = np.log1p(np.exp(p.z))
    of_ilif = SimpleNamespace(v_threshold=scale, tau=1 / (1 - p.retain), max_count=p.max_count)
    return [(scale * n, v) for n, v in ilif(x, v, of_ilif, f)]


def lifb(x, v, p, f):
    out = []
    for x_t in x:
        h = v + (x_t - v) / p.tau if p.decay_input else (1 - 1 / p.tau) * v + x_t
        n = f.ceil(np.clip(h - p.v_threshold, -0.5, 4.5))
        v = h * (1 - n)
        out.append((np.where(n > 1, p.kappa * n, n), v))
    return out


def trsg(x, v, p, f):
    theta, share, out = np.log1p(np.exp(p.z)), sigmoid(p.w), []
    for x_t in x:
        h = v + (x_t - v) * share
        o = theta * f.round(np.clip(h / theta - 0.5, 0, 1))
        v = h - o
        out.append((o, v))
    return out


def parallel(weigh):
    def all_steps(x, v, p, f):
        W = weigh(p, len(x))
        bias = np.broadcast_to(np.ravel(p.bias), len(x))
        z = [sum(W[t, u] * x[u] for u in range(len(x))) + bias[t] for t in range(len(x))]
        return [(f.step(z_t), z_t) for z_t in z]

    return all_steps


def masked(p, steps):
    t = np.arange(steps)
    seen = (t[:, None] >= t) & (t[:, None] - t < p.order)
    return p.weight * np.where(seen, 1, 1 - p.lambda_)


def sliding(p, steps):
    W = np.zeros((steps, steps))
    for t in range(steps):
        for ago in range(min(p.order, t + 1)):
            W[t, t - ago] = p.weight[p.order - 1 - ago]
    return W


REFERENCE = {
    "if": plain(lambda v, x, p: v + x),
    "lif": plain(lambda v, x, p: decayed(v, x, p, 1 / p.tau) if p.decay_input else v - v / p.tau + x),
    "leaky": plain(lambda v, x, p: p.retain * v + x),
    "plif": plain(lambda v, x, p: decayed(v, x, p, sigmoid(p.w))),
    "klif": klif,
    "clif": clif,
    "glif": glif,
    "ilif": ilif,
    "lifb": lifb,
    "trsg": trsg,
    "qb_lif": qb_lif,
    "lnm": plain(lambda v, x, p: sum(c * v**k for k, c in enumerate(p.c)) + x),
    "psn": parallel(lambda p, steps: p.weight),
    "masked_psn": parallel(masked),
    "sliding_psn": parallel(sliding),
}

# Beside the defaults of each, settings that take another way through its equation.
VARIANTS = [(name, {}) for name in NEURONS] + [
    ("if", dict(reset="hard", v_reset=-0.25)), ("plif", dict(reset="soft", decay_input=False)),
    ("klif", dict(reset="soft", tau=3.0)), ("klif", dict(scale_reset=True, v_reset=-0.2)),
    ("klif", dict(scale_reset=True, reset="soft", decay_input=False, v_threshold=0.7)),
    ("clif", dict(v_threshold=0.5, tau=1.5)), ("glif", dict(share="layer")),
    ("ilif", dict(max_count=2, v_threshold=0.5)), ("lifb", dict(v_threshold=0.2, kappa_trainable=True)),
    ("lifb", dict(tau=1.5, decay_input=False)), ("trsg", dict(v_threshold=0.5, tau=1.5)), ("masked_psn", dict(order=2)),
    ("sliding_psn", dict(order=2)), ("qb_lif", dict(max_count=2, v_threshold=0.5)), ("lnm", dict(degree=1, retain=0.9)),
]  # fmt: skip
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in more.items())}" for name, more in VARIANTS]


def prepared(name, **overrides):
    """A neuron in float64 with its parameters moved away from where they start, and an input for it."""
    torch.manual_seed(0)
    neuron = build(name, **overrides).double()
    with torch.no_grad():
        for parameter in neuron.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for buffer in neuron.buffers():
            if buffer.dim() == 0:
                buffer.fill_(0.375)  # lambda on its way
    return neuron, 0.6 + 1.5 * torch.randn(T, B, *SHAPE, dtype=torch.float64)


def reference(neuron, values: dict, x, smooth=False):
    own = {k: v for k, v in values.items() if k != "imp"} | {k: v.numpy() for k, v in neuron.named_buffers()}
    given = {k: getattr(neuron, k) for k in neuron.settings if hasattr(neuron, k)}
    given |= dict(reset="soft" if neuron.v_reset is None else "hard", v_reset=neuron.v_reset)
    p = SimpleNamespace(**given | own, own=own)
    strict = neuron.surrogate_function.fire_at == "gt"
    f = SimpleNamespace(step=lambda z: (z > 0 if strict else z >= 0) * 1.0, round=np.round, ceil=np.ceil)
    if smooth:
        f = SimpleNamespace(step=lambda z: sigmoid(4 * z), round=lambda z: z, ceil=lambda z: z)
    v = np.broadcast_to(values["imp"], x.shape[1:]) if "imp" in values else np.zeros(x.shape[1:])
    outputs, potentials = zip(*REFERENCE[neuron.family](x, v, p, f), strict=True)
    return np.stack(outputs), np.stack(potentials)


def test_every_neuron_has_a_reference_and_a_yaml():
    ours = {name for name, cls in NEURONS.items() if cls.__module__.startswith("snn_repro.")}
    assert ours == REFERENCE.keys() <= choices("neuron").keys()
    learned = {name.removesuffix("_imp") for name in choices("neuron") if name.endswith("_imp")}
    assert {"if", "lif", "leaky"} <= learned <= set(filter(has_start, ours))


@pytest.mark.parametrize(("name", "overrides"), VARIANTS, ids=IDS)
def test_outputs_and_potentials_are_the_equation_s(name, overrides):
    neuron, x = prepared(name, **overrides)
    neuron.store_v_seq = True
    values = {k: p.detach().numpy() for k, p in neuron.named_parameters()}
    outputs, potentials = reference(neuron, values, x.numpy())
    np.testing.assert_allclose(neuron(x).detach().numpy(), outputs, atol=1e-12)
    np.testing.assert_allclose(neuron.v_seq.numpy(), potentials, atol=1e-12)
    assert 0.05 < (outputs > 0).mean() < 0.95 and torch.equal(neuron.v, neuron.v_seq[-1])


@pytest.mark.parametrize(("name", "overrides"), VARIANTS, ids=IDS)
def test_gradients_are_those_of_the_smooth_equation(name, overrides, monkeypatch):
    """With every step replaced by the function whose slope its surrogate is, gradients are finite differences."""
    has = NEURONS[name].settings
    smooth = dict(surrogate="sigmoid") if "surrogate" in has and "sigmoid" in has["surrogate"].choices else {}
    smooth |= dict(detach_reset=False) if "detach_reset" in has else {}
    neuron, x = prepared(name, **{"backend": "torch", **overrides, **smooth})
    width = neuron.surrogate_function.width = 4.0

    def forward(ctx, z, surrogate, width, strict, own):
        ctx.save_for_backward(z)
        ctx.surrogate, ctx.width, ctx.own = surrogate, width, own
        return torch.sigmoid(width * z)

    monkeypatch.setattr(surrogates._Spike, "forward", staticmethod(forward))
    monkeypatch.setattr(torch.Tensor, "round", lambda z: z.detach())
    monkeypatch.setattr(torch.Tensor, "ceil", lambda z: z.detach())
    weights = torch.randn(x.shape, dtype=torch.float64).numpy()
    values = {k: p.detach().numpy().copy() for k, p in neuron.named_parameters()} | {"x": x.numpy().copy()}
    (neuron(x.requires_grad_()) * torch.from_numpy(weights)).sum().backward()
    grads = {k: p.grad for k, p in neuron.named_parameters() if p.requires_grad} | {"x": x.grad}
    assert width == 4.0 and all(g is not None and g.abs().max() > 0 for g in grads.values()), grads

    def loss(moved: dict) -> float:
        outputs, _ = reference(neuron, {k: v for k, v in moved.items() if k != "x"}, moved["x"], smooth=True)
        return float((outputs * weights).sum())

    rng, small = np.random.default_rng(0), 1e-6
    for key, grad in grads.items():
        way = rng.standard_normal(values[key].shape)
        ahead, back = (loss(values | {key: values[key] + sign * small * way}) for sign in (1, -1))
        slope = (ahead - back) / (2 * small)
        assert slope == pytest.approx(float((grad.numpy() * way).sum()), rel=1e-6, abs=1e-7), key


STARTS = {  # settings, and what each parameter of the equation is at first
    "plif": (dict(tau=4.0), lambda n: (n.w.sigmoid(), 0.25)),
    "klif": ({}, lambda n: (n.k, 1)),
    "lifb": ({}, lambda n: (n.kappa, 1.5)),
    "glif": ({}, lambda n: (torch.stack([n.tau, n.v_th, n.leak, n.v_re, n.conduct[0], n.conduct[3]]).sigmoid(),
                            torch.tensor([0.25, 0.5, 0.0625, 0.5, 0.5, 0.5]).view(6, 1).expand(6, 3))),
    "trsg": (dict(tau=3.0, v_threshold=0.8), lambda n: (torch.stack([n.w.sigmoid(), n.v_threshold]), torch.tensor([1 / 3, 0.8]))),
    "qb_lif": (dict(v_threshold=0.8), lambda n: (n.scale, 0.8)),
    "lnm": (dict(retain=0.25), lambda n: (n.c, torch.tensor([0, 0.25, 0, 0]))),
    "psn": ({}, lambda n: (n.bias.flatten(), -torch.ones(T))),
    "masked_psn": ({}, lambda n: (n.bias.flatten(), -torch.ones(T))),
    "sliding_psn": (dict(v_threshold=0.5), lambda n: (torch.cat([n.weight, n.bias.view(1)]), torch.tensor([0.125, 0.25, 0.5, 1, -0.5]))),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_parameters_start_as_published(name):
    settings, values = STARTS[name]
    found, expected = values(build(name, imp=False, **settings))
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected, dtype=torch.float32))
    gates = [p for n, p in build(name, imp=False).named_parameters() if n in ("alpha", "beta", "gamma")]
    assert all(0 < p.abs().max() <= 0.1 for p in gates)


def test_gated_neurons_take_features_too():
    """[T, B, F] are the same as one pixel of F channels."""
    neuron = build_neuron("glif", state_shape=(5,), timesteps=T)
    x = torch.randn(T, B, 5)
    assert neuron(x).shape == x.shape
    assert torch.equal(neuron(x), neuron(x[..., None, None])[..., 0, 0])


# ---------------------------------------------------------------- what every neuron must be able to do


@pytest.mark.parametrize("name", NEURONS)
def test_no_state_between_calls_any_layout_and_float32_under_amp(name):
    torch.manual_seed(1)
    neuron = build(name)
    x = 0.6 + torch.randn(T, B, *SHAPE)
    first = neuron(x)
    neuron(torch.ones_like(x))
    assert torch.equal(neuron(x), first)
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, B))
    assert torch.equal(neuron(last), first)
    half = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        spikes = neuron(half)
    spikes.float().sum().backward()
    assert spikes.dtype == half.grad.dtype == torch.bfloat16 and neuron.v.dtype == torch.float32
    assert torch.equal(spikes.float(), neuron(half.detach().float()).bfloat16().float())
    assert all(p.grad is not None for p in neuron.parameters() if p.requires_grad)
    kept = [v for v in vars(neuron).values() if isinstance(v, torch.Tensor) and v.grad_fn is not None]
    assert not kept, "a graph is kept from call to call"
    torch.testing.assert_close(again(neuron, x, use_reentrant=False), first, rtol=0, atol=0)


@pytest.mark.parametrize("name", NEURONS)
def test_trains_in_a_network_is_saved_and_resumed(name, tmp_path):
    recipe = load_config(["recipe.lr=0.05", "recipe.weight_decay=0.1"]).recipe
    x, target = torch.rand(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * 3, torch.tensor([0, 1, 2, 0])

    def network():
        torch.manual_seed(0)
        neuron = {"name": name, "imp": has_start(name)}
        return build_model("small", num_classes=3, input_shape=(2, 8, 8), timesteps=3, neuron=neuron)

    def train(model, optimizer, epochs):
        losses = []
        for epoch in epochs:
            for module in model.modules():
                if hasattr(module, "begin_epoch"):
                    module.begin_epoch(epoch, 5)
            loss = F.cross_entropy(model(x).mean(0), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    model = network()
    groups = {g["kind"]: {id(p) for p in g["params"]} for g in parameter_groups(model, recipe)}
    free = {"imp", *model.sn1.decayed}
    own = {id(p) for n, p in model.sn1.named_parameters(recurse=False) if n not in free and p.requires_grad}
    assert own <= groups.get("no_decay", set())
    optimizer = build_optimizer(model, recipe)
    losses = train(model, optimizer, [0, 1])
    assert all(map(math.isfinite, losses)) and losses[0] != losses[1]
    checkpoint.save(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    onward = train(model, optimizer, [2, 3])

    found, other = checkpoint.load(tmp_path / checkpoint.LAST), network()
    checkpoint.load_model(other, found["model"], "the file")
    again = build_optimizer(other, recipe)
    again.load_state_dict(found["optimizer"])
    assert train(other, again, [2, 3]) == onward


@pytest.mark.parametrize("name", [n for n, cls in NEURONS.items() if cls.wired])
def test_another_number_of_time_steps_is_one_sentence(name):
    with pytest.raises(UserError, match=f"'{name}' layer was built for timesteps=4, but its input has 5 time"):
        build(name)(torch.zeros(5, B, *SHAPE))
    with pytest.raises(UserError, match=f"'{name}' has parameters for each time step and needs timesteps=T"):
        build_neuron(name, state_shape=SHAPE)


def test_a_caller_cannot_carry_the_state():
    neuron, x = build("if"), torch.zeros(B, *SHAPE)
    for call in (neuron.functional_forward, neuron.multi_step_functional_forward):
        with pytest.raises(UserError, match="'if' keeps no state between calls"):
            call((x,), (x,))


@pytest.mark.parametrize("choice", choices("neuron"))
def test_a_yaml_holds_the_published_settings(choice):
    """What a yaml composes to is what the class has by default, so that a notebook and a run build the same neuron."""
    config = load_config([f"neuron={choice}"])
    check_settings(config)
    name = config.neuron.name
    assert config.neuron.imp == choice.endswith("_imp") and choice.removesuffix("_imp") == name
    spelled = vars(config.neuron) | config.neuron.own
    for key, setting in NEURONS[name].settings.items():
        if key == "initial":
            assert spelled[key] == ("imp" if config.neuron.imp else setting.default)
            continue
        value = tuple(spelled[key]) if isinstance(spelled[key], list) else spelled[key]
        wide = SURROGATES[spelled["surrogate"]].width if key == "surrogate_width" else None
        assert value == setting.default or (wide and value in (None, wide)), key


# ---------------------------------------------------------------- counts of spikes


@pytest.mark.parametrize(("name", "by_spike"), [("ilif", True), ("qb_lif", True), ("lifb", False), ("if", True)])
def test_energy_takes_counts_for_what_they_are(name, by_spike):
    """I-LIF's count n is n accumulations, and QB-LIF's of any scale; a burst of LIFB, whose spikes weigh 1.5, is a multiplication; raw counts too."""
    torch.manual_seed(0)
    scale = {"v_threshold": 0.7} if name == "qb_lif" else {}
    sn, fc = build_neuron(name, state_shape=(6,), timesteps=T, **scale), torch.nn.Linear(6, 7)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), sn, fc)
    frames = torch.randint(0, 3, (T, B, 1, 1, 6)).float()
    with torch.no_grad():
        model[0].weight.mul_(8)
    out = sn(model[0](frames)).detach()
    out = sn.counts(out) if scale else out
    report = energy_report(model, frames)
    assert report["layers"]["0"] == {"macs": T * 6 * 6, "synops": 0}
    assert (out > 1).any() == (name != "if")
    expected = {"macs": 0, "synops": 7 * out.sum().item() / B} if by_spike else {"macs": T * 6 * 7, "synops": 0}
    assert report["layers"]["2"] == expected
    assert report["synops"] == expected["synops"] and (not by_spike or report["energy_pj"] > E_AC_PJ * report["synops"])
    with firing_rates(model) as rates, torch.no_grad():
        model(frames)
    assert rates == {"1": pytest.approx(out.mean().item())}


# ---------------------------------------------------------------- a schedule over epochs


def test_masked_psn_ends_causal_whatever_the_length_of_training():
    neuron = build("masked_psn")
    for epochs in (1, 2, 5, 100):
        seen = [neuron.begin_epoch(epoch, epochs) or neuron.lambda_.item() for epoch in range(epochs)]
        expected = [min(1, 8 * epoch / (epochs - 1)) for epoch in range(epochs)] if epochs > 1 else [1.0]
        assert seen == pytest.approx(expected) and seen[-1] == 1.0 and neuron.causal


# ---------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.parametrize("choice", sorted(conf_files("neuron")))
def test_learns_the_digits(choice, tmp_path):
    config: Config = load_config([f"neuron={choice}", "loss=sdt", "logger.mode=disabled", "energy=true"])
    result = run(config, str(tmp_path / "run"))
    print(choice, result["acc_last"], result["samples_per_s"], result["firing_rates"], result["energy"]["synops"])
    assert result["acc_last"] > 0.9 and result["energy"]["energy_pj"] > 0
    assert result["causal"] == (config.neuron.name != "psn")
