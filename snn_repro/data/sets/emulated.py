"""`digits_dvs` and `fashion_mnist_dvs`: digits and Fashion-MNIST as an emulated event camera records them.

A still image is moved along N-MNIST's three saccades (Orchard et al., 2015) and becomes an event recording by the event
model of ESIM (Rebecq et al., 2018) with the imperfections of v2e (Hu et al., 2021): log-intensity threshold crossings,
interpolated in time, with per-pixel threshold mismatch, a refractory time and background noise. Not modelled: finite
pixel bandwidth, leak events, read-out latency and arbitration, the refresh of a screen. Emulated events of real images
do not replace recordings, and this is not N-MNIST: summing the frames over time loses little.

A seed is one camera: it fixes the thresholds of all pixels. Noise is drawn per recording from (seed, index of the
recording). Equal arguments give equal events.
"""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from snn_repro.data import raw
from snn_repro.data.augment import batch_transforms
from snn_repro.data.build import Part, assemble
from snn_repro.data.dataset import SETS, DataSet, register
from snn_repro.data.events import Events, compiled, integrate
from snn_repro.data.sets import digits
from snn_repro.data.splits import split_parts
from snn_repro.errors import UserError
from snn_repro.files import replace_atomically


@dataclass(frozen=True)
class Camera:
    """Settings of the emulated camera and of the movement of the image.

    The defaults suit 8x8 digits; for 28x28 images take `Camera(scale=1, scene=34)`, N-MNIST's geometry.
    """

    pad: int = 1  # pixels of background around the image, so that a digit at the border has no hard edge
    scale: float = 2.0  # bilinear enlargement of the padded image
    scene: int = 24  # height and width of the sensor, pixels; the image is centred
    background: float = 0.15  # luminance of a black pixel; white is 1
    duration: int = 300_000  # of the recording, microseconds: three saccades of equal length
    amplitude: float = 3.0  # side and height of the triangle of the saccades, pixels
    steps: int = 60  # luminance is computed at this many times (and at 0) and linear in between
    threshold: float = 0.25  # mean change of log luminance that fires an event
    mismatch: float = 0.03  # standard deviation of the threshold over pixels and polarities
    refractory: int = 1_000  # dead time of a pixel after an event, microseconds
    noise: float = 0.2  # background events, Hz per pixel


DIGITS_CAMERA = Camera()
FASHION_CAMERA = Camera(scale=1, scene=34)


def emulate_recording(image: np.ndarray, seed: int = 0, camera: Camera = DIGITS_CAMERA, index: int = 0) -> Events:
    """Record one image [H, W] or [1, H, W] with values in 0..1; see `emulate`."""
    return next(emulate(np.asarray(image)[None], seed, camera, [index]))


def emulate(
    images: np.ndarray, seed: int = 0, camera: Camera = DIGITS_CAMERA, indices: Iterable[int] | None = None
) -> Iterator[Events]:
    """Record images [N, H, W] or [N, 1, H, W] in 0..1 as `Events`.

    indices: recording numbers (default 0..N-1). Yields N `Events` on a sensor of camera.scene x camera.scene pixels,
    sorted by time. Recording i equals `emulate_recording(images[i], seed, camera, i)`. Raises UserError for an array of
    another shape or range, or images that do not fit in the scene.
    """
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 3:
        raise UserError(f"the emulated camera records images [N, H, W] or [N, 1, H, W], not {images.shape}")
    size, path = camera.scene, saccades(camera)
    spread = np.random.default_rng([seed, 0]).normal(camera.threshold, camera.mismatch, (2, size, size))
    thresholds = np.maximum(spread, 0.01)  # a pixel with threshold 0 would never stop firing
    step, buffer = camera.duration / camera.steps, np.empty((1 << 12, 3), np.int64)
    for index, image in zip(range(len(images)) if indices is None else indices, images, strict=True):
        arguments = _scene(image.astype(np.float64), camera), path, thresholds, step, float(camera.refractory)
        while (n := compiled(_simulate)(*arguments, buffer)) > len(buffer):
            buffer = np.empty((2 * n, 3), np.int64)
        rng = np.random.default_rng([seed, 1, index])
        m = rng.poisson(camera.noise * size * size * camera.duration * 1e-6)
        noise = np.stack([rng.integers(0, stop, m) for stop in (camera.duration, size * size, 2)], axis=1)
        rows = np.concatenate([buffer[:n], noise])
        t, pixel, p = rows[np.argsort(rows[:, 0], kind="stable")].T
        x, y = (pixel % size).astype(np.int16), (pixel // size).astype(np.int16)
        yield Events(t.copy(), x, y, p.astype(np.uint8))


def saccades(camera: Camera) -> np.ndarray:
    """Image displacement at each step, float64 [steps + 1, 2] (dx, dy) in pixels.

    Centred on 0: three straight saccades along a triangle, with the minimum-jerk profile 10 s^3 - 15 s^4 + 6 s^5.
    """
    a = camera.amplitude / 2
    corners = np.array([(-a, -a), (0, a), (a, -a), (-a, -a)])
    leg, s = np.divmod(np.linspace(0, 3, camera.steps + 1), 1)
    leg, s = np.minimum(leg, 2).astype(int), np.where(leg == 3, 1.0, s)
    s = s**3 * (10 - 15 * s + 6 * s**2)
    return corners[leg] + s[:, None] * (corners[leg + 1] - corners[leg])


def _scene(image: np.ndarray, camera: Camera) -> np.ndarray:
    """Luminance of the scene, [scene, scene]: the image padded, enlarged and centred."""
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
    at = np.clip((np.arange(round(n * scale)) + 0.5) / scale - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))


def _simulate(scene, path, thresholds, step, refractory, out):
    """Write the events of all pixels as rows (time, pixel number, polarity); returns their number.

    Events beyond the rows of `out` are only counted. A pixel's log luminance is linear between two steps; an event
    fires where it has moved by the pixel's threshold from the level of the last event. A crossing within the refractory
    time moves the level but fires nothing.
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


# ------------------------------------------------------------------ cached frames

_FRAMES_VERSION = 1  # raise it when the emulator or the integration changes


def emulated_frames(
    name: str, images: np.ndarray, timesteps: int, seed: int, by: str, camera: Camera,
    cache_dir: str | Path | None = None, rows: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Record and integrate images: counts uint8 [N, T, 2, scene, scene]; channel 0 is darker.

    rows: recording numbers (default 0..N-1), so that a subset equals its part of the whole. With `cache_dir` the frames
    are cached as `name-<key>.npy`, a flat uint8 array of the frames and their SHA-256. A file that is damaged or cannot
    be written costs a warning and the time to make the frames again.
    """
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    shape = (len(images), timesteps, 2, camera.scene, camera.scene)
    settings = {"version": _FRAMES_VERSION, "camera": asdict(camera), "seed": seed, "T": timesteps, "by": by}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(rows, np.int64).data)
    digest.update(np.ascontiguousarray(images).data)
    path = Path(cache_dir or "", f"{name}-{digest.hexdigest()[:16]}.npy")
    if cache_dir and path.exists():
        with contextlib.suppress(Exception):  # any damage: make it again
            stored = np.load(path, allow_pickle=False)
            if hashlib.sha256(stored[:-32]).digest() == stored[-32:].tobytes():
                return stored[:-32].reshape(shape)
        warnings.warn(f"the cache file {path} is damaged; its frames are made again", stacklevel=2)
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
            warnings.warn(f"cannot keep frames, so each run makes them again: {error}", stacklevel=2)
    return frames


# ------------------------------------------------------------------ the data sets


class EmulatedSet(DataSet):
    """The images of another data set, recorded by the emulated camera."""

    static, resizable = False, False
    images: str  # name of that data set
    camera: Camera
    white = 1  # the brightest value of an image
    all_recorded = False  # whether images that a run does not use are recorded too

    @property
    def label_names(self):
        return SETS[self.images].label_names

    def locate(self, cfg):
        return SETS[self.images].locate(cfg)

    def fingerprint(self, cfg):
        return SETS[self.images].fingerprint(cfg)

    def recorded(self, cfg):
        """(images, labels, training rows, test rows, test names); rows number the recordings."""
        (x, y, _), (x_test, y_test, names) = SETS[self.images].parts(cfg)
        rows = np.arange(len(x) + len(x_test))
        return np.concatenate([x, x_test]), np.concatenate([y, y_test]), rows[: len(x)], rows[len(x) :], names

    def sample(self, cfg, source, say):
        """An image as recording 0 of the camera, or events."""
        if not isinstance(source, tuple):
            image = np.asarray(SETS[self.images].image(source, say), np.float32) / self.white
            source = emulate_recording(image, 0, self.camera)
        return raw.frames(self, cfg, source)

    def build(self, cfg):
        x, y, train, test, names = self.recorded(cfg)
        train, val, split = split_parts(cfg, train, test, y, names, split=SETS[self.images].split_id)
        used = np.arange(len(x)) if self.all_recorded else np.unique(np.concatenate([train, val, test]))
        frames = emulated_frames(
            self.name, x[used].astype(np.float32) / self.white, cfg.timesteps, 0, cfg.dataset.integrate_by, self.camera,
            cfg.cache_dir, used,
        )  # fmt: skip
        parts = [Part(frames, y[used], np.searchsorted(used, rows)) for rows in (train, val, test)]
        return assemble(cfg, self, parts, split, batch_transforms(cfg.augment, self))


@register("digits_dvs")
class DigitsDVS(EmulatedSet):
    """The embedded digits as event recordings."""

    shape, num_classes = (2, 24, 24), 10
    samples = 1_347, 450
    images, camera = "digits", DIGITS_CAMERA
    all_recorded = True  # so that one cache file serves all runs

    def recorded(self, cfg):
        train, test = digits.train_test()
        return *digits.load_digits(), train, test, digits.sample_names(test)


@register("fashion_mnist_dvs")
class FashionMNISTDVS(EmulatedSet):
    """Fashion-MNIST as event recordings in N-MNIST's geometry, 34x34 pixels."""

    shape, num_classes = (2, 34, 34), 10
    samples = 60_000, 10_000
    images, camera, white = "fashion_mnist", FASHION_CAMERA, 255
