"""The fused layer in Triton, for CUDA: one kernel forward and one backward, the gradient of IMP summed inside.

As in `neuron_cpu.py`, memory is [T, B, M], the backward pass recomputes the potentials from x, and a program takes a block of
neurons (M) for a group of samples (B). Without a GPU the kernels run, slowly, on CPU tensors in Triton's interpreter
(environment variable TRITON_INTERPRET=1, before the first import).
"""

import os

import torch
import triton
import triton.language as tl

from snn_repro.kernels import CHARGES, SLOPES, Law

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)


@triton.jit
def _charge(v, x, leak, CHARGE: tl.constexpr):
    if CHARGE == 0:
        h = v + x
    elif CHARGE == 1:
        h = v + tl.div_rn(x - v, leak)
    else:
        h = leak * v + x
    return h


@triton.jit
def _spike(h, v_threshold, STRICT: tl.constexpr):
    z = h - v_threshold
    if STRICT:
        s = z > 0
    else:
        s = z >= 0
    return s.to(tl.float32)


@triton.jit
def _reset(h, s, v_threshold, v_reset, HARD: tl.constexpr):
    if HARD:
        v = h * (1 - s) + v_reset * s
    else:
        v = h - v_threshold * s
    return v


@triton.jit
def _slope(z, width, SLOPE: tl.constexpr):
    if SLOPE == 0:
        c = 1.5707963267948966 * width * z
        d = width / 2 / (1 + c * c)
    elif SLOPE == 1:
        e = tl.exp(-tl.abs(width * z))
        d = width * e / ((1 + e) * (1 + e))
    else:
        d = tl.maximum(width - tl.abs(z), 0) / (width * width)
    return d


@triton.jit
def _initial(v0, v0_b, at, inside, b, BLOCK: tl.constexpr, HAS_V0: tl.constexpr):
    if HAS_V0:
        v = tl.load(v0 + b * v0_b + at, mask=inside, other=0.0)
    else:
        v = tl.zeros((BLOCK,), tl.float32)
    return v


@triton.jit
def _forward(
    x, x_t, x_b, v0, v0_b, s, v_last, batch, size, group, v_threshold, v_reset, leak, width,
    STEPS: tl.constexpr, CHARGE: tl.constexpr, HARD: tl.constexpr, STRICT: tl.constexpr, HAS_V0: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    b0 = tl.program_id(1).to(tl.int64) * group
    for b in range(b0, tl.minimum(b0 + group, batch)):
        v = _initial(v0, v0_b, at, inside, b, BLOCK, HAS_V0)
        for t in tl.static_range(STEPS):
            x_t_b = tl.load(x + t * x_t + b * x_b + at, mask=inside, other=0.0).to(tl.float32)
            h = _charge(v, x_t_b, leak, CHARGE)
            spike = _spike(h, v_threshold, STRICT)
            v = _reset(h, spike, v_threshold, v_reset, HARD)
            tl.store(s + (t * batch + b) * size + at, spike.to(s.dtype.element_ty), mask=inside)
        tl.store(v_last + b * size + at, v, mask=inside)


@triton.jit
def _backward(
    x, x_t, x_b, v0, v0_b, gs, gs_t, gs_b, gv_last, gx, gv0, batch, size, group, v_threshold, v_reset, leak, width,
    STEPS: tl.constexpr, CHARGE: tl.constexpr, HARD: tl.constexpr, STRICT: tl.constexpr, DETACH: tl.constexpr,
    SLOPE: tl.constexpr, HAS_V0: tl.constexpr, HAS_GV_LAST: tl.constexpr, NEEDS_V0: tl.constexpr,
    SHARED_V0: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    b0 = tl.program_id(1).to(tl.int64) * group
    total = tl.zeros((BLOCK,), tl.float32)
    for b in range(b0, tl.minimum(b0 + group, batch)):
        v = _initial(v0, v0_b, at, inside, b, BLOCK, HAS_V0)
        potentials = ()  # of every step; they stay in registers
        for t in tl.static_range(STEPS):
            x_t_b = tl.load(x + t * x_t + b * x_b + at, mask=inside, other=0.0).to(tl.float32)
            h = _charge(v, x_t_b, leak, CHARGE)
            v = _reset(h, _spike(h, v_threshold, STRICT), v_threshold, v_reset, HARD)
            potentials = potentials + (h,)
        if HAS_GV_LAST:
            gv = tl.load(gv_last + b * size + at, mask=inside, other=0.0)
        else:
            gv = tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(STEPS):
            h = potentials[STEPS - 1 - i]
            g = tl.load(gs + (STEPS - 1 - i) * gs_t + b * gs_b + at, mask=inside, other=0.0).to(tl.float32)
            slope = _slope(h - v_threshold, width, SLOPE)
            if HARD:
                if not DETACH:
                    g += gv * (v_reset - h)
                gh = gv * (1 - _spike(h, v_threshold, STRICT)) + g * slope
            else:
                if not DETACH:
                    g -= v_threshold * gv
                gh = gv + g * slope
            if CHARGE == 0:
                gi = gh
                gv = gh
            elif CHARGE == 1:
                gi = gh / leak
                gv = gh - gi
            else:
                gi = gh
                gv = leak * gh
            tl.store(gx + ((STEPS - 1 - i) * batch + b) * size + at, gi.to(gx.dtype.element_ty), mask=inside)
        if NEEDS_V0:
            if SHARED_V0:
                total += gv
            else:
                tl.store(gv0 + b * size + at, gv, mask=inside)
    if NEEDS_V0 and SHARED_V0:
        tl.store(gv0 + tl.program_id(1).to(tl.int64) * size + at, total, mask=inside)


def _cut(shape, shared: bool) -> tuple[int, int, int]:
    """(block, group, groups): four neurons a thread; samples in groups only where they share a sum."""
    _, batch, size = shape
    block = min(512, max(32, triton.next_power_of_2(size)))
    blocks = triton.cdiv(size, block)
    group = triton.cdiv(batch, min(batch, triton.cdiv(1024, blocks))) if shared else 1
    return block, group, triton.cdiv(batch, group)


# fp_fusion off: a fused multiply-add rounds once where the reference rounds twice, and a spike could differ.
_EXACT = {} if INTERPRETED else {"enable_fp_fusion": False}


def forward(x, v0, v0_stride, s, v_last, shape, law: Law, norm) -> None:
    """Fill s [T, B, ...] and v_last [B, ...]; the arguments are those of `neuron.py`, without a norm."""
    steps, batch, size = shape
    block, group, groups = _cut(shape, shared=False)
    _forward[(triton.cdiv(size, block), groups)](
        x, x.stride(0), x.stride(1), v0, max(v0_stride, 0), s, v_last, batch, size, group,
        law.v_threshold, law.v_reset or 0.0, law.leak, 0.0,
        STEPS=steps, CHARGE=CHARGES.index(law.charge), HARD=law.v_reset is not None, STRICT=law.strict, HAS_V0=v0 is not None,
        BLOCK=block, **_EXACT,
    )  # fmt: skip


def backward(gs, gv_last, x, v0, v0_stride, gx, gv0, shape, law: Law, norm, of_input, gnorm) -> None:
    """Fill gx [T, B, ...] and gv0 (unless it is None); the arguments are those of `neuron.py`, without a norm."""
    steps, batch, size = shape
    needs_v0, shared = gv0 is not None, v0_stride == 0
    block, group, groups = _cut(shape, needs_v0 and shared)
    sums = gv0
    if needs_v0 and shared and groups > 1:
        sums = torch.empty(groups, size, dtype=torch.float32, device=x.device)
    _backward[(triton.cdiv(size, block), groups)](
        x, x.stride(0), x.stride(1), v0, max(v0_stride, 0), gs, gs.stride(0), gs.stride(1), gv_last, gx, sums,
        batch, size, group, law.v_threshold, law.v_reset or 0.0, law.leak, law.width,
        STEPS=steps, CHARGE=CHARGES.index(law.charge), HARD=law.v_reset is not None, STRICT=law.strict, DETACH=law.detach,
        SLOPE=SLOPES.index(law.slope), HAS_V0=v0 is not None, HAS_GV_LAST=gv_last is not None, NEEDS_V0=needs_v0,
        SHARED_V0=shared, BLOCK=block, **_EXACT,
    )  # fmt: skip
    if sums is not gv0:
        gv0.as_strided((size,), (1,)).copy_(sums.sum(0))
