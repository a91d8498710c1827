"""Natural images from scikit-image's wheel, mapped to the contrast of CT, or to intensities of about 0 to 1.

They lend a denoiser edges and textures that no phantom has. Photographs are only ever shrunk (enlarging one teaches
that the world is smooth, and shrinking averages the camera's own noise away), and their grey values get a
random contrast of the size that organs have.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from ldctlib.errors import MissingDependency, ParameterError, ScanError

IMAGES = """
    astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png gravel.png
    hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png motorcycle_right.png retina.jpg rocket.jpg
""".split()
"""Files of skimage/data that every wheel carries (the others are downloaded, and are not used)."""


@lru_cache(maxsize=1)
def photographs() -> tuple[np.ndarray, ...]:
    """All images as luminance, float32 (H, W) in [0, 1]."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = [folder / name for name in IMAGES if (folder / name).is_file()]
    if len(found) < 8:
        raise MissingDependency(f"{folder} holds only {len(found)} of its images: reinstall scikit-image from a wheel")
    return tuple(read_photograph(path) for path in found)


def read_photograph(path: Path) -> np.ndarray:
    """An image file as luminance, float32 (H, W) in [0, 1]; raises ScanError where it cannot be read as one."""
    from PIL import Image
    from skimage.color import rgb2gray

    try:
        with Image.open(path) as file:
            if file.mode.startswith("I"):  # 16 bits
                return (np.asarray(file) / 65535.0).astype(np.float32)
            image = np.asarray(file if file.mode in ("L", "RGB") else file.convert("RGB"))
        return (rgb2gray(image) if image.ndim == 3 else image / 255.0).astype(np.float32)
    except Exception as error:  # whatever its decoder raises
        raise ScanError(f"{path} cannot be read as an image ({error}): remove it, or convert it to PNG") from error


def shrink(image: np.ndarray, factor: float) -> np.ndarray:
    """An anti-aliased smaller image; ``factor`` >= 1 is how many pixels become one."""
    from skimage.transform import resize

    if factor < 1:
        raise ParameterError(f"photographs are only shrunk: factor must be at least 1, got {factor}")
    shape = tuple(max(8, round(n / factor)) for n in image.shape)
    return resize(image, shape, order=1, anti_aliasing=True).astype(np.float32)


def random_photograph(rng: np.random.Generator, min_size: int) -> tuple[np.ndarray, float]:
    """A photograph, shrunk by 1.2 to 2.5 and turned, at least ``min_size`` a side, float32 (H, W) of mean 0; and the
    span from its 1st to its 99th percentile."""
    candidates = [image for image in photographs() if min(image.shape) >= 1.2 * min_size]
    if not candidates:
        raise ParameterError(f"no photograph is {min_size} pixels wide after shrinking; ask for a smaller min_size")
    image = candidates[rng.integers(len(candidates))]
    most = min(2.5, min(image.shape) / min_size)
    image = shrink(image, rng.uniform(1.2, max(most, 1.2)))
    image = np.rot90(image, rng.integers(4))
    low, high = np.percentile(image, (1, 99))
    return image - image.mean(), max(high - low, 1e-3)


def random_hu(rng: np.random.Generator, *, min_size: int) -> np.ndarray:
    """One photograph as a noise-free slice in HU, float32 (H, W), at least ``min_size`` a side.

    Its 1st to 99th percentile spans 60 to 900 HU about a soft-tissue mean, half of them with black and white exchanged.
    """
    image, width = random_photograph(rng, min_size)
    span = np.exp(rng.uniform(np.log(60), np.log(900))) * rng.choice((-1, 1))
    image = image * (span / width) + rng.uniform(-110, 120)
    return np.clip(image, -1000, 2000).astype(np.float32)


def random_intensity(rng: np.random.Generator, *, min_size: int) -> np.ndarray:
    """One photograph as an image in arbitrary units, float32 (H, W) from 0 on, at least ``min_size`` a side.

    Its 1st to 99th percentile spans .15 to 1 about a mean of .15 to .5, half of them with black and white exchanged.
    """
    image, width = random_photograph(rng, min_size)
    span = np.exp(rng.uniform(np.log(0.15), np.log(1.0))) * rng.choice((-1, 1))
    return np.clip(image * (span / width) + rng.uniform(0.15, 0.5), 0, 1.5).astype(np.float32)
