"""Trains a small model on the training set, and judges it in two ways.

    .venv/bin/python docs/examples/train_a_model.py

It needs scikit-learn (`make test` installs it, with the extra `dev`). Where there is no training
set yet, a system of its own makes one of simulated images first, which takes a minute.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from cygno_assets import load_training


def features(tensors: np.ndarray) -> np.ndarray:
    """How bright an image is in squares of 8 × 8 pixels, the 40 brightest first."""
    images, squares = len(tensors), tensors.shape[1] // 8
    whole = tensors[:, : 8 * squares, : 8 * squares]
    squares = whole.reshape(images, squares, 8, squares, 8).mean(axis=(2, 4))
    return np.sort(squares.reshape(images, -1), axis=1)[:, :-41:-1]


def right(model, images) -> str:
    """The share of these images that the model tells right, in words."""
    if not len(images):
        return "none of 0"
    return f"{model.score(features(images.tensors), images.labels):.0%} of {len(images)}"


def main() -> None:
    """Trains, judges, prints."""
    try:
        everything = load_training()
    except FileNotFoundError as error:
        print(f"{error}\nMaking one of simulated images (a minute) …", flush=True)
        everything = simulated()

    train, test = everything.split("train"), everything.split("test")
    model = RandomForestClassifier(300, random_state=0).fit(features(train.tensors), train.labels)
    print(
        f"{len(everything)} images, specification {everything.spec_hash}, "
        f"splits {everything.splits_hash}"
    )
    print(f"test split: {right(model, test)} images are told right")

    if len(everything.energy_folds) < 2:
        return  # nothing to train on would be left
    print("energies that it was not trained on:")
    for fold in everything.energy_folds:
        train, test = everything.leave_energy_out(fold)
        model.fit(features(train.tensors), train.labels)
        print(f"  {fold:>11}: {right(model, test)}")
    print(
        "Guessing tells half of them right. Far less than of the test split: energies were learned."
    )


def simulated():
    """The training set of a demo, in a folder that is deleted at once."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "cygno_assets.cli", "demo", "--events", "1", "--training"]
        # None of your own settings: it must not go where your data are.
        ours = {name: value for name, value in os.environ.items() if name[:6] != "CYGNO_"}
        subprocess.run(command, env={**ours, "CYGNO_HOME": home}, check=True)
        return load_training(data=Path(home) / "data")


if __name__ == "__main__":
    main()
