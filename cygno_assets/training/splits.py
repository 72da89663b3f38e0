"""The manifest of splits: which image of the training set is for what, and a hash of it all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from cygno_assets.physics.ground_truth import RECOIL_TYPES
from cygno_assets.physics.splits import SPLITS, SplitSpec, energy_fold_of, lot, split_of
from cygno_assets.storage.tables import row_dicts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd


def make_manifest(ground_truth: pd.DataFrame, spec: SplitSpec) -> dict[str, Any]:
    """Divides a training set.

    Args:
        ground_truth: GROUND_TRUTH_COLUMNS of all images; the order of the rows does not matter.
        spec: seed and shares.

    Returns:
        As plain values: `hash` (`splits_hash` of rule and images), `rule` (the SplitSpec's),
        `energy_folds` (name and images by recoil type of each, also of one without images), and
        `images`: path, pixel_sha256, recoil_type, energy_kev, split and energy_fold of each.
        Splits come one after the other; within one, the order is as if shuffled, and the same
        whenever it is made.
    """
    images = [
        {
            "path": row["path"],
            "pixel_sha256": row["pixel_sha256"],
            "recoil_type": row["recoil_type"],
            "energy_kev": row["energy_kev"],
            "split": split_of(row["pixel_sha256"], spec),
            "energy_fold": energy_fold_of(row["energy_kev"], spec),
        }
        for row in row_dicts(ground_truth)
    ]
    images.sort(
        key=lambda image: (
            SPLITS.index(image["split"]),
            lot(image["pixel_sha256"], spec),
            image["path"],
        )
    )
    counts = Counter((image["energy_fold"], image["recoil_type"]) for image in images)
    return {
        "hash": splits_hash(spec.rule, images),
        "rule": spec.rule,
        "energy_folds": [
            {"name": fold, "images": {kind: counts[fold, kind] for kind in RECOIL_TYPES.values()}}
            for fold in spec.energy_folds
        ],
        "images": images,
    }


def splits_hash(rule: Mapping[str, Any], images: Sequence[Mapping[str, Any]]) -> str:
    """Stands for exactly these splits.

    Args:
        rule: the SplitSpec's.
        images: MANIFEST_COLUMNS of each, in the manifest's order.

    Returns:
        Twelve hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    for image in images:
        digest.update(json.dumps(image, sort_keys=True).encode())
    return digest.hexdigest()[:12]
