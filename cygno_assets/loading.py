"""`load_events` and `load_training`: what a script or notebook imports. No Dagster."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from cygno_assets.physics.splits import Split
    from cygno_assets.training.dataset import TrainingSet


def load_events(
    since: date | str | None = None,
    until: date | str | None = None,
    *,
    data: Path | str | None = None,
) -> pd.DataFrame:
    """The event catalogue: a row for each event, in order of acquisition.

    Args:
        since: the first day, in UTC, as a date or `2024-11-27`; None for the beginning.
        until: the last day, in UTC, itself included; None for the end.
        data: where the assets are kept: a folder or an `s3://` URL. None is where the settings
            (the environment's CYGNO_ variables) have it: `.cygno/data` in the checkout.

    Returns:
        The columns of `EVENT_COLUMNS` (docs/events.md); without rows, if there were no events in
        these days.

    Raises:
        FileNotFoundError: there is no catalogue yet.
        ValueError: a file is damaged, or `since` or `until` is no day.
        SettingsError: a setting is wrong.
    """
    from cygno_assets.settings import load_settings
    from cygno_assets.storage.event_tables import FOLDER, days_held, read_events
    from cygno_assets.storage.locations import data_root

    first, last = _day("since", since), _day("until", until)
    settings = load_settings({} if data is None else {"storage_url": _url(data)})
    root = data_root(settings)
    if not days_held(root):
        raise FileNotFoundError(
            f"there is no {FOLDER} in {settings.data_url} yet: the running system makes it every "
            f"{settings.catalog_every_s} s when there are events, and the web UI at once"
        )
    return read_events(root, first, last)


def load_training(
    split: Split | None = None, *, data: Path | str | None = None, verify: bool = True
) -> TrainingSet:
    """The training dataset, or one split of it.

    Args:
        split: `train`, `validation` or `test`; None is all of it.
        data: where the assets are kept: a folder or an `s3://` URL. None is where the settings
            (the environment's CYGNO_ variables) have it: `.cygno/data` in the checkout.
        verify: compare the tensors with their sha256, and who is in which split with its hash.
            Each is read once for it, none is kept.

    Returns:
        Tensors, labels, energies and the rest of the table. On this machine the tensors are mapped
        into memory.

    Raises:
        FileNotFoundError: it has not been made yet.
        ValueError: a file is damaged, changed or of another version, or files do not belong
            together (`training.dataset.DatasetError`); or there is no such split.
        SettingsError: a setting is wrong.
    """
    from cygno_assets.settings import load_settings
    from cygno_assets.storage.locations import data_root
    from cygno_assets.training.dataset import NAME, read_dataset

    settings = load_settings({} if data is None else {"storage_url": _url(data)})
    try:
        return read_dataset(data_root(settings), split, verify=verify)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no {NAME} in {settings.data_url} yet: materialize it in the web UI, or try "
            "`make demo TRAINING=1 EVENTS=1`, which makes one of simulated images"
        ) from None


def _day(name: str, value: date | str | None) -> date | None:
    if not isinstance(value, str):
        return value.date() if isinstance(value, datetime) else value
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{name} = {value!r}: must be a day such as 2024-11-27") from None


def _url(data: Path | str) -> str:
    from pathlib import Path

    text = str(data)
    return text if "://" in text else Path(text).resolve().as_uri()
