"""What models are trained on: tensors of each cell, splits, the dataset and its audit.

Here belongs what their runs do and what the web UI shows of it. How a tensor is made is
physics/images.py, who is in which split physics/splits.py, the dataset's files
training/dataset.py, and what is asked of it training/audit.py.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    DataVersion,
    Failure,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    asset,
)

from cygno_assets.assets.metadata import figure, records, stored_at, table
from cygno_assets.assets.training import TAGS, cell_of, open_archive
from cygno_assets.names import (
    GROUND_TRUTH,
    GROUND_TRUTH_TABLE,
    QUALITY_GROUP,
    TRAINING_AUDIT,
    TRAINING_DATASET,
    TRAINING_GROUP,
    TRAINING_SPLITS,
    TRAINING_TENSORS,
)
from cygno_assets.partitions import training_cells
from cygno_assets.physics.ground_truth import RECOIL_TYPES
from cygno_assets.physics.images import ImageError
from cygno_assets.physics.splits import SPLITS
from cygno_assets.storage.io_managers import TensorTableIOManager
from cygno_assets.storage.locations import data_root, whole_file
from cygno_assets.storage.tables import Column, row_dicts
from cygno_assets.storage.tensor_table import write_tensor_tables
from cygno_assets.training import audit, survey
from cygno_assets.training.archive import ArchiveError
from cygno_assets.training.tables import (
    DATASET_COLUMNS,
    GROUND_TRUTH_COLUMNS,
    MANIFEST_COLUMNS,
    OFFENDER_COLUMNS,
    TENSOR_COLUMNS,
)
from cygno_assets.training.tensors import CODE_VERSION, make_tensors, tensors_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import pandas as pd
    from dagster import RawMetadataValue
    from numpy.typing import NDArray

    from cygno_assets.settings import Settings
    from cygno_assets.storage.tensor_table import TensorTable
    from cygno_assets.training.archive import Archive

TENSOR = Column("tensor", "float32[side, side]", "what a model sees, in [0, 1]")
_OFFENDERS_SHOWN = 6
_TENSORS_SHOWN = 5
_SPLIT_COLUMNS = (
    Column("recoil_type", "string", "`nuclear` or `electronic`"),
    Column("energy_kev", "float", "keV"),
    *(Column(split, "int", "images") for split in SPLITS),
)
_FOLD_COLUMNS = (
    Column("fold", "string", "range of energies that are left out together"),
    Column("nuclear", "int", "images of nuclear recoils to test on"),
    Column("electronic", "int", "images of electron recoils to test on"),
)
_ALARM_COLUMNS = (
    Column("alarm", "string", "what is asked"),
    Column("passed", "string", "whether it is so"),
    Column("severity", "string", "ERROR makes scores wrong, WARN is to be known"),
    Column("found", "string", "with the numbers"),
)


def build_training_dataset(settings: "Settings") -> list[AssetsDefinition]:
    """The tensors, splits, dataset and audit of the training set, for these settings."""
    spec, split_spec = settings.preprocess_spec, settings.split_spec
    tensors_version = f"{spec.hash}-{CODE_VERSION}"
    store = "s3" if settings.data_url.startswith("s3://") else "file"
    owners = list(settings.owners)

    @asset(
        key=TRAINING_TENSORS,
        partitions_def=training_cells,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds={"numpy", "parquet", store},
        tags=TAGS,
        # As a live tensor's: a changed specification makes both stale.
        code_version=tensors_version,
        metadata=table((*TENSOR_COLUMNS, TENSOR), made_from={GROUND_TRUTH: GROUND_TRUTH_COLUMNS}),
        description="What a model sees of the images of one recoil type and energy (keV): the "
        f"central {spec.side} × {spec.side} pixels, windowed from {spec.window_low:g}–"
        f"{spec.window_high:g} ADU to [0, 1], float32, by the same function and specification as "
        "`preprocessed_tensor`; and where the light of each image is.",
    )
    def training_tensors(
        context: AssetExecutionContext,
        training_archive: dict[str, Any],
        ground_truth: Any,
        tensor_table_io_manager: ResourceParam[TensorTableIOManager],
    ) -> MaterializeResult[None]:
        key = cell_of(context)
        path = tensor_table_io_manager.path(TRAINING_TENSORS, context.partition_key)
        with open_archive(training_archive, settings) as archive:
            labels = survey.labels_by_cell(archive.members).get(context.partition_key, {})
            surveyed = survey.input_digest(archive, labels)
            if ground_truth.attrs.get("made_from") != surveyed:
                raise Failure(
                    f"ground_truth of {context.partition_key} was made from another archive; "
                    "materialize it again",
                    allow_retries=False,
                )
            made_from = tensors_digest(surveyed, spec)
            stored = tensor_table_io_manager.parts(TRAINING_TENSORS, context.partition_key)
            cell = _as_before(stored, made_from)
            unchanged = cell is not None
            if cell is not None:
                context.log.info("unchanged: no image decoded")
            else:
                cell = _Cell()
                made = make_tensors(
                    archive, ground_truth, spec, max_pixels=settings.image_max_pixels
                )
                try:
                    with whole_file(path) as file:
                        write_tensor_tables(cell.noting(with_attrs(made, made_from)), file)
                except (ImageError, ArchiveError) as error:
                    raise Failure(str(error), allow_retries=False) from None
        images = len(cell.rows)
        metadata: dict[str, RawMetadataValue] = {
            "dagster/partition_row_count": images,
            "images": images,
            "decoded": 0 if unchanged else images,
            "spec_hash": spec.hash,
            "window_adu": f"{spec.window_low:g}–{spec.window_high:g}",
            "made_from": made_from,
            "path": stored_at(path),
        }
        if images:
            what = f"{RECOIL_TYPES[key['recoil']]} recoils of {key['energy'].removesuffix('keV')}"
            metadata["tensors"] = _some_tensors(cell, f"{what} keV")
            for share in ("clipped_low_share", "clipped_high_share"):
                metadata[share] = round(float(cell.rows[share].mean()), 6)
        return MaterializeResult(metadata=metadata, data_version=DataVersion(made_from))

    def with_attrs(parts: "Iterator[TensorTable]", made_from: str) -> "Iterator[TensorTable]":
        for part in parts:
            part.rows.attrs = {"made_from": made_from, "spec_hash": spec.hash}
            yield part

    def _some_tensors(cell: _Cell, what: str) -> "RawMetadataValue":
        from cygno_assets.physics.figures import recoils_figure

        kind = cell.rows["recoil_type"].iloc[0]
        names = cell.rows["path"].str.rpartition("/")[2]
        some = list(zip(names, cell.some_tensors, strict=False))
        return figure(recoils_figure({kind: some}, spec), f"tensors of {what}")

    @asset(
        key=TRAINING_SPLITS,
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds={"json", store},
        tags=TAGS,
        code_version=split_spec.hash,
        io_manager_key="json_io_manager",
        metadata=table(
            MANIFEST_COLUMNS,
            made_from={GROUND_TRUTH_TABLE: GROUND_TRUTH_COLUMNS},
            derived={
                "split": (GROUND_TRUTH_TABLE, ["pixel_sha256"]),
                "energy_fold": (GROUND_TRUTH_TABLE, ["energy_kev"]),
            },
        ),
        description="The manifest of splits: which image is for training, validation or test "
        f"({1 - split_spec.validation_share - split_spec.test_share:.0%}, "
        f"{split_spec.validation_share:.0%}, {split_spec.test_share:.0%}), by lot from its pixels "
        f"and seed {split_spec.seed}; and which energies to leave out together "
        f"({', '.join(split_spec.energy_folds)}). None moves when images are added.",
    )
    def training_splits(ground_truth_table: Any) -> MaterializeResult[Any]:
        from cygno_assets.training.splits import make_manifest

        manifest = make_manifest(ground_truth_table, split_spec)
        return MaterializeResult(
            value=manifest,
            metadata={
                "splits_hash": manifest["hash"],
                "seed": split_spec.seed,
                "images": len(manifest["images"]),
                "splits": records(_SPLIT_COLUMNS, _by_split(manifest["images"])),
                "leave_energy_out": records(
                    _FOLD_COLUMNS,
                    [
                        (fold["name"], fold["images"]["nuclear"], fold["images"]["electronic"])
                        for fold in manifest["energy_folds"]
                    ],
                ),
            },
            data_version=DataVersion(manifest["hash"]),
        )

    @asset(
        key=TRAINING_DATASET,
        deps=[TRAINING_TENSORS],
        group_name=TRAINING_GROUP,
        owners=owners,
        kinds={"parquet", "numpy", store},
        tags=TAGS,
        code_version=tensors_version,
        metadata=table(
            (*DATASET_COLUMNS, TENSOR),
            made_from={
                TRAINING_TENSORS: (*TENSOR_COLUMNS, TENSOR),
                TRAINING_SPLITS: MANIFEST_COLUMNS,
            },
        ),
        description="All tensors of the training set with recoil type, energy (keV), split and "
        "digests: a Parquet file that pandas and `datasets` open, and the same tensors in the "
        "same order as one .npy to map into memory. `from cygno_assets import load_training`.",
    )
    def training_dataset(
        context: AssetExecutionContext,
        training_splits: dict[str, Any],
        training_archive: dict[str, Any],
        tensor_table_io_manager: ResourceParam[TensorTableIOManager],
    ) -> MaterializeResult[None]:
        from cygno_assets.training.dataset import NAME, DatasetError, write_dataset

        keys = training_cells.get_partition_keys(dynamic_partitions_store=context.instance)
        with open_archive(training_archive, settings) as archive:
            labels = survey.labels_by_cell(archive.members)
            expected = {
                key: tensors_digest(survey.input_digest(archive, labels.get(key, {})), spec)
                for key in keys
            }

        def stored(key: str) -> "Iterator[TensorTable]":
            try:
                yield from tensor_table_io_manager.parts(TRAINING_TENSORS, key)
            except (FileNotFoundError, ValueError):
                raise DatasetError(f"training_tensors of {key} are not there, or damaged") from None

        def cells() -> "Iterator[TensorTable]":
            for number, key in enumerate(keys, 1):
                images = 0
                for part in stored(key):
                    attrs = part.rows.attrs
                    # Of another specification: that is said of the image.
                    if attrs["spec_hash"] == spec.hash and attrs["made_from"] != expected[key]:
                        raise DatasetError(
                            f"training_tensors of {key} were made from another archive, or by "
                            "another version; materialize them again"
                        )
                    images += len(part.rows)
                    yield part
                context.log.info("%d of %d cells: %d images", number, len(keys), images)

        root = data_root(settings)
        try:
            rows = write_dataset(
                root,
                training_splits,
                cells(),
                spec.hash,
                spec.side,
                archive_sha256=training_archive["sha256"],
            )
        except DatasetError as error:
            raise Failure(str(error), allow_retries=False) from None
        return MaterializeResult(
            metadata={
                "dagster/row_count": len(rows),
                "spec_hash": spec.hash,
                "splits_hash": training_splits["hash"],
                "archive_sha256": training_archive["sha256"],
                "splits": records(_SPLIT_COLUMNS, _by_split(row_dicts(rows))),
                "path": stored_at(root / f"{NAME}.parquet"),
                "tensors_path": stored_at(root / rows.attrs["tensors_file"]),
                "how_to_load": MetadataValue.md(
                    "```python\nfrom cygno_assets import load_training\n\n"
                    'train = load_training("train")  # train.tensors, train.labels, train.rows\n```'
                ),
            },
            data_version=DataVersion(f"{tensors_version}-{training_splits['hash']}"),
        )

    @asset(
        key=TRAINING_AUDIT,
        deps=[TRAINING_DATASET],
        group_name=QUALITY_GROUP,
        owners=owners,
        kinds={"pandas", "parquet", store},
        tags=TAGS,
        code_version=audit.CODE_VERSION,
        io_manager_key="table_io_manager",
        metadata=table(OFFENDER_COLUMNS, made_from={TRAINING_DATASET: DATASET_COLUMNS}),
        description="What is wrong with the training set: whether the energy (keV) gives the "
        "recoil type away, images with two labels or in two splits, tracks that leave the crop, "
        "images that are saturated (255 ADU), empty or outside the window, and the balance of "
        "types. Each alarm is a check; the table has a row for each image that one is about.",
    )
    def training_audit(training_archive: dict[str, Any]) -> MaterializeResult[Any]:
        from cygno_assets.training.dataset import read_dataset_rows

        try:
            rows = read_dataset_rows(data_root(settings))
        except (FileNotFoundError, ValueError) as error:
            raise Failure(
                f"training_dataset cannot be read ({error}); materialize it again",
                allow_retries=False,
            ) from None
        found = audit.audit(rows)
        offenders = audit.offenders_table(rows, found)
        offenders.attrs = {
            "spec_hash": rows.attrs["spec_hash"],
            "splits_hash": rows.attrs["splits_hash"],
            "alarms": {
                alarm.name: {"passed": finding.passed, "says": finding.says}
                for alarm, finding in found
            },
        }
        alarms = [
            (alarm.name, "yes" if finding.passed else "no", alarm.severity, finding.says)
            for alarm, finding in found
        ]
        return MaterializeResult(
            value=offenders,
            metadata={
                "alarms": records(_ALARM_COLUMNS, alarms),
                "raised": sum(not finding.passed for _, finding in found),
                "dagster/row_count": len(offenders),
                **_pictures(
                    offenders,
                    dict(zip(rows["path"], rows["pixel_sha256"], strict=True)),
                    training_archive,
                ),
            },
            data_version=DataVersion(f"{rows.attrs['spec_hash']}-{rows.attrs['splits_hash']}"),
        )

    def _pictures(
        offenders: "pd.DataFrame",
        pixels: "Mapping[str, str]",
        training_archive: "Mapping[str, Any]",
    ) -> "dict[str, RawMetadataValue]":
        """Some offenders of each alarm.

        Args:
            offenders: OFFENDER_COLUMNS.
            pixels: `pixel_sha256` of the dataset's images by path: of those that were audited.
            training_archive: that holds them.
        """
        import numpy as np

        from cygno_assets.physics.figures import offenders_figure
        from cygno_assets.physics.images import decode_image

        def decoded(archive: "Archive", path: str) -> "NDArray[np.uint8]":
            image = decode_image(archive.read(path), max_pixels=settings.image_max_pixels)
            if survey.pixel_sha256(image) != pixels[path]:
                raise ArchiveError(f"{path}: other pixels")
            return np.asarray(image)

        pictures: dict[str, RawMetadataValue] = {}
        with open_archive(training_archive, settings) as archive:
            for alarm, rows in offenders.groupby("alarm", sort=False):
                images = []
                for row in row_dicts(rows.head(_OFFENDERS_SHOWN)):
                    path = row["path"]
                    try:
                        image = decoded(archive, path)
                    except (KeyError, ArchiveError, ImageError) as error:
                        raise Failure(
                            f"the archive does not fit training_dataset ({error}); materialize "
                            "training_archive and what follows again",
                            allow_retries=False,
                        ) from None
                    name = path.rpartition("/")[2]
                    caption = f"{row['recoil_type']}, {row['energy_kev']:g} keV\n{name[:24]}"
                    images.append((caption, image))
                pictures[str(alarm)] = figure(
                    offenders_figure(images, spec), f"{len(images)} of {len(rows)} images"
                )
        return pictures

    return [training_tensors, training_splits, training_dataset, training_audit]


class _Cell:
    """What is shown of a cell's tensors, which go by some at a time."""

    def __init__(self) -> None:
        self._rows: list[pd.DataFrame] = []
        self.some_tensors: list[NDArray[np.float32]] = []

    def noting(self, parts: "Iterator[TensorTable]") -> "Iterator[TensorTable]":
        """The parts, as they are."""
        for part in parts:
            self._rows.append(part.rows)
            more = _TENSORS_SHOWN - len(self.some_tensors)
            self.some_tensors.extend(part.tensors[:more].copy())
            yield part

    @property
    def rows(self) -> "pd.DataFrame":
        """Of the parts that have gone by."""
        import pandas as pd

        return pd.concat(self._rows, ignore_index=True)


def _as_before(stored: "Iterator[TensorTable]", made_from: str) -> _Cell | None:
    """A stored cell, read to its end; None if it is damaged, of something else or not there."""
    cell = _Cell()
    try:
        for part in cell.noting(stored):
            if part.rows.attrs.get("made_from") != made_from:
                return None
    except (FileNotFoundError, ValueError):
        return None
    return cell


def _by_split(images: "Sequence[Mapping[str, Any]]") -> list[tuple[Any, ...]]:
    """Images by recoil type, energy in keV and split."""
    counts = Counter(
        (image["recoil_type"], image["energy_kev"], image["split"]) for image in images
    )
    cells = sorted({(recoil_type, energy) for recoil_type, energy, _ in counts})
    return [(*cell, *(counts[*cell, split] for split in SPLITS)) for cell in cells]
