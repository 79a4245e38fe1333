"""What is done to pixels: uint8 [H, W, 3] of RGB in and out, as a pure function of them and of its numbers.

Each gives what Pillow gives, which timm's operations are written with: to the bit where a table of 256 values says all,
and within the bounds of `tests/bench/bench_views.py` where values are interpolated or summed. They are done by
OpenCV and by torch on arrays, since an image of Pillow's would be copied on every way in and out.
"""

import math
from typing import Final, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.uint8]  # [H, W, 3]

cv2.setNumThreads(1)  # loader workers are what runs side by side, and threads of OpenCV's would not survive their fork

# Pillow cuts a blended value off, OpenCV rounds it; half a value less is the same, but for what is whole already
CUT_OFF: Final = -0.49
NO_MAP: Final = np.empty(0)  # beside one that holds both coordinates
VALUES: Final = np.arange(256)


class Warp(NamedTuple):
    """How pixels are found where they move (a flag of OpenCV's), and what colour is outside the image."""

    method: int
    fill: tuple[int, int, int]


# ---- size and place --------------------------------------------------------------------------------------------------


def resize(image: Image, width: int, height: int, method: str = "bicubic") -> Image:
    """Return the image at another size.

    `bicubic` is antialiased, as Pillow has it; `bilinear` is of four pixels, as TensorFlow and OpenCV have it.
    """
    if image.shape[:2] == (height, width):
        return image
    # channels last, which is fast; were the batch made of an image whose channels have changed places, torch would not
    # see it, and give planes
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, (height, width), mode=method, antialias=method == "bicubic")
    return resized.numpy().transpose(0, 2, 3, 1)[0]


def mirror(image: Image) -> Image:
    """Return the image with left and right exchanged."""
    return _image(cv2.flip(image, 1))


def pad(image: Image, by: int, border: int = cv2.BORDER_CONSTANT) -> Image:
    """Return the image with so many pixels around it: zeros, or what a border of OpenCV's gives."""
    return _image(cv2.copyMakeBorder(image, by, by, by, by, border))


def rotate(image: Image, degrees: float, warp: Warp) -> Image:
    """Return the image turned about its middle, against the clock."""
    height, width = image.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (width - 1) / 2, (height - 1) / 2
    taken_from = np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])
    flags = warp.method | cv2.WARP_INVERSE_MAP
    return _image(
        cv2.warpAffine(image, taken_from, (width, height), None, flags, cv2.BORDER_CONSTANT, borderValue=warp.fill)
    )


def translate(image: Image, x: float, y: float, warp: Warp) -> Image:
    """Return the image taken from x further right and y further below: a copy, and a filter for parts of a pixel."""
    height, width = image.shape[:2]
    columns, rows = math.floor(x + 0.5), math.floor(y + 0.5)
    if abs(columns) >= width or abs(rows) >= height:
        return np.full_like(image, warp.fill)
    if warp.method != cv2.INTER_NEAREST:
        kernel = np.outer(taps(y - rows, warp.method), taps(x - columns, warp.method))
        image = _image(cv2.filter2D(image, -1, kernel, delta=CUT_OFF, borderType=cv2.BORDER_REPLICATE))
    right, left, below, above = max(columns, 0), max(-columns, 0), max(rows, 0), max(-rows, 0)
    kept = image[below : height - above, right : width - left]
    return _image(cv2.copyMakeBorder(kept, above, below, left, right, cv2.BORDER_CONSTANT, value=warp.fill))


def shear_x(image: Image, slope: float, shift: float, warp: Warp) -> Image:
    """Return the image whose rows are taken from further right, by shift + slope y; y is the middle of a row.

    Rows whose places lie alike between pixels, to 1 / PARTS, go through one filter of a row's pixels. OpenCV's warp
    would weigh four rows for each pixel, where one says all.
    """
    height, width = image.shape[:2]
    shifts = shift + slope * (np.arange(height) + 0.5)
    if warp.method == cv2.INTER_NEAREST:
        whole = np.floor(shifts + 0.5).astype(int)
    else:
        whole, parts = np.divmod(np.round(shifts * PARTS).astype(int) + PARTS // 2, PARTS)
        between, image = image, np.empty_like(image)
        for part, kernel in enumerate(ROW_KERNELS[warp.method]):
            (rows,) = (parts == part).nonzero()
            if len(rows):
                image[rows] = cv2.filter2D(between[rows], -1, kernel, delta=CUT_OFF, borderType=cv2.BORDER_REPLICATE)
    taken_from = np.empty((height, width, 2), np.int16)
    taken_from[..., 0] = np.arange(width) + np.clip(whole, -width, width)[:, None]
    taken_from[..., 1] = np.arange(height)[:, None]
    return _image(
        cv2.remap(image, taken_from, NO_MAP, cv2.INTER_NEAREST, None, cv2.BORDER_CONSTANT, borderValue=warp.fill)
    )


def shear_y(image: Image, slope: float, shift: float, warp: Warp) -> Image:
    """Return the image whose columns are taken from further below, by shift + slope x."""
    return _image(cv2.transpose(shear_x(_image(cv2.transpose(image)), slope, shift, warp)))


def taps(shift: float, method: int) -> NDArray[np.float64]:
    """Return the weights of the pixels at -2 to 2 for a place within half a pixel from the one at 0."""
    apart = np.abs(np.arange(-2, 3) - shift)
    if method == cv2.INTER_LINEAR:
        return np.maximum(1 - apart, 0)
    near, far = 1 - 2 * apart**2 + apart**3, 4 - 8 * apart + 5 * apart**2 - apart**3  # a = -1, as Pillow has it
    return np.where(apart < 1, near, np.where(apart < 2, far, 0))


PARTS: Final = 8  # of a pixel
ROW_KERNELS: Final = {
    method: [taps(part / PARTS - 0.5, method)[None] for part in range(PARTS)]
    for method in (cv2.INTER_CUBIC, cv2.INTER_LINEAR)
}


# ---- values ----------------------------------------------------------------------------------------------------------


def look_up(image: Image, table: ArrayLike) -> Image:
    """Return the image with each value replaced by a table [256] for all channels, or [256, 3]: cut to 8 bits."""
    values = np.clip(table, 0, 255).astype(np.uint8)
    return _image(cv2.LUT(image, values if values.ndim == 1 else values[None]))


def blend_with(image: Image, value: int, factor: float) -> Image:
    """Return the image between one value, at a factor of 0, and itself, at 1; beyond that, away from it."""
    return look_up(image, value + np.float32(factor) * (VALUES - value).astype(np.float32))


def brightness(image: Image, factor: float) -> Image:
    """Return the image between black and itself."""
    return blend_with(image, 0, factor)


def contrast(image: Image, factor: float) -> Image:
    """Return the image between the mean of its greys and itself."""
    return blend_with(image, int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5), factor)


def saturation(image: Image, factor: float) -> Image:
    """Return the image between its greys and itself."""
    matrix = factor * np.eye(3, 4) + (1 - factor) * GREY_WEIGHTS
    matrix[:, 3] = CUT_OFF
    return _image(cv2.transform(image, matrix))


GREY_WEIGHTS: Final = np.array([0.299, 0.587, 0.114, 0.0])  # ITU-R 601-2, as Pillow has them


def grey(image: Image) -> Image:
    """Return the image in its greys, three times."""
    return _image(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def sharpness(image: Image, factor: float) -> Image:
    """Return the image between its smoothed self and itself; what is at the border stays."""
    kernel = (1 - factor) * SMOOTH
    kernel[1, 1] += factor
    sharpened = _image(cv2.filter2D(image, -1, kernel, delta=CUT_OFF))
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharpened[border] = image[border]
    return sharpened


SMOOTH: Final = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13


def invert(image: Image) -> Image:
    """Return the negative."""
    return look_up(image, 255 - VALUES)


def posterize(image: Image, bits: int) -> Image:
    """Return the image with its high bits alone; 0 make it black."""
    return look_up(image, VALUES & ~(2 ** (8 - bits) - 1))


def solarize(image: Image, threshold: int = 128) -> Image:
    """Return the image with the values from a threshold on inverted."""
    return look_up(image, np.where(threshold > VALUES, VALUES, 255 - VALUES))


def solarize_add(image: Image, add: int) -> Image:
    """Return the image with something added to what is darker than 128."""
    return look_up(image, np.where(VALUES < 128, VALUES + add, VALUES))


def autocontrast(image: Image) -> Image:
    """Return the image whose darkest value of each channel is 0, and whose brightest is 255."""
    tables = []
    for counts in histograms(image):
        (met,) = counts.nonzero()
        low, high = int(met[0]), int(met[-1])
        if low < high:
            scale = 255 / (high - low)
            tables.append((VALUES * scale - low * scale).astype(int))
        else:
            tables.append(VALUES)
    return look_up(image, np.stack(tables, axis=1))


def equalize(image: Image) -> Image:
    """Return the image whose values of each channel are met about equally often."""
    tables = []
    for counts in histograms(image):
        met = counts[counts > 0]
        step = int(met.sum() - met[-1]) // 255
        below = np.concatenate(([0], np.cumsum(counts)[:-1]))
        tables.append((step // 2 + below) // step if step else VALUES)
    return look_up(image, np.stack(tables, axis=1))


def histograms(image: Image) -> NDArray[np.int64]:
    """Return how often each value is met, [3, 256]."""
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    return np.stack(counts).astype(int)


def blur(image: Image, sigma: float) -> Image:
    """Return the image under what Pillow takes for a Gaussian: three boxes of the same variance, with soft edges."""
    variance = sigma**2 / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)  # the radius without its soft edge
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.concatenate(([edge], np.ones(2 * whole + 1), [edge])) / (2 * (whole + edge) + 1)
    kernel = np.convolve(np.convolve(box, box), box)
    return _image(cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE))


def _image(found: cv2.typing.MatLike) -> Image:
    """Return what OpenCV gives as what it is: uint8, as its argument was."""
    return found  # type: ignore[return-value]
