"""The assets of the training set: its archive, each recoil × energy cell, and the totals.

Here belongs what their runs do and what the web UI shows of it. How the archive is fetched and
read is training/, how pixels are counted is physics/histogram.py, when it all runs is
automation/training.py, the figures are training_figures.py, and what models are trained on is
training_dataset.py.
"""

import time
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetOut,
    AssetsDefinition,
    Backoff,
    Config,
    DataVersion,
    Failure,
    Jitter,
    MaterializeResult,
    MetadataValue,
    MultiPartitionKey,
    ResourceParam,
    RetryPolicy,
    asset,
    multi_asset,
)

from cygno_assets.assets.metadata import figure, records, table
from cygno_assets.names import (
    DATASET_PIXEL_HISTOGRAM,
    GROUND_TRUTH,
    GROUND_TRUTH_TABLE,
    PIXEL_HISTOGRAM,
    SUGGESTED_WINDOW,
    TRAINING_ARCHIVE,
    TRAINING_GROUP,
    UNLABELLED_PATHS,
)
from cygno_assets.partitions import training_cells, training_energies
from cygno_assets.physics.ground_truth import RECOIL_TYPES, energy_key
from cygno_assets.physics.histogram import (
    PixelHistogram,
    mean_and_sd,
    quantile,
    range_of,
    shares_outside,
)
from cygno_assets.physics.images import ImageError
from cygno_assets.physics.window import KNOWN_WINDOWS, MAX_CLIPPED_SHARE, suggest_window
from cygno_assets.settings import environment_name
from cygno_assets.storage.io_managers import JsonIOManager, TableIOManager
from cygno_assets.storage.locations import data_root, s3_path
from cygno_assets.storage.objects import StoredObject
from cygno_assets.storage.tables import Column
from cygno_assets.training import survey
from cygno_assets.training.archive import (
    Archive,
    ArchiveChangedError,
    ArchiveError,
    ArchiveLimits,
)
from cygno_assets.training.fetch import (
    FetchedArchive,
    FetchError,
    ServerUnavailableError,
    archive_version,
    fetch_archive,
)
from cygno_assets.training.kept import check_object, keep, object_version
from cygno_assets.training.tables import (
    GROUND_TRUTH_COLUMNS,
    UNLABELLED_COLUMNS,
    ground_truth_rows,
    joined,
    population,
    rows_digest,
    unlabelled_rows,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dagster import RawMetadataValue

    from cygno_assets.physics.spec import PreprocessSpec
    from cygno_assets.settings import Settings

TAGS = {"domain": "training"}
MAX_ENERGIES = 200
"""More than any simulation has; each makes two partitions."""

_WINDOW_COLUMNS = (
    Column("which", "string", "suggested, in use, or of the school's material"),
    Column("low_adu", "float", "ADU that becomes 0"),
    Column("high_adu", "float", "ADU that becomes 1"),
    Column("clipped_low", "string", "share of all pixels below it"),
    Column("clipped_high", "string", "share of all pixels above it"),
)
_QUANTILES = (0.001, 0.01, 0.5, 0.99, 0.999)
_LOG_EVERY_S = 2.0
_ROWS_SHOWN = 100
_RETRY = RetryPolicy(max_retries=2, delay=10, backoff=Backoff.EXPONENTIAL, jitter=Jitter.PLUS_MINUS)


class WindowConfig(Config):
    """What may be chosen in the Launchpad."""

    max_clipped_share: float = MAX_CLIPPED_SHARE


def build_training_assets(settings: "Settings") -> list[AssetsDefinition]:
    """The assets of the training set, for these settings."""
    spec = settings.preprocess_spec
    store = "s3" if settings.data_url.startswith("s3://") else "file"
    owners = list(settings.owners)

    @asset(
        key=TRAINING_ARCHIVE,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds={"zip", "file"},
        tags=TAGS,
        code_version="1",
        io_manager_key="json_io_manager",
        retry_policy=_RETRY,
        description="The simulated training set: a zip of PNG images whose paths tell recoil type "
        "and energy (keV). Fetched once, resumed after a break, checked whole before it is used, "
        "and read in place: no image is unpacked to disk. Where the storage is a bucket, a copy is "
        "kept there, and read by ranges. Adds the partitions of its energies. "
        "The sensor `new_training_archive` looks for a new one.",
    )
    def training_archive(
        context: AssetExecutionContext, json_io_manager: ResourceParam[JsonIOManager]
    ) -> MaterializeResult[Any]:
        before = json_io_manager.stored(TRAINING_ARCHIVE) or {}
        checked, place = _fetch(context, settings, before.get("path"))
        with open_archive(place, settings) as archive:
            labels, reasons = survey.labelled(archive.members)
            energies = _energies(archive)
        # Before this asset is materialized, so that what follows finds the whole grid.
        context.instance.add_dynamic_partitions(
            str(training_energies.name), [energy_key(energy) for energy in energies]
        )
        return MaterializeResult(
            value=place,
            metadata={
                "source": checked.source,
                "size_bytes": checked.size_bytes,
                "sha256": checked.sha256,
                "images": len(labels),
                "unlabelled_paths": len(reasons),
                "energies_kev": ", ".join(f"{energy:g}" for energy in energies),
                "archive_path": MetadataValue.path(place["path"]),
            },
            data_version=DataVersion(checked.sha256),
        )

    @asset(
        key=UNLABELLED_PATHS,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds={"pandas", "parquet", store},
        tags=TAGS,
        code_version="1",
        io_manager_key="table_io_manager",
        metadata=table(UNLABELLED_COLUMNS),
        description="The files of the archive that are no training images, each with the rule "
        "that its path does not fit.",
    )
    def unlabelled_paths(training_archive: dict[str, Any]) -> MaterializeResult[Any]:
        with open_archive(training_archive, settings) as archive:
            reasons = survey.labelled(archive.members)[1]
        shown = records(
            UNLABELLED_COLUMNS, list(unlabelled_rows(reasons).itertuples(index=False))[:_ROWS_SHOWN]
        )
        return MaterializeResult(
            value=unlabelled_rows(reasons),
            metadata={"dagster/row_count": len(reasons), "first_rows": shown},
            data_version=DataVersion(training_archive["sha256"]),
        )

    @multi_asset(
        name="training_cell",
        group_name=TRAINING_GROUP,
        partitions_def=training_cells,
        outs={
            "ground_truth": AssetOut(
                key=GROUND_TRUTH,
                owners=owners,
                kinds={"pandas", "parquet", store},
                tags=TAGS,
                code_version=survey.CODE_VERSION,
                io_manager_key="table_io_manager",
                dagster_type=Any,
                metadata=table(GROUND_TRUTH_COLUMNS),
                description="What the images of one recoil type and energy (keV) are: a row for "
                "each. A cell without images is an empty table.",
            ),
            "pixel_histogram": AssetOut(
                key=PIXEL_HISTOGRAM,
                owners=owners,
                kinds={"histogram", "json", store},
                tags=TAGS,
                code_version=survey.CODE_VERSION,
                io_manager_key="json_io_manager",
                dagster_type=Any,
                description="How often each pixel value, 0 … 255 ADU, occurs in the images of one "
                "recoil type and energy (keV): 256 bins with edges −0.5 … 255.5, exact.",
            ),
        },
    )
    def training_cell(
        context: AssetExecutionContext,
        training_archive: dict[str, Any],
        json_io_manager: ResourceParam[JsonIOManager],
        table_io_manager: ResourceParam[TableIOManager],
    ) -> tuple[MaterializeResult, MaterializeResult]:  # type: ignore[type-arg]  # Dagster reads this, and knows the bare class only
        key = cell_of(context)
        table = table_io_manager.stored(GROUND_TRUTH, context.partition_key)
        counted = json_io_manager.stored(PIXEL_HISTOGRAM, context.partition_key)
        with open_archive(training_archive, settings) as archive:
            labels = survey.labels_by_cell(archive.members).get(context.partition_key, {})
            made_from = survey.input_digest(archive, labels)
            unchanged = _made_from(table, counted) == made_from
            if unchanged:
                context.log.info("unchanged: no image decoded")
            else:
                started = time.monotonic()
                try:
                    found = survey.survey(archive, labels, max_pixels=settings.image_max_pixels)
                except (ImageError, ArchiveError) as error:
                    raise Failure(str(error), allow_retries=False) from None
                context.log.info(
                    "%d images decoded in %.1f s", len(labels), time.monotonic() - started
                )
                table = ground_truth_rows(found.images)
                table.attrs["made_from"] = made_from
                counted = found.histogram.to_json() | {"made_from": made_from}
        common: dict[str, RawMetadataValue] = {
            "images": len(labels),
            "decoded": 0 if unchanged else len(labels),
            "made_from": made_from,
        }
        what = f"{RECOIL_TYPES[key['recoil']]} recoils of {key['energy'].removesuffix('keV')} keV"
        return (
            MaterializeResult(
                asset_key=GROUND_TRUTH,
                value=table,
                metadata={"dagster/partition_row_count": len(table), **common},
                data_version=DataVersion(made_from),
            ),
            MaterializeResult(
                asset_key=PIXEL_HISTOGRAM,
                value=counted,
                metadata=histogram_metadata(PixelHistogram.from_json(counted), spec, what) | common,
                data_version=DataVersion(made_from),
            ),
        )

    @asset(
        key=GROUND_TRUTH_TABLE,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds={"pandas", "parquet", store},
        tags=TAGS,
        code_version="1",
        io_manager_key="table_io_manager",
        metadata=table(GROUND_TRUTH_COLUMNS, made_from={GROUND_TRUTH: GROUND_TRUTH_COLUMNS}),
        description="The ground truth of the whole training set, one row per image: path, recoil "
        "type, energy (keV), size (pixels), and a digest of the decoded pixels.",
    )
    def ground_truth_table(ground_truth: dict[str, Any]) -> MaterializeResult[Any]:
        table = joined(list(ground_truth.values()))
        table.attrs["made_from"] = {
            key: cell.attrs.get("made_from") for key, cell in ground_truth.items()
        }
        return MaterializeResult(
            value=table,
            metadata={"dagster/row_count": len(table), **_population_metadata(table)},
            data_version=DataVersion(rows_digest(table)),
        )

    @asset(
        key=DATASET_PIXEL_HISTOGRAM,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds={"histogram", "json", store},
        tags=TAGS,
        # The plot marks the window, so another one makes it stale.
        code_version=spec.hash,
        io_manager_key="json_io_manager",
        description="How often each pixel value, 0 … 255 ADU, occurs in the whole training set: "
        "the sum of all `pixel_histogram` cells, which reads no image again.",
    )
    def dataset_pixel_histogram(pixel_histogram: dict[str, Any]) -> MaterializeResult[Any]:
        cells = [PixelHistogram.from_json(cell) for cell in pixel_histogram.values()]
        total = PixelHistogram.total(cells)
        made_from = {key: cell.get("made_from") for key, cell in pixel_histogram.items()}
        return MaterializeResult(
            value=total.to_json() | {"made_from": made_from},
            metadata={
                **histogram_metadata(total, spec, "training set"),
                "cells": len(cells),
                "empty_cells": sum(cell.images == 0 for cell in cells),
            },
            data_version=DataVersion(total.digest),
        )

    @asset(
        key=SUGGESTED_WINDOW,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds={"json", store},
        tags=TAGS,
        code_version=spec.hash,
        io_manager_key="json_io_manager",
        description="The narrowest window of whole ADU that clips at most one in a thousand of "
        "the training set's pixels on either side, beside the windows that others use. The share "
        "can be set in the Launchpad. A suggestion: nothing adopts it by itself.",
    )
    def suggested_window(
        context: AssetExecutionContext,
        config: WindowConfig,
        dataset_pixel_histogram: dict[str, Any],
    ) -> MaterializeResult[Any]:
        counts = PixelHistogram.from_json(dataset_pixel_histogram).counts
        try:
            window = suggest_window(counts, max_clipped_share=config.max_clipped_share)
        except ValueError as error:
            raise Failure(f"no window can be suggested: {error}", allow_retries=False) from None
        in_use = (spec.window_low, spec.window_high)
        shown = [(window.low, window.high), *dict.fromkeys([in_use, *KNOWN_WINDOWS])]
        rows = [
            (
                "suggested" if place == 0 else "in use" if edges == in_use else "known",
                *edges,
                *(f"{share:.4%}" for share in shares_outside(counts, *edges)),
            )
            for place, edges in enumerate(shown)
        ]
        context.log.info("suggested: %g–%g ADU", window.low, window.high)
        return MaterializeResult(
            value={
                "window_low_adu": window.low,
                "window_high_adu": window.high,
                "clipped_low_share": window.clipped_low,
                "clipped_high_share": window.clipped_high,
                "max_clipped_share": config.max_clipped_share,
            },
            metadata={
                "window_adu": f"{window.low:g}–{window.high:g}",
                "rule": "the narrowest window of whole ADU that clips at most "
                f"{config.max_clipped_share:.3%} of all pixels on either side",
                "windows": records(_WINDOW_COLUMNS, rows),
                "how_to_adopt": f"set {environment_name('window_low')}={window.low:g} and "
                f"{environment_name('window_high')}={window.high:g}, restart, and materialize "
                "what is stale",
            },
            data_version=DataVersion(f"{window.low:g}–{window.high:g}"),
        )

    return [
        training_archive,
        unlabelled_paths,
        training_cell,
        ground_truth_table,
        dataset_pixel_histogram,
        suggested_window,
    ]


def archive_limits(settings: "Settings") -> ArchiveLimits:
    """What an archive may hold, by these settings."""
    return ArchiveLimits(
        max_members=settings.training_archive_max_members,
        max_total_bytes=settings.training_archive_max_unpacked_bytes,
    )


def archive_folder(settings: "Settings") -> "Path":
    """Where a fetched archive is kept."""
    return settings.home / "training"


def histogram_metadata(
    histogram: PixelHistogram, spec: "PreprocessSpec", what: str
) -> dict[str, "RawMetadataValue"]:
    """What the web UI shows of a histogram: its plot and its numbers."""
    from cygno_assets.physics.figures import histogram_figure

    title = f"{what}: {histogram.images} images, {histogram.pixels} pixels"
    plot = figure(histogram_figure(histogram, spec, title), f"pixel histogram of {what}")
    metadata: dict[str, RawMetadataValue] = {
        "plot": plot,
        "images": histogram.images,
        "pixels": histogram.pixels,
    }
    if histogram.pixels == 0:
        return metadata
    mean, sd = mean_and_sd(histogram.counts)
    low, high = range_of(histogram.counts)
    return metadata | {
        "mean_adu": round(mean, 4),
        "sd_adu": round(sd, 4),
        "min_adu": low,
        "max_adu": high,
        "quantiles_adu": ", ".join(
            f"{share:.1%}: {quantile(histogram.counts, share)}" for share in _QUANTILES
        ),
        "window_adu": f"{spec.window_low:g}–{spec.window_high:g}",
    }


def offered_version(settings: "Settings") -> str:
    """What tells the archive that is offered now from another one; fetches none of it.

    Raises:
        FetchError: its server does not offer it now.
        FileNotFoundError: there is no such local file.
    """
    if _in_a_bucket(settings.training_archive):
        return object_version(s3_path(settings, settings.training_archive))
    return archive_version(settings.training_archive, ca_file=settings.training_archive_ca_file)


def _in_a_bucket(place: str) -> bool:
    return place.startswith("s3://")


def _fetch(
    context: AssetExecutionContext, settings: "Settings", before: str | None
) -> tuple[FetchedArchive, dict[str, Any]]:
    """Checks the archive, and has it where all that follows can read it.

    Args:
        context: has a line of progress every few seconds.
        settings: say where it comes from, and where data are kept.
        before: where the one before is.

    Returns:
        What was checked, and its place: what this asset stands for, as JSON.
    """
    said = time.monotonic()

    def progress(there: int, total: int | None) -> None:
        nonlocal said
        if there == total or time.monotonic() - said >= _LOG_EVERY_S:
            said = time.monotonic()
            of = "" if not total else f" of {total / 1e6:.1f} MB ({there / total:.0%})"
            context.log.info("fetched %.1f MB%s", there / 1e6, of)

    source = settings.training_archive
    check: dict[str, Any] = {
        "sha256": settings.training_archive_sha256,
        "limits": archive_limits(settings),
        "max_bytes": settings.training_archive_max_bytes,
        "progress": progress,
        "accept": _energies,
    }
    try:
        if _in_a_bucket(source):
            kept, checked = check_object(
                s3_path(settings, source), archive_folder(settings), **check
            )
            return checked, _place(kept, checked)
        checked = fetch_archive(
            source,
            archive_folder(settings),
            ca_file=settings.training_archive_ca_file,
            **check,
        )
        if not _in_a_bucket(settings.data_url):
            return checked, _place(checked.path, checked)
        # What follows runs on any machine, and this one's disk is nobody else's.
        kept = keep(checked, data_root(settings) / TRAINING_ARCHIVE.to_user_string(), before)
        return checked, _place(kept, checked)
    except ArchiveError as error:
        raise Failure(str(error), allow_retries=False) from None
    except FileNotFoundError as error:
        raise Failure(
            f"{environment_name('training_archive')}: there is no file {error.filename!r}",
            allow_retries=False,
        ) from None
    except FetchError as error:
        later = isinstance(error, ServerUnavailableError)
        raise Failure(str(error), allow_retries=later) from None


def _place(kept: "Path | StoredObject", checked: FetchedArchive) -> dict[str, Any]:
    """Where an archive is, and what tells that it is the one that was checked."""
    place: dict[str, Any] = {"sha256": checked.sha256, "size_bytes": checked.size_bytes}
    if isinstance(kept, StoredObject):
        return {"path": str(kept.path), **place, "etag": kept.etag}
    return {"path": str(kept), **place, "modified_ns": kept.stat().st_mtime_ns}


def open_archive(training_archive: "Mapping[str, Any]", settings: "Settings") -> Archive:
    """The archive that the asset `training_archive` stands for, wherever it is.

    Raises:
        Failure: it is gone, or damaged since it was checked.
    """
    from pathlib import Path

    path, size_bytes = training_archive["path"], training_archive["size_bytes"]
    try:
        if _in_a_bucket(path):
            etag = training_archive["etag"]
            place: Path | StoredObject = StoredObject(s3_path(settings, path), size_bytes, etag)
        else:
            place = _unchanged(Path(path), size_bytes, training_archive["modified_ns"])
        return Archive(place, archive_limits(settings))
    except ArchiveChangedError as error:
        raise Failure(str(error), allow_retries=False) from None
    except (FileNotFoundError, ArchiveError) as error:
        raise Failure(str(ArchiveChangedError(str(error))), allow_retries=False) from None


def _unchanged(path: "Path", size_bytes: int, modified_ns: int) -> "Path":
    stat = path.stat()
    if (stat.st_size, stat.st_mtime_ns) != (size_bytes, modified_ns):
        raise ArchiveChangedError(f"{path.name}: another file")
    return path


def _energies(archive: Archive) -> list[float]:
    """The energies of an archive's images, in keV.

    Raises:
        ArchiveError: more than any simulation has.
    """
    labels = survey.labelled(archive.members)[0]
    energies = sorted({label.energy_kev for label in labels.values()})
    if len(energies) > MAX_ENERGIES:
        raise ArchiveError(
            f"{len(energies)} energies, from {energies[0]:g} to {energies[-1]:g} keV, are more "
            f"than the {MAX_ENERGIES} allowed"
        )
    return energies


def cell_of(context: AssetExecutionContext) -> "Mapping[str, str]":
    """The recoil type's folder and the energy's key that a run is for."""
    key = context.partition_key
    if not isinstance(key, MultiPartitionKey):  # for mypy: that is what the grid's keys are
        raise TypeError(f"partition {key!r} is no cell of the grid")
    return key.keys_by_dimension


def _made_from(table: Any, counted: Any) -> str | None:
    """What a stored cell was made from; None if it is not whole."""
    if table is None or counted is None:
        return None
    digests = {table.attrs.get("made_from"), counted.get("made_from")}
    return digests.pop() if len(digests) == 1 else None


def _population_metadata(table: Any) -> dict[str, "RawMetadataValue"]:
    """Images by recoil type and energy, as a table and as a picture."""
    from cygno_assets.physics.figures import population_figure

    images = population(table)
    energies = sorted({energy_kev for _, energy_kev in images})
    columns = (
        Column("energy_kev", "float64", "keV"),
        Column("nuclear", "int64", "images of nuclear recoils"),
        Column("electronic", "int64", "images of electron recoils"),
    )
    rows = [
        (energy, images.get(("nuclear", energy), 0), images.get(("electronic", energy), 0))
        for energy in energies
    ]
    return {
        "population": records(columns, rows),
        "population_plot": figure(population_figure(images), "images by recoil type and energy"),
    }
