"""`load_training`: what a script or notebook imports to train a model. No Dagster."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cygno_assets.physics.splits import Split
    from cygno_assets.training.dataset import TrainingSet


def load_training(split: Split | None = None, *, data: Path | str | None = None) -> TrainingSet:
    """The training dataset, or one split of it.

    Args:
        split: `train`, `validation` or `test`; None is all of it.
        data: where the assets are kept: a folder or an `s3://` URL. None is where the settings
            (the environment's CYGNO_ variables) have it: `.cygno/data` in the checkout.

    Returns:
        Tensors, labels, energies and the rest of the table. On this machine the tensors are mapped
        into memory, not read.

    Raises:
        FileNotFoundError: it has not been made yet.
        ValueError: a file is damaged, or there is no such split.
        SettingsError: a setting is wrong.
    """
    from cygno_assets.settings import load_settings
    from cygno_assets.storage.locations import data_root
    from cygno_assets.training.dataset import NAME, read_dataset

    settings = load_settings({} if data is None else {"storage_url": _url(data)})
    try:
        dataset = read_dataset(data_root(settings))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no {NAME} in {settings.data_url} yet: materialize it in the web UI, or try "
            "`make demo TRAINING=1 EVENTS=1`, which makes one of simulated images"
        ) from None
    return dataset if split is None else dataset.split(split)


def _url(data: Path | str) -> str:
    from pathlib import Path

    text = str(data)
    return text if "://" in text else Path(text).resolve().as_uri()
