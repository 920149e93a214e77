"""An emulated event camera: a still image, moved by three saccades, becomes an event recording.

What a change detector would see while an image is moved in front of it as in the recording of N-MNIST (Orchard
et al., 2015), after the event model of ESIM (Rebecq et al., 2018) and the imperfections of v2e (Hu et al.,
2021): log-intensity threshold crossings, interpolated in time, with per-pixel threshold mismatch, a refractory
time and background noise. Not modelled: finite pixel bandwidth, leak events, read-out latency and arbitration,
the refresh of a screen. These are emulated events, however real the image, and no substitute for a recording.

A seed is one camera: it fixes the thresholds of all pixels. Noise is drawn for each recording from
(seed, index of the recording). Equal arguments give equal events.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from snn_repro.data.events import Events, compiled, integrate
from snn_repro.errors import UserError
from snn_repro.files import replace_atomically


@dataclass(frozen=True)
class Camera:
    """Settings of the emulated camera and of the movement in front of it.

    The defaults suit 8x8 digits; for 28x28 images take `Camera(scale=1, scene=34)`, N-MNIST's geometry.
    """

    pad: int = 1  # pixels of background around the image: without it a digit cut by the border has hard edges
    scale: float = 2.0  # enlargement of the padded image, bilinear
    scene: int = 24  # height and width of the sensor, pixels; the image lies in its middle
    background: float = 0.15  # luminance of a black pixel; white is 1
    duration: int = 300_000  # of the whole recording, microseconds: three saccades of a third each
    amplitude: float = 3.0  # side and height of the triangle that the saccades follow, pixels
    steps: int = 60  # luminance is computed at this many steps (and at 0), straight lines in between
    threshold: float = 0.25  # mean change of log luminance that fires an event
    mismatch: float = 0.03  # standard deviation of the threshold over pixels and polarities
    refractory: int = 1_000  # a pixel is blind for so long after an event, microseconds
    noise: float = 0.2  # background events, Hz a pixel


DIGITS_CAMERA = Camera()
FASHION_CAMERA = Camera(scale=1, scene=34)


def emulate_recording(image: np.ndarray, seed: int = 0, camera: Camera = DIGITS_CAMERA, index: int = 0) -> Events:
    """Record one image [H, W] or [1, H, W] with values in 0..1; see `emulate`."""
    return next(emulate(np.asarray(image)[None], seed, camera, [index]))


def emulate(
    images: np.ndarray, seed: int = 0, camera: Camera = DIGITS_CAMERA, indices: Iterable[int] | None = None
) -> Iterator[Events]:
    """Record images [N, H, W] or [N, 1, H, W] with values in 0..1, one after the other, as number 0..N-1 or `indices`.

    Yields N `Events` on a sensor of camera.scene x camera.scene pixels, sorted by time. Recording i equals
    `emulate_recording(images[i], seed, camera, i)`. Raises UserError for images that are no such array or do
    not fit in the scene.
    """
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 3:
        raise UserError(f"the emulated camera records images [N, H, W] or [N, 1, H, W], not {images.shape}")
    size, path = camera.scene, saccades(camera)
    spread = np.random.default_rng([seed, 0]).normal(camera.threshold, camera.mismatch, (2, size, size))
    thresholds = np.maximum(spread, 0.01)  # a pixel that fires at any change would never stop
    step = camera.duration / camera.steps
    buffer = np.empty((1 << 12, 3), np.int64)
    for index, image in zip(range(len(images)) if indices is None else indices, images, strict=True):
        scene = _scene(image.astype(np.float64), camera)
        while True:
            n = compiled(_simulate)(scene, path, thresholds, step, float(camera.refractory), buffer)
            if n <= len(buffer):
                break
            buffer = np.empty((2 * n, 3), np.int64)
        rng = np.random.default_rng([seed, 1, index])
        m = rng.poisson(camera.noise * size * size * camera.duration * 1e-6)
        noise = np.stack([rng.integers(0, stop, m) for stop in (camera.duration, size * size, 2)], axis=1)
        rows = np.concatenate([buffer[:n], noise])
        t, pixel, p = rows[np.argsort(rows[:, 0], kind="stable")].T
        x, y = (pixel % size).astype(np.int16), (pixel // size).astype(np.int16)
        yield Events(t.copy(), x, y, p.astype(np.uint8))


def saccades(camera: Camera) -> np.ndarray:
    """Displacement of the image at each step, float64 [steps + 1, 2] (dx, dy) in pixels, centred on 0.

    Three straight saccades along a triangle, each with the minimum-jerk profile 10 s^3 - 15 s^4 + 6 s^5.
    """
    a = camera.amplitude / 2
    corners = np.array([(-a, -a), (0, a), (a, -a), (-a, -a)])
    leg, s = np.divmod(np.linspace(0, 3, camera.steps + 1), 1)
    leg, s = np.minimum(leg, 2).astype(int), np.where(leg == 3, 1.0, s)
    s = s**3 * (10 - 15 * s + 6 * s**2)
    return corners[leg] + s[:, None] * (corners[leg + 1] - corners[leg])


def _scene(image: np.ndarray, camera: Camera) -> np.ndarray:
    """The luminance of the scene, [scene, scene]: the image padded, enlarged and set in the middle."""
    if not (np.all(image >= 0) and np.all(image <= 1)):
        raise UserError(f"the emulated camera needs values in 0..1, found {image.min():g} to {image.max():g}")
    padded = np.pad(image, camera.pad)
    rows, columns = (_enlarge(n, camera.scale) for n in padded.shape)
    enlarged = rows @ padded @ columns.T
    height, width = enlarged.shape
    top, left = (camera.scene - height) // 2, (camera.scene - width) // 2
    if top < 0 or left < 0:
        raise UserError(
            f"an image of {image.shape[0]} x {image.shape[1]} becomes {height} x {width} (pad {camera.pad}, scale"
            f" {camera.scale:g}) and does not fit in a scene of {camera.scene} x {camera.scene} pixels"
        )
    scene = np.zeros((camera.scene, camera.scene))
    scene[top : top + height, left : left + width] = enlarged
    return camera.background + (1 - camera.background) * scene


@cache
def _enlarge(n: int, scale: float) -> np.ndarray:
    """Weights [round(n * scale), n] of bilinear enlargement with pixel centres at half-integers."""
    size = round(n * scale)
    at = np.clip((np.arange(size) + 0.5) / scale - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))


def _simulate(scene, path, thresholds, step, refractory, out):
    """Write the events of all pixels as rows (time, pixel number, polarity); returns how many there are.

    If there are more than `out` has rows, the surplus is only counted. Between two steps the log luminance of a
    pixel is a straight line; an event is fired where it has moved by the pixel's threshold from the level of the
    last event. A crossing within the refractory time moves the level but fires nothing.
    """
    size = len(scene)
    n = 0
    level = np.empty((size, size))
    before = np.empty((size, size))
    fired = np.full((size, size), -1e18)
    for k in range(len(path)):
        shift_x, shift_y = path[k]
        cell_x, cell_y = np.floor(shift_x), np.floor(shift_y)
        u, v = shift_x - cell_x, shift_y - cell_y
        for row in range(size):
            y1 = min(max(row - int(cell_y), 0), size - 1)
            y0 = min(max(row - int(cell_y) - 1, 0), size - 1)
            for column in range(size):
                x1 = min(max(column - int(cell_x), 0), size - 1)
                x0 = min(max(column - int(cell_x) - 1, 0), size - 1)
                upper = (1 - u) * scene[y0, x1] + u * scene[y0, x0]
                lower = (1 - u) * scene[y1, x1] + u * scene[y1, x0]
                now = np.log((1 - v) * lower + v * upper)
                if k == 0:
                    level[row, column] = now
                    before[row, column] = now
                    continue
                was = before[row, column]
                before[row, column] = now
                polarity = 1 if now > was else 0
                sign = 1.0 if now > was else -1.0
                threshold = thresholds[polarity, row, column]
                while (now - level[row, column]) * sign >= threshold:
                    level[row, column] += sign * threshold
                    t = (k - 1 + (level[row, column] - was) / (now - was)) * step
                    if t - fired[row, column] >= refractory:
                        fired[row, column] = t
                        if n < len(out):
                            out[n, 0] = int(t)
                            out[n, 1] = row * size + column
                            out[n, 2] = polarity
                        n += 1
    return n


# ------------------------------------------------------------------ frames, kept in a cache

_FRAMES_VERSION = 1  # raise when the emulator or the integration changes


def emulated_frames(
    name: str,
    images: np.ndarray,
    timesteps: int,
    seed: int,
    by: str,
    camera: Camera,
    cache_dir: str | Path | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Record images and integrate them: event counts, uint8 [N, T, 2, scene, scene], channel 0 = darker.

    rows: the numbers under which the recordings are made (default 0..N-1), so that a subset equals its part of the
    whole. With `cache_dir` the frames are kept there as `name-<key>.npy`, one flat uint8 array: the frames, then the
    SHA-256 of these bytes. A file that is damaged, or that cannot be written, only costs a warning and the time to make
    them again.
    """
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    shape = (len(images), timesteps, 2, camera.scene, camera.scene)
    settings = {"version": _FRAMES_VERSION, "camera": asdict(camera), "seed": seed, "T": timesteps, "by": by}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(rows, np.int64).data)
    digest.update(np.ascontiguousarray(images).data)
    path = Path(cache_dir or "", f"{name}-{digest.hexdigest()[:16]}.npy")
    if cache_dir and path.exists():
        try:
            stored = np.load(path, allow_pickle=False)
            if hashlib.sha256(stored[:-32]).digest() == stored[-32:].tobytes():
                return stored[:-32].reshape(shape)
            reason = "damaged"
        except Exception as error:  # whatever the file holds, it can be made again
            reason = " ".join(str(error).split())[:100]
        warnings.warn(f"the cache file {path} cannot be read ({reason}); its frames are made again", stacklevel=2)
    frames = np.empty(shape, np.uint8)
    for frame, events in zip(frames, emulate(images, seed, camera, rows.tolist()), strict=True):
        np.copyto(frame, integrate(events, timesteps, shape[-2:], by), casting="safe")  # no count is above 255
    if cache_dir:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(path) as temporary, open(temporary, "wb") as file:
                check = np.frombuffer(hashlib.sha256(frames.data).digest(), np.uint8)
                np.save(file, np.concatenate([frames.ravel(), check]), allow_pickle=False)
        except (OSError, UserError) as error:
            warnings.warn(f"cannot keep frames, so that each run makes them again: {error}", stacklevel=2)
    return frames
