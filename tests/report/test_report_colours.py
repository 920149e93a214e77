"""Rows are told apart by readers with protanopia or deuteranopia: CIEDE2000 after the simulation of Machado et al. (2009)."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import snn_repro.report

SCRIPT = Path(snn_repro.report.__file__).with_name("_page.js").read_text("utf-8")
GROUND = {"light": "#ffffff", "dark": "#1a2028"}
EYES = {  # Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(code: str) -> np.ndarray:
    c = np.frombuffer(bytes.fromhex(code[1:]), np.uint8) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(XYZ @ rgb.clip(0, 1) / [0.95047, 1, 1.08883]).clip(16 / 116)  # no colour here is near black
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def ciede2000(one: np.ndarray, other: np.ndarray) -> float:
    light, a, b = np.stack([one, other], 1)
    c7 = np.hypot(a, b).mean() ** 7
    a = a * (1.5 - 0.5 * (c7 / (c7 + 25**7)) ** 0.5)
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    turn = (hue[1] - hue[0] + 180) % 360 - 180
    mean_l, mean_c, mean_h = light.mean(), chroma.mean(), np.radians(hue[0] + turn / 2)
    t = sum(k * np.cos(n * mean_h + np.radians(at)) for k, n, at in
            ((1, 0, 0), (-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63)))  # fmt: skip
    d_l = (light[1] - light[0]) / (1 + 0.015 * (mean_l - 50) ** 2 / (20 + (mean_l - 50) ** 2) ** 0.5)
    d_c = (chroma[1] - chroma[0]) / (1 + 0.045 * mean_c)
    d_h = 2 * np.prod(chroma) ** 0.5 * np.sin(np.radians(turn / 2)) / (1 + 0.015 * mean_c * t)
    bend = np.radians(60 * np.exp(-(((np.degrees(mean_h) % 360 - 275) / 25) ** 2)))
    rotation = -2 * (mean_c**7 / (mean_c**7 + 25**7)) ** 0.5 * np.sin(bend)
    return float((d_l**2 + d_c**2 + d_h**2 + rotation * d_c * d_h) ** 0.5)


def test_the_measure_gives_published_differences():  # Sharma, Wu and Dalal 2005, pairs 1 and 17
    pairs = [((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 2.5, 0), (73, 25, -18), 27.1492)]
    for one, other, expected in pairs:
        assert ciede2000(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scheme", GROUND)
def test_any_two_colours_differ_by_10_and_stand_out_from_the_ground(scheme):
    colours = re.findall("#[0-9a-f]{6}", re.search(rf"\b{scheme}: \[(.*?)\]", SCRIPT).group(1))
    assert len(colours) == 8
    for eye, matrix in EYES.items():
        seen = [lab(np.array(matrix) @ linear(code)) for code in colours]
        assert min(ciede2000(a, b) for a, b in combinations(seen, 2)) >= 10, eye
    for code in colours:
        dark, bright = sorted(float(XYZ[1] @ linear(c)) + 0.05 for c in (code, GROUND[scheme]))
        assert bright / dark >= 3, code


def test_sign_and_dash_do_not_cycle_with_the_colour():
    signs = re.search(r"SIGNS = \[(.*)\];", SCRIPT).group(1).count('["')
    assert np.gcd(signs, 8) == 1 and "Math.floor(place / 8) % 3" in SCRIPT
