"""Pictures for people: histograms, populations, images, recoils, rates over time; as PNG.

Here belongs how they look; what is in them is chosen by whoever calls. matplotlib's `Figure` is
used by itself, without pyplot and its global state.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from cygno_assets.physics.histogram import BINS
from cygno_assets.physics.images import crop_corner
from cygno_assets.physics.tracks import BLOCK_PX, brightest_spot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from cygno_assets.physics.ground_truth import RecoilType
    from cygno_assets.physics.histogram import PixelHistogram
    from cygno_assets.physics.spec import PreprocessSpec

_DPI = 100
_DRAWING_COLOURS = 32
_JPEG_QUALITY = 75
_MARKS = ("o", "s", "^", "D", "v")
_LINE_COLOURS = ("#0b3d91", "#c8102e", "#1b7f3b", "#d98c00", "#6a3d9a")
RECOIL_COLOURS: dict[RecoilType, tuple[str, ...]] = {
    "nuclear": ("#02060f", "#0b3d91", "#4f9dff", "#ffffff"),
    "electronic": ("#0f0209", "#8f0f56", "#ff6fb5", "#ffffff"),
}
"""Colour maps, dark to bright: nuclear recoils are blue, electron recoils pink."""


def histogram_figure(histogram: PixelHistogram, spec: PreprocessSpec, title: str) -> bytes:
    """How often each value occurs, log scale, with the specification's window marked.

    Args:
        histogram: of one image or of many; of none, an empty plot that says so.
        spec: whose window is marked.
        title: above the plot.

    Returns:
        A PNG file of 640 × 360 pixels.
    """
    figure = _figure(6.4, 3.6)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    _draw_histogram(axes, histogram.counts, spec)
    return _as_png(figure)


def _draw_histogram(axes: Axes, counts: NDArray[np.int64], spec: PreprocessSpec) -> None:
    axes.axvspan(spec.window_low, spec.window_high, color="#4f9dff", alpha=0.18, lw=0)
    for edge in (spec.window_low, spec.window_high):
        axes.axvline(edge, color="#0b3d91", ls="--", lw=1)
    axes.set_xlabel(
        f"pixel value, ADU (shaded: window {spec.window_low:g}–{spec.window_high:g})", fontsize=9
    )
    axes.set_ylabel("pixels per ADU", fontsize=9)
    axes.tick_params(labelsize=8)
    edges = np.arange(counts.size + 1) - 0.5
    axes.set_xlim(edges[0], edges[-1])
    if counts.any():
        axes.stairs(counts, edges, color="#202020", lw=1)
        axes.set_yscale("log")
        axes.set_ylim(0.5, 2 * counts.max())
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no images", transform=axes.transAxes, ha="center", fontsize=12)


def population_figure(population: Mapping[tuple[RecoilType, float], int]) -> bytes:
    """How many images there are of each recoil type and energy.

    Args:
        population: images by recoil type and energy in keV; what is missing counts 0.

    Returns:
        A PNG file of 640 × 240 pixels.
    """
    energies = sorted({energy_kev for _, energy_kev in population})
    figure = _figure(6.4, 2.4)
    axes = figure.add_subplot()
    width = 0.4
    for offset, (recoil_type, colours) in zip((-0.5, 0.5), RECOIL_COLOURS.items(), strict=True):
        heights = [population.get((recoil_type, energy), 0) for energy in energies]
        bars = axes.bar(
            np.arange(len(energies)) + offset * width,
            heights,
            width,
            color=colours[2],
            label=f"{recoil_type} recoils",
        )
        axes.bar_label(bars, fontsize=8)
    axes.set_xticks(range(len(energies)), [f"{energy:g}" for energy in energies], fontsize=8)
    axes.set_xlabel("energy, keV", fontsize=9)
    axes.set_ylabel("images", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.margins(y=0.2)
    axes.legend(fontsize=8, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.25), frameon=False)
    return _as_png(figure)


def events_figure(materialized: Sequence[float], failed: Sequence[float], title: str) -> bytes:
    """How many events there were in each hour of a day.

    Args:
        materialized: when each event was acquired, in hours since midnight.
        failed: the same of events that failed.
        title: above the plot.

    Returns:
        A PNG file of 640 × 240 pixels.
    """
    figure = _figure(6.4, 2.4)
    axes = figure.add_subplot()
    axes.hist(
        [materialized, failed],
        bins=list(range(25)),
        stacked=True,
        color=["#4f9dff", "#ff6fb5"],
        label=["materialized", "failed"],
    )
    axes.set_title(title, fontsize=9)
    axes.set_xlim(0, 24)
    axes.set_xticks(range(0, 25, 3))
    axes.set_xlabel("acquired, hour of the day (UTC)", fontsize=9)
    axes.set_ylabel("events per hour", fontsize=9)
    axes.tick_params(labelsize=8)
    if failed:
        axes.legend(fontsize=8, frameon=False)
    return _as_png(figure)


def image_figure(pixels: NDArray[np.uint8], title: str) -> bytes:
    """One image as recorded: every pixel, all its values, with a scale in ADU.

    Args:
        pixels: (rows, columns), in ADU.
        title: above the image.

    Returns:
        A PNG file of 620 × 540 pixels.
    """
    figure = _figure(6.2, 5.4)
    axes = figure.add_subplot()
    shown = axes.imshow(pixels, cmap="gray", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("column, pixels", fontsize=9)
    axes.set_ylabel("row, pixels", fontsize=9)
    axes.tick_params(labelsize=8)
    scale = figure.colorbar(shown, ax=axes, shrink=0.85)
    scale.set_label("ADU", fontsize=9)
    scale.ax.tick_params(labelsize=8)
    return _as_png(figure)


def event_figure(
    pixels: NDArray[np.uint8],
    tensor: NDArray[np.float32] | None,
    spec: PreprocessSpec,
    title: str,
) -> bytes:
    """One event: its image with crop and brightest spot marked, its tensor, its pixel histogram.

    Args:
        pixels: (rows, columns), in ADU.
        tensor: (side, side), in [0, 1]; None if there is none.
        spec: whose crop and window are marked; an image smaller than the crop has no mark.
        title: above them.

    Returns:
        A PNG file of 1400 × 460 pixels.
    """
    from matplotlib.patches import Rectangle

    figure = _figure(14, 4.6)
    figure.suptitle(title, fontsize=10)
    whole, cropped, counted = figure.subplots(1, 3)
    shown = whole.imshow(pixels, cmap="gray", interpolation="nearest")
    figure.colorbar(shown, ax=whole, shrink=0.85).set_label("ADU", fontsize=9)
    if min(pixels.shape) >= spec.side:
        top, left = crop_corner(pixels.shape, spec.half_width)
        whole.add_patch(
            Rectangle((left - 0.5, top - 0.5), spec.side, spec.side, fill=False, ec="#4f9dff")
        )
    spot = brightest_spot(pixels)
    if spot is not None:
        corner = (spot.column - 0.5, spot.row - 0.5)
        whole.add_patch(Rectangle(corner, BLOCK_PX, BLOCK_PX, fill=False, ec="#ff6fb5", lw=2))
        whole.set_title(
            f"blue: crop; pink: brightest spot, {spot.adu:.1f} ADU at row {spot.row}, column "
            f"{spot.column}",
            fontsize=8,
        )
    whole.set_xlabel("column, pixels", fontsize=9)
    whole.set_ylabel("row, pixels", fontsize=9)
    if tensor is None:
        cropped.set_axis_off()
        cropped.text(0.5, 0.5, "no tensor", transform=cropped.transAxes, ha="center")
    else:
        cropped.imshow(tensor, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        cropped.set_title("tensor: black 0, white 1", fontsize=8)
    _draw_histogram(counted, np.bincount(pixels.ravel(), minlength=BINS), spec)
    for axes in (whole, cropped, counted):
        axes.tick_params(labelsize=8)
    return _as_png(figure)


def recoils_figure(
    recoils: Mapping[RecoilType, Sequence[tuple[str, NDArray[np.float32]]]], spec: PreprocessSpec
) -> bytes:
    """Nuclear recoils in blue above electron recoils in pink, after crop and window.

    Args:
        recoils: captions and tensors by recoil type; tensors in [0, 1]. Rows may be of different
            length; an empty one says so.
        spec: what made the tensors.

    Returns:
        A PNG file of 680 × 340 pixels.
    """
    from matplotlib.colors import LinearSegmentedColormap

    columns = max([len(row) for row in recoils.values()] + [1])
    figure = _figure(6.8, 3.4)
    figure.suptitle(
        f"central {spec.side} × {spec.side} pixels, window {spec.window_low:g}–"
        f"{spec.window_high:g} ADU",
        fontsize=9,
    )
    panels = figure.subplots(2, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, (recoil_type, colours) in zip(panels, RECOIL_COLOURS.items(), strict=True):
        colour_map = LinearSegmentedColormap.from_list(recoil_type, colours)
        shown = recoils.get(recoil_type, [])
        for axes, (caption, tensor) in zip(row, shown, strict=False):
            axes.imshow(tensor, cmap=colour_map, vmin=0, vmax=1)
            axes.set_title(caption, fontsize=8, color=colours[1])
        if not shown:
            row[0].text(0, 0.5, f"no {recoil_type} recoils", fontsize=9)
    return _as_png(figure)


def offenders_figure(
    images: Sequence[tuple[str, NDArray[np.uint8]]], spec: PreprocessSpec
) -> bytes:
    """Images with something wrong, side by side, with the crop drawn in.

    Args:
        images: captions, and pixels in ADU; at least one.
        spec: whose crop and window are shown.

    Returns:
        A PNG file, 150 pixels wide for each image and 180 high. Of each image it shows the central
        square of twice the crop's side, and the mean of every 2 × 2 pixels, so that tracks stand
        out.
    """
    from matplotlib.patches import Rectangle

    figure = _figure(1.5 * len(images), 1.8)
    panels = figure.subplots(1, len(images), squeeze=False)[0]
    for axes, (caption, pixels) in zip(panels, images, strict=True):
        rows, columns = (length // 2 * 2 for length in pixels.shape)
        means = pixels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
        axes.imshow(
            means,
            cmap="gray",
            vmin=spec.window_low,
            vmax=spec.window_high,
            extent=(0, columns, rows, 0),
        )
        top, left = crop_corner(pixels.shape, spec.half_width)
        axes.add_patch(Rectangle((left, top), spec.side, spec.side, fill=False, ec="#ff6fb5", lw=1))
        axes.set_xlim(max(left - spec.half_width, 0), min(left + 3 * spec.half_width, columns))
        axes.set_ylim(min(top + 3 * spec.half_width, rows), max(top - spec.half_width, 0))
        axes.set_title(caption, fontsize=6)
        axes.set_axis_off()
    return _as_png(figure)


@dataclass(frozen=True)
class Panel:
    """One of several plots over the same time.

    Attributes:
        label: of its axis, with the unit.
        lines: values by name; NaN leaves a gap. Its name is not shown if there is but one.
        is_log: log scale, for what spans decades; what is not positive is not shown then.
    """

    label: str
    lines: Mapping[str, Sequence[float]]
    is_log: bool = False


def over_time_figure(hours: Sequence[float], panels: Sequence[Panel], title: str) -> bytes:
    """Plots one below the other, over the same time.

    Args:
        hours: of the values, in h, in order; negative before the moment that the title tells.
        panels: from top to bottom; each line has a value for each of the hours.
        title: above the plots.

    Returns:
        A PNG file, 720 pixels wide, and 150 high for each panel and 30 for the title.
    """
    figure = _figure(7.2, 1.5 * len(panels) + 0.3)
    figure.suptitle(title, fontsize=10)
    plots = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, panel in zip(plots, panels, strict=True):
        # Told apart by their marks too, for colours are few in a small copy.
        for (name, values), mark, colour in zip(
            panel.lines.items(), cycle(_MARKS), cycle(_LINE_COLOURS), strict=False
        ):
            axes.plot(hours, values, marker=mark, ms=4, lw=1, color=colour, label=name)
        axes.set_ylabel(panel.label, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if panel.is_log and any(value > 0 for line in panel.lines.values() for value in line):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if len(panel.lines) > 1:
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    plots[-1].set_xlabel("time, h", fontsize=8)
    return _as_png(figure)


def quantity_figure(
    minutes: NDArray[np.float64],
    values: NDArray[np.float64],
    limits: tuple[float, float],
    label: str,
    title: str,
) -> bytes:
    """A quantity of each event over time, and the limits that its median may not pass.

    Args:
        minutes: of each event, before the newest one: 0 and less.
        values: of each event, of the same shape.
        limits: drawn as lines; what is outside is shaded.
        label: of the quantity, with its unit.
        title: above the plot.

    Returns:
        A PNG file of 480 × 240 pixels.
    """
    figure = _figure(4.8, 2.4)
    axes = figure.add_subplot()
    axes.plot(minutes, values, ".", ms=2, color="#0b3d91")
    low, high = axes.get_ylim()
    margin = 0.2 * (limits[1] - limits[0])
    low, high = min(low, limits[0] - margin), max(high, limits[1] + margin)
    for edge, outside in zip(limits, (low, high), strict=True):
        axes.axhline(edge, color="#8f0f56", ls="--", lw=1)
        axes.axhspan(edge, outside, color="#ff6fb5", alpha=0.18, lw=0)
    axes.set_ylim(low, high)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("minutes before the newest event", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    return _as_png(figure)


def comparison_figure(live: NDArray[np.int64], training: NDArray[np.float64], title: str) -> bytes:
    """Shares of the pixel values of two sets of images, log scale.

    Args:
        live: counts of the values 0 … 255, of shape (256,); at least one.
        training: likewise.
        title: above the plot.

    Returns:
        A PNG file of 480 × 240 pixels.
    """
    figure = _figure(4.8, 2.4)
    axes = figure.add_subplot()
    edges = np.arange(live.size + 1) - 0.5
    axes.stairs(training / training.sum(), edges, color="#ff6fb5", lw=1.5, label="training set")
    axes.stairs(live / live.sum(), edges, color="#0b3d91", lw=1, label="live")
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-8)
    seen = np.flatnonzero(live)
    axes.set_xlim(seen[0] - 5, seen[-1] + 5)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("pixel value, ADU", fontsize=8)
    axes.set_ylabel("share of pixels", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    return _as_png(figure)


def columns_figure(hottest: NDArray[np.int64], columns: int, title: str) -> bytes:
    """In how many images each column is the hottest.

    Args:
        hottest: a column of each image, counted from 0; at least one.
        columns: how many there are.
        title: above the plot.

    Returns:
        A PNG file of 480 × 240 pixels.
    """
    figure = _figure(4.8, 2.4)
    axes = figure.add_subplot()
    images = np.bincount(hottest, minlength=columns)
    axes.stairs(images, np.arange(images.size + 1) - 0.5, color="#0b3d91", fill=True)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("column, pixels", fontsize=8)
    axes.set_ylabel("images it is hottest in", fontsize=8)
    axes.tick_params(labelsize=7)
    return _as_png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _as_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def small_copy(png: bytes) -> tuple[str, bytes]:
    """A picture of the same size in pixels and a fraction of the bytes, for the event log.

    Returns:
        Its media type and the file: a PNG of few colours or a JPEG, whichever is smaller. Drawings
        become the one, camera images the other.
    """
    import PIL.Image

    image = PIL.Image.open(io.BytesIO(png)).convert("RGB")
    drawing, photo = io.BytesIO(), io.BytesIO()
    few = image.quantize(_DRAWING_COLOURS, dither=PIL.Image.Dither.NONE)
    few.save(drawing, "PNG", optimize=True)
    image.save(photo, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    copies = [("image/png", drawing.getvalue()), ("image/jpeg", photo.getvalue())]
    return min(copies, key=lambda copy: len(copy[1]))
