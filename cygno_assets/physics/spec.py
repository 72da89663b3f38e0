"""What a tensor is made by: `PreprocessSpec` and its hash. Not how: that is images.py."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property


@dataclass(frozen=True)
class PreprocessSpec:
    """Crop and window that turn an image into a tensor, the same for live and training images.

    The defaults are the school's: a central square of side 128 and the window 80–110 ADU, which
    clips 0.03 % of a live image's pixels low and 2.5 % high.

    Attributes:
        half_width: half the side of the central square, in pixels.
        window_low: ADU that becomes 0; what is below is clipped.
        window_high: ADU that becomes 1; what is above is clipped.
        version: of the method itself; raised when the same numbers would give other tensors.

    Raises:
        ValueError: half_width below 1, or a window that is empty or not finite.
    """

    half_width: int = 64
    window_low: float = 80.0
    window_high: float = 110.0
    version: int = 1

    def __post_init__(self) -> None:
        if self.half_width < 1:
            raise ValueError(f"half_width must be at least 1 pixel, not {self.half_width}")
        if not float("-inf") < self.window_low < self.window_high < float("inf"):
            raise ValueError(
                f"window_low ({self.window_low}) must be below window_high ({self.window_high}), "
                "both finite"
            )

    @property
    def side(self) -> int:
        """Side of the square tensor, in pixels."""
        return 2 * self.half_width

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that stand for exactly this specification.

        80 and 80.0 are the same window and hash alike.
        """
        numbers = asdict(self) | {
            "window_low": float(self.window_low) + 0.0,  # −0.0 is 0
            "window_high": float(self.window_high) + 0.0,
            "dtype": "float32",
        }
        text = json.dumps(numbers, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
