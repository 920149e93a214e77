"""Colours differ for readers with protanopia or deuteranopia: CIE76 as they see them."""

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
XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])  # of linear sRGB


def linear(code: str) -> np.ndarray:
    c = np.frombuffer(bytes.fromhex(code[1:]), np.uint8) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    light = XYZ @ rgb.clip(0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(light > 216 / 24389, np.cbrt(light), (24389 / 27 * light + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", GROUND)
def test_any_two_colours_differ_and_stand_out_from_the_ground(scheme):
    colours = re.findall("#[0-9a-f]{6}", re.search(rf"\b{scheme}: \[(.*?)\]", SCRIPT).group(1))
    assert len(colours) == 8
    for eye, matrix in EYES.items():
        seen = [lab(np.array(matrix) @ linear(code)) for code in colours]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 15, eye
    for code in colours:
        dark, bright = sorted(float(XYZ[1] @ linear(c)) + 0.05 for c in (code, GROUND[scheme]))
        assert bright / dark >= 3, code
    signs = re.search(r"SIGNS = \[(.*)\];", SCRIPT).group(1).count('["')
    assert np.gcd(signs, 8) == 1  # the sign does not cycle with the colour
