"""Draw the pictures of minicanvas: 12 objects (or an empty scene) in 10 styles, 64 x 64 px.

An object is a label map (background, main, accent, dark) of polygons at 192 px; a style is a way of painting a label
map; the result is scaled down to 64 px with Lanczos. `render(style, object, seed)` depends on its arguments alone.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

STYLES = ("photo", "neon", "blueprint", "mosaic", "sketch", "sunset", "halftone", "stripes", "frost", "pop")
OBJECTS = (
    "house", "tree", "fish", "star", "cup", "car", "flower", "boat", "heart", "mushroom", "umbrella", "key",
)  # fmt: skip
NO_OBJECT = "no object"
SIZE = 64
_CANVAS = 192

Labels = NDArray[np.uint8]
Pixels = NDArray[np.float32]
Shape = tuple[int, NDArray[np.float64]]  # (label, polygon [n, 2] in [-1, 1]², y downwards)
BACK, MAIN, ACCENT, DARK = range(4)


def _rect(label: int, x0: float, y0: float, x1: float, y1: float) -> Shape:
    return label, np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _poly(label: int, *points: tuple[float, float]) -> Shape:
    return label, np.array(points)


def _ellipse(label: int, cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 2.0) -> Shape:
    angle = np.linspace(start * np.pi, stop * np.pi, 36)
    return label, np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], 1)


def _star(label: int, radius: float) -> Shape:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    length = np.where(np.arange(10) % 2, 0.42, 1.0) * radius
    return label, np.stack([length * np.cos(angle), length * np.sin(angle)], 1)


def _heart(label: int) -> Shape:
    a = np.linspace(0, 2 * np.pi, 48)
    y = -(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a)) / 16
    return label, np.stack([0.92 * np.sin(a) ** 3, 0.85 * y], 1)


def _petals() -> list[Shape]:
    angles = np.arange(6) * np.pi / 3
    return [_ellipse(MAIN, 0.38 * np.cos(a), -0.35 + 0.38 * np.sin(a), 0.27, 0.27) for a in angles]


_SHAPES: dict[str, list[Shape]] = {
    "house": [
        _rect(DARK, 0.32, -0.88, 0.58, -0.2), _rect(MAIN, -0.65, -0.12, 0.65, 0.85),
        _poly(ACCENT, (-0.9, -0.1), (0, -0.92), (0.9, -0.1)),
        _rect(DARK, -0.42, 0.25, -0.08, 0.85), _rect(ACCENT, 0.15, 0.2, 0.48, 0.52),
    ],
    "tree": [
        _rect(DARK, -0.14, 0.5, 0.14, 0.95), _poly(MAIN, (-0.78, 0.58), (0, -0.1), (0.78, 0.58)),
        _poly(ACCENT, (-0.6, 0.18), (0, -0.5), (0.6, 0.18)), _poly(MAIN, (-0.44, -0.25), (0, -0.95), (0.44, -0.25)),
    ],
    "fish": [
        _poly(ACCENT, (0.25, 0), (0.95, -0.5), (0.78, 0), (0.95, 0.5)), _poly(ACCENT, (-0.3, -0.3), (0.0, -0.68), (0.25, -0.2)),
        _ellipse(MAIN, -0.22, 0, 0.68, 0.42), _ellipse(DARK, -0.58, -0.1, 0.1, 0.1), _poly(DARK, (-0.25, 0.0), (0.1, -0.14), (0.1, 0.16)),
    ],
    "star": [_star(MAIN, 1.0), _star(ACCENT, 0.45)],
    "cup": [
        _ellipse(MAIN, 0.42, 0.08, 0.44, 0.44), _ellipse(BACK, 0.45, 0.08, 0.23, 0.24),
        _poly(MAIN, (-0.75, -0.6), (0.42, -0.6), (0.32, 0.78), (-0.65, 0.78)),
        _poly(ACCENT, (-0.71, -0.1), (0.38, -0.1), (0.35, 0.3), (-0.68, 0.3)), _ellipse(DARK, -0.165, -0.6, 0.585, 0.16),
    ],
    "car": [
        _poly(MAIN, (-0.58, -0.1), (-0.38, -0.58), (0.32, -0.58), (0.6, -0.1)), _rect(MAIN, -0.95, -0.12, 0.95, 0.38),
        _poly(ACCENT, (-0.42, -0.12), (-0.29, -0.44), (-0.05, -0.44), (-0.05, -0.12)),
        _poly(ACCENT, (0.07, -0.12), (0.07, -0.44), (0.26, -0.44), (0.43, -0.12)),
        _ellipse(DARK, -0.5, 0.4, 0.25, 0.25), _ellipse(DARK, 0.52, 0.4, 0.25, 0.25),
    ],
    "flower": [
        _rect(DARK, -0.06, 0.0, 0.06, 0.98), _poly(DARK, (0, 0.8), (0.28, 0.42), (0.58, 0.4), (0.38, 0.7)),
        *_petals(), _ellipse(ACCENT, 0, -0.35, 0.24, 0.24),
    ],
    "boat": [
        _rect(DARK, -0.1, -0.95, 0.0, 0.4), _poly(ACCENT, (0.06, -0.9), (0.75, 0.2), (0.06, 0.2)),
        _poly(ACCENT, (-0.16, -0.6), (-0.16, 0.2), (-0.62, 0.2)), _poly(MAIN, (-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85)),
    ],
    "heart": [_heart(MAIN), _ellipse(ACCENT, -0.42, -0.42, 0.17, 0.15)],
    "mushroom": [
        _poly(ACCENT, (-0.24, 0), (0.24, 0), (0.36, 0.88), (-0.36, 0.88)), _ellipse(MAIN, 0, 0.08, 0.9, 0.95, 1.0, 2.0),
        _ellipse(DARK, -0.42, -0.2, 0.17, 0.15), _ellipse(DARK, 0.12, -0.52, 0.17, 0.14), _ellipse(DARK, 0.5, -0.14, 0.14, 0.13),
    ],
    "umbrella": [
        _ellipse(MAIN, 0, 0.0, 0.98, 0.85, 1.0, 2.0), _ellipse(ACCENT, 0, 0.0, 0.34, 0.85, 1.0, 2.0),
        _ellipse(BACK, -0.66, 0.04, 0.32, 0.16), _ellipse(BACK, 0, 0.04, 0.34, 0.16), _ellipse(BACK, 0.66, 0.04, 0.32, 0.16),
        _ellipse(DARK, 0.17, 0.72, 0.24, 0.24, 0.0, 1.0), _ellipse(BACK, 0.17, 0.72, 0.11, 0.11, 0.0, 1.0),
        _rect(DARK, -0.07, -0.2, 0.05, 0.73),
    ],
    "key": [
        _rect(MAIN, -0.3, -0.12, 0.95, 0.12), _rect(MAIN, 0.45, 0.1, 0.61, 0.42), _rect(MAIN, 0.76, 0.1, 0.95, 0.5),
        _ellipse(MAIN, -0.52, 0, 0.46, 0.46), _ellipse(BACK, -0.56, 0, 0.22, 0.22), _rect(ACCENT, -0.1, -0.2, 0.06, 0.2),
    ],
}  # fmt: skip


def _label_map(obj: str, rng: np.random.Generator) -> Labels:
    """uint8 [192, 192]: the object at a random place, size, tilt and flip; all background for an empty scene."""
    canvas = Image.new("L", (_CANVAS, _CANVAS), BACK)
    tilt = np.deg2rad(rng.uniform(-10, 10))
    scale = rng.uniform(0.36, 0.42) * _CANVAS
    flip = -1.0 if rng.random() < 0.5 else 1.0
    centre = _CANVAS / 2 + rng.uniform(-0.06, 0.06, 2) * _CANVAS
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]) * scale
    draw = ImageDraw.Draw(canvas)
    for label, points in _SHAPES[obj] if obj != NO_OBJECT else ():
        placed = (points * (flip, 1.0)) @ turn.T + centre
        draw.polygon([(float(x), float(y)) for x, y in placed], fill=label)
    return np.asarray(canvas)


_Y, _X = np.mgrid[0:_CANVAS, 0:_CANVAS].astype(np.float32)


def _colour(hue: float, saturation: float, value: float) -> Pixels:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def _edges(labels: Labels, width: int) -> Pixels:
    """1.0 where the label changes within `width` pixels, else 0.0."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        edge |= labels != np.roll(labels, width, axis)
        edge |= labels != np.roll(labels, -width, axis)
    return edge.astype(np.float32)


def _blur(field: Pixels, radius: float) -> Pixels:
    image = Image.fromarray((field * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(image, np.float32) / np.float32(255)


def _mix(base: Pixels, top: Pixels, weight: Pixels) -> Pixels:
    return base + (top - base) * weight[..., None]


def _photo(labels: Labels, rng: np.random.Generator) -> Pixels:
    hue = rng.random()
    palette = np.stack([_colour(0, 0, 0.5), _colour(hue, 0.65, 0.85), _colour(hue + 0.35, 0.55, 0.75), _colour(hue, 0.5, 0.25)])
    shade = 0.82 + 0.28 * (_X - _Y + _CANVAS)[..., None] / (2 * _CANVAS)
    backdrop = (0.42 + 0.4 * _Y / _CANVAS)[..., None] * np.array([1.0, 1.0, 1.04], np.float32)
    image: Pixels = np.where((labels == BACK)[..., None], backdrop, palette[labels] * shade)
    return image


def _neon(labels: Labels, rng: np.random.Generator) -> Pixels:
    hue = rng.random()
    line = _edges(labels, 2)
    glow = np.clip(_blur(line, 6) * 1.6, 0, 1)
    image = np.broadcast_to(np.array([0.03, 0.02, 0.09], np.float32), (*labels.shape, 3))
    image = _mix(image, _colour(hue, 0.95, 0.9), glow * 0.7)
    return _mix(image, _colour(hue + 0.06, 0.55, 1.0), line)


def _blueprint(labels: Labels, rng: np.random.Generator) -> Pixels:
    blue = np.array([0.08, 0.24, 0.62], np.float32) * rng.uniform(0.92, 1.08)
    grid = ((_X % 24 < 3) | (_Y % 24 < 3)).astype(np.float32)
    image = _mix(np.broadcast_to(blue, (*labels.shape, 3)), np.array([0.45, 0.6, 0.9], np.float32), grid * 0.45)
    image = _mix(image, np.array([0.55, 0.7, 0.95], np.float32), (labels == DARK) * np.float32(0.45))
    return _mix(image, np.array([0.95, 0.98, 1.0], np.float32), _edges(labels, 3))


def _mosaic(labels: Labels, rng: np.random.Generator) -> Pixels:
    hue = rng.random()
    palette = np.stack([_colour(hue + 0.5, 0.28, 0.92), _colour(hue, 0.75, 0.8), _colour(hue + 0.15, 0.75, 0.9), _colour(hue, 0.7, 0.35)])
    tiles = palette[labels].reshape(16, 12, 16, 12, 3).mean((1, 3))
    tiles = np.clip(tiles + rng.uniform(-0.07, 0.07, (16, 16, 1)), 0, 1)
    image = tiles.repeat(12, 0).repeat(12, 1).astype(np.float32)
    grout = ((_X % 12 < 3) | (_Y % 12 < 3)).astype(np.float32)
    return _mix(image, np.array([0.88, 0.86, 0.82], np.float32), grout * 0.75)


def _sketch(labels: Labels, rng: np.random.Generator) -> Pixels:
    paper, pencil = np.float32(rng.uniform(0.94, 0.99)), np.float32(rng.uniform(0.1, 0.2))
    # Strokes are 3 px wide at 64 px: finer hatching is lost in the autoencoder's 16 x 16 latents.
    hatch = ((_X + _Y) % 24 < 9).astype(np.float32)
    tone = np.array([0.0, 0.18, 0.42, 0.75], np.float32)[labels] * np.where(labels == DARK, 1.0, hatch)
    ink = np.maximum(tone, _edges(labels, 2))
    return np.broadcast_to((paper + (pencil - paper) * ink)[..., None], (*labels.shape, 3))


def _sunset(labels: Labels, rng: np.random.Generator) -> Pixels:
    height = (_Y / _CANVAS)[..., None]
    top, bottom = _colour(rng.uniform(0.09, 0.13), 0.75, 1.0), _colour(rng.uniform(0.9, 0.96), 0.65, 0.85)
    sky = top * (1 - height) + bottom * height
    ink = np.array([[0, 0, 0], [0.12, 0.05, 0.12], [0.2, 0.08, 0.17], [0.07, 0.02, 0.08]], np.float32)
    image: Pixels = np.where((labels == BACK)[..., None], sky, ink[labels])
    return image


def _halftone(labels: Labels, rng: np.random.Generator) -> Pixels:
    tone = _blur(np.array([0.1, 0.62, 0.4, 0.85], np.float32)[labels], 3)
    # The screen's period is one latent pixel (12 px here, 4 px at 64), its phase fixed, as in print.
    distance = np.hypot(_X % 12 - 5.5, _Y % 12 - 5.5)
    dot = np.clip((np.sqrt(tone) * 8.2 - distance) / 2 + 0.5, 0, 1)
    paper = np.array([0.97, 0.92, 0.78], np.float32) * rng.uniform(0.97, 1.03)
    return _mix(np.broadcast_to(paper, (*labels.shape, 3)), np.array([0.12, 0.1, 0.1], np.float32), dot)


def _stripes(labels: Labels, rng: np.random.Generator) -> Pixels:
    hue = rng.random()
    palette = np.stack([_colour(hue + 0.5, 0.12, 1.0), _colour(hue, 0.75, 0.8), _colour(hue + 0.3, 0.7, 0.75), _colour(hue, 0.8, 0.35)])
    band = (_Y % 24 < 12).astype(np.float32)
    return _mix(palette[labels], np.ones(3, np.float32), band * 0.4)


def _frost(labels: Labels, rng: np.random.Generator) -> Pixels:
    grain = rng.random((48, 48), np.float32).repeat(4, 0).repeat(4, 1)
    tone = _blur(np.array([0.88, 0.45, 0.62, 0.25], np.float32)[labels], 3) + 0.22 * (grain - 0.5)
    icy, deep = np.array([0.93, 0.97, 1.0], np.float32), np.array([0.2, 0.42, 0.68], np.float32)
    return deep + (icy - deep) * np.clip(tone, 0, 1)[..., None]


def _pop(labels: Labels, rng: np.random.Generator) -> Pixels:
    quadrant = (_Y >= _CANVAS / 2).astype(int) * 2 + (_X >= _CANVAS / 2)
    hues = (rng.random() + np.array([0.0, 0.28, 0.52, 0.78]))[rng.permutation(4)]
    tables = np.stack(
        [np.stack([_colour(h, 0.95, 1.0), _colour(h + 0.5, 0.9, 0.95), np.ones(3, np.float32), np.zeros(3, np.float32)]) for h in hues]
    )
    image: Pixels = tables[quadrant, labels]
    return _mix(image, np.zeros(3, np.float32), _edges(labels, 1) * (labels != BACK))


_PAINT: dict[str, Callable[[Labels, np.random.Generator], Pixels]] = {
    "photo": _photo, "neon": _neon, "blueprint": _blueprint, "mosaic": _mosaic, "sketch": _sketch,
    "sunset": _sunset, "halftone": _halftone, "stripes": _stripes, "frost": _frost, "pop": _pop,
}  # fmt: skip


def _random(style: str, obj: str, seed: int) -> np.random.Generator:
    names = (*OBJECTS, NO_OBJECT)
    if obj not in names:
        raise KeyError(obj)
    return np.random.default_rng([seed, STYLES.index(style), names.index(obj)])


def object_mask(style: str, obj: str, seed: int) -> NDArray[np.float32]:
    """float32 [64, 64]: the share of each pixel of `render(style, obj, seed)` that the object covers."""
    covered = (_label_map(obj, _random(style, obj, seed)) != BACK).astype(np.float32)
    share: NDArray[np.float32] = covered.reshape(SIZE, _CANVAS // SIZE, SIZE, _CANVAS // SIZE).mean((1, 3))
    return share


def render(style: str, obj: str, seed: int) -> NDArray[np.uint8]:
    """One picture, uint8 [64, 64, 3]; `obj` may be `NO_OBJECT`. Raises KeyError for an unknown name."""
    paint = _PAINT[style]
    rng = _random(style, obj, seed)
    pixels = np.clip(paint(_label_map(obj, rng), rng), 0, 1) * 255
    image = Image.fromarray(pixels.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _render_one(cell: tuple[str, str, int]) -> NDArray[np.uint8]:
    return render(*cell)


def render_many(cells: Iterable[tuple[str, str, int]], processes: int = 1) -> NDArray[np.uint8]:
    """uint8 [n, 64, 64, 3] for (style, object, seed) cells, in order; worker processes change the time, not the pixels."""
    jobs = list(cells)
    if processes <= 1 or len(jobs) < 512:
        return np.stack([_render_one(job) for job in jobs])
    with ProcessPoolExecutor(processes) as pool:
        return np.stack(list(pool.map(_render_one, jobs, chunksize=256)))
