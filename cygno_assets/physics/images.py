"""From an image file's bytes to a tensor, and to a thumbnail to look at.

Here belong decoding, cropping and windowing; not where the bytes come from or go to.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from cygno_assets.physics.spec import PreprocessSpec

_PNG_BIT_DEPTH = 24
"""Where a PNG's header (IHDR, which comes first) has it; W3C PNG, third edition, 11.2.1."""
_SCAN = b"\xff\xda"
"""What each scan of a JPEG begins with (SOS), and nothing within one; ITU-T T.81, table B.1."""
_MAX_SCANS = 64
"""Of a progressive JPEG. Encoders write six or ten; each costs a pass over all pixels, however few
bytes it has, so that an image of the size allowed could take hours."""
THUMBNAIL_MAX_BYTES = 3_000
"""So that a thumbnail with its base64 and Markdown stays within 4 kB."""


class ImageError(ValueError):
    """These bytes are not an image we can use; trying again will not help."""


def open_image(data: bytes, *, max_pixels: int) -> Image:
    """Reads format, size and mode from the file's header, and refuses what cannot be used.

    No pixel is decoded, so a file that claims huge dimensions costs nothing.

    Args:
        data: the file's bytes: JPEG or PNG.
        max_pixels: largest width × height accepted.

    Raises:
        ImageError: not JPEG or PNG, more than max_pixels, not 8-bit mode L, or of many scans.
    """
    import PIL
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except PIL.UnidentifiedImageError:
        raise ImageError(f"not a JPEG or PNG image: {_beginning(data)}") from None
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"image too large: {error}") from None
    # Pillow raises what its parsers meet (SyntaxError, struct.error, …) on broken headers.
    except Exception as error:  # noqa: BLE001
        raise ImageError(f"image header cannot be read: {error}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"image too large: {width} × {height} is {width * height} pixels, "
            f"more than the {max_pixels} allowed"
        )
    if image.mode != "L":
        raise ImageError(f"image is mode {image.mode}; the camera's are 8-bit mode L")
    # Pillow stretches 2 and 4 bits to 8 and says L.
    if image.format == "PNG" and (depth := data[_PNG_BIT_DEPTH]) != 8:
        raise ImageError(f"image has {depth} bits a pixel; the camera's are 8-bit mode L")
    if image.info.get("progressive") and (scans := data.count(_SCAN)) > _MAX_SCANS:
        raise ImageError(f"image has {scans} scans, more than the {_MAX_SCANS} allowed")
    return image


def decode_image(data: bytes, *, max_pixels: int) -> Image:
    """Decodes an image file whole.

    Returns:
        The image, 8-bit mode L, with all its pixels in memory.

    Raises:
        ImageError: as `open_image`, or the file is truncated or its data broken.
    """
    image = open_image(data, max_pixels=max_pixels)
    try:
        image.load()
    except Exception as error:  # noqa: BLE001 – as above
        raise ImageError(f"image cannot be decoded ({len(data)} bytes): {error}") from None
    return image


def _beginning(data: bytes) -> str:
    return f"{len(data)} bytes, beginning {data[:16]!r}" if data else "0 bytes"


def crop_corner(shape: tuple[int, ...], half_width: int) -> tuple[int, int]:
    """First row and column of the central square, as the school cuts it.

    With (r0, c0) = (rows // 2, columns // 2) it has rows r0 − h … r0 + h − 1, and columns alike.

    Args:
        shape: (rows, columns), both at least 2 × half_width; odd ones too.
        half_width: half the side, in pixels.

    Raises:
        ImageError: the image is smaller than the square.
    """
    rows, columns = shape
    if min(rows, columns) < 2 * half_width:
        raise ImageError(
            f"image of {columns} × {rows} pixels is smaller than the central square "
            f"of {2 * half_width}"
        )
    return rows // 2 - half_width, columns // 2 - half_width


def crop_centre(pixels: NDArray[np.uint8], half_width: int) -> NDArray[np.uint8]:
    """The central square.

    Args:
        pixels: (rows, columns).
        half_width: half the side, in pixels.

    Returns:
        A view of shape (2 × half_width, 2 × half_width).

    Raises:
        ImageError: the image is smaller than the square.
    """
    top, left = crop_corner(pixels.shape, half_width)
    return pixels[top : top + 2 * half_width, left : left + 2 * half_width]


def window(pixels: NDArray[np.uint8], low: float, high: float) -> NDArray[np.float32]:
    """Windowing: (x − low) / (high − low), clipped to [0, 1]; float32, so nothing overflows."""
    with np.errstate(over="ignore"):  # of a window narrower than floats can divide by
        values = np.clip((np.arange(256) - low) / (high - low), 0.0, 1.0)
    table: NDArray[np.float32] = values.astype(np.float32)
    return table[pixels]


def preprocess(image: Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    """The tensor a model sees, by the same function for live and training images.

    Args:
        image: 8-bit, mode L, as from `decode_image`.
        spec: crop and window.

    Returns:
        float32 of shape (spec.side, spec.side), in [0, 1], C-contiguous.

    Raises:
        ImageError: the image is smaller than the crop.
    """
    square = crop_centre(np.asarray(image), spec.half_width)
    return window(square, spec.window_low, spec.window_high)


def clipped_shares(image: Image, spec: PreprocessSpec) -> tuple[float, float]:
    """Shares, in [0, 1], of the crop's pixels below window_low and above window_high.

    Raises:
        ImageError: the image is smaller than the crop.
    """
    square = crop_centre(np.asarray(image), spec.half_width)
    return float(np.mean(square < spec.window_low)), float(np.mean(square > spec.window_high))


def thumbnail_jpeg(tensor: NDArray[np.float32], *, max_bytes: int = THUMBNAIL_MAX_BYTES) -> bytes:
    """A grey JPEG of a tensor to look at, in the best resolution and quality that fit.

    Pixels are averaged in squares and the result is enlarged again, so that a faint track stands
    out from the noise and can be seen without a magnifying glass.

    Args:
        tensor: (side, side), in [0, 1]; 1 is white.
        max_bytes: of the file.

    Returns:
        A JPEG file of 256 × 256 pixels.

    Raises:
        ValueError: max_bytes is too little for any image.
    """
    import PIL.Image

    whole = PIL.Image.fromarray(np.rint(tensor * 255).astype(np.uint8))
    for cells in (64, 48, 32, 16):
        averaged = whole.resize((cells, cells), PIL.Image.Resampling.BOX)
        enlarged = averaged.resize((256, 256), PIL.Image.Resampling.BICUBIC)
        for quality in (40, 20, 10):
            buffer = io.BytesIO()
            enlarged.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
    raise ValueError(f"no thumbnail fits into {max_bytes} bytes")
