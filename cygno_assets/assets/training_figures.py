"""Figures of the training set, as assets: what people look at before they trust a dataset.

Here belongs which images they show; how they look is physics/figures.py.
"""

import hashlib
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetsDefinition,
    Config,
    DataVersion,
    Failure,
    MaterializeResult,
    asset,
)

from cygno_assets.assets.metadata import figure
from cygno_assets.assets.training import TAGS, open_archive
from cygno_assets.names import HISTOGRAM_FIGURE, RAW_IMAGE_FIGURE, RECOILS_FIGURE, TRAINING_GROUP
from cygno_assets.physics.ground_truth import RECOIL_TYPES
from cygno_assets.physics.histogram import PixelHistogram
from cygno_assets.physics.images import ImageError
from cygno_assets.storage.tables import row_dicts
from cygno_assets.training.archive import ArchiveError
from cygno_assets.training.tables import pick

if TYPE_CHECKING:
    from PIL.Image import Image

    from cygno_assets.physics.ground_truth import RecoilType
    from cygno_assets.settings import Settings

EACH = 5
"""Recoils of each type, as in the school's figure."""


class FigureConfig(Config):
    """What may be chosen in the Launchpad: another seed shows other images."""

    seed: int = 0


def build_training_figures(settings: "Settings") -> list[AssetsDefinition]:
    """The figures of the training set, for these settings."""
    spec = settings.preprocess_spec
    kinds = {"matplotlib", "s3" if settings.data_url.startswith("s3://") else "file"}
    owners = list(settings.owners)

    def decoded(training_archive: dict[str, Any], paths: list[str]) -> "list[Image]":
        """These images, in this order.

        Raises:
            Failure: the archive is another one than the table's, or damaged.
        """
        from cygno_assets.physics.images import decode_image

        try:
            with open_archive(training_archive, settings) as archive:
                return [
                    decode_image(archive.read(path), max_pixels=settings.image_max_pixels)
                    for path in paths
                ]
        except (ArchiveError, ImageError, KeyError) as error:
            raise Failure(
                f"the archive does not fit ground_truth_table ({error}); materialize "
                "training_archive and the table again",
                allow_retries=False,
            ) from None

    @asset(
        key=RAW_IMAGE_FIGURE,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds=kinds,
        tags=TAGS,
        code_version="1",
        io_manager_key="figure_io_manager",
        description="One image of the training set as recorded: all its pixels (0.6 mm) and "
        "values (ADU). Drawn by lot; the seed can be set in the Launchpad.",
    )
    def raw_image_figure(
        config: FigureConfig, ground_truth_table: Any, training_archive: dict[str, Any]
    ) -> MaterializeResult[Any]:
        import numpy as np

        from cygno_assets.physics.figures import image_figure

        rows = row_dicts(pick(ground_truth_table, 1, config.seed))
        if not rows:
            raise Failure("the training set has no images", allow_retries=False)
        [row] = rows
        [image] = decoded(training_archive, [row["path"]])
        title = f"{row['file_name']}: {row['recoil_type']} recoil of {row['energy_kev']:g} keV"
        drawn = image_figure(np.asarray(image), title)
        return MaterializeResult(
            value=drawn,
            metadata={"figure": figure(drawn, title), "image": row["path"], "seed": config.seed},
            data_version=DataVersion(row["pixel_sha256"]),
        )

    @asset(
        key=HISTOGRAM_FIGURE,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds=kinds,
        tags=TAGS,
        code_version=spec.hash,
        io_manager_key="figure_io_manager",
        description="The pixel histogram of the whole training set (ADU, log scale), with the "
        "window in use marked.",
    )
    def histogram_figure(dataset_pixel_histogram: dict[str, Any]) -> MaterializeResult[Any]:
        from cygno_assets.physics import figures

        histogram = PixelHistogram.from_json(dataset_pixel_histogram)
        title = f"training set: {histogram.images} images, {histogram.pixels} pixels"
        drawn = figures.histogram_figure(histogram, spec, title)
        return MaterializeResult(
            value=drawn,
            metadata={"figure": figure(drawn, title)},
            data_version=DataVersion(f"{spec.hash}-{histogram.digest}"),
        )

    @asset(
        key=RECOILS_FIGURE,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds=kinds,
        tags=TAGS,
        code_version=spec.hash,
        io_manager_key="figure_io_manager",
        description=f"{EACH} nuclear recoils in blue above {EACH} electron recoils in pink, after "
        f"crop ({spec.side} × {spec.side} pixels) and window ({spec.window_low:g}–"
        f"{spec.window_high:g} ADU). Drawn by label; the seed can be set in the Launchpad.",
    )
    def recoils_figure(
        config: FigureConfig, ground_truth_table: Any, training_archive: dict[str, Any]
    ) -> MaterializeResult[Any]:
        from cygno_assets.physics import figures
        from cygno_assets.physics.images import preprocess

        shown: dict[RecoilType, list[tuple[str, Any]]] = {}
        paths: list[str] = []
        pixels = hashlib.sha256()
        for recoil_type in RECOIL_TYPES.values():
            rows = pick(ground_truth_table, EACH, config.seed, recoil_type)
            images = decoded(training_archive, list(rows["path"]))
            try:
                tensors = [preprocess(image, spec) for image in images]
            except ImageError as error:
                raise Failure(str(error), allow_retries=False) from None
            captions = [f"{energy_kev:g} keV" for energy_kev in rows["energy_kev"]]
            shown[recoil_type] = list(zip(captions, tensors, strict=True))
            paths.extend(rows["path"])
            pixels.update("".join(rows["pixel_sha256"]).encode())
        drawn = figures.recoils_figure(shown, spec)
        return MaterializeResult(
            value=drawn,
            metadata={
                "figure": figure(drawn, "nuclear recoils in blue, electron recoils in pink"),
                "images": "\n".join(paths),
                "seed": config.seed,
                "spec_hash": spec.hash,
            },
            data_version=DataVersion(f"{spec.hash}-{pixels.hexdigest()}"),
        )

    return [raw_image_figure, histogram_figure, recoils_figure]
