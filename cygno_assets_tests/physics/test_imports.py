"""Physics is usable without Dagster, and without what makes an import slow."""

from __future__ import annotations

import subprocess
import sys


def test_physics_imports_neither_dagster_nor_plots_nor_tables() -> None:
    # In a process of its own, for this one has long imported everything.
    code = """
import importlib, pkgutil, sys
import cygno_assets.physics as physics
modules = [m.name for m in pkgutil.walk_packages(physics.__path__, "cygno_assets.physics.")]
for name in modules:
    importlib.import_module(name)
print(*modules)
print(*{"dagster", "pandas", "matplotlib"} & set(sys.modules))
print(*(m for m in sys.modules if m.startswith("cygno_assets.") and ".physics" not in m))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    modules, heavy, ours = run.stdout.split("\n")[:3]
    assert {"images", "histogram", "spec"} <= {name.rpartition(".")[2] for name in modules.split()}
    assert (heavy, ours) == ("", "cygno_assets.loading")  # the package's own, which imports nothing
