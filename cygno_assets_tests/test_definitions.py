"""The definitions as a whole, and what dagster.yaml says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from dagster import DagsterInstance, Definitions
from dagster._core.instance.ref import InstanceRef

from cygno_assets.build import build_defs
from cygno_assets.instance import CygnoInstance
from cygno_assets.names import TRAINING_ASSETS
from cygno_assets.services.dagster_services import LOCATION
from cygno_assets.settings import CHECKOUT, load_settings

if TYPE_CHECKING:
    import pytest

HEAVY = {"PIL", "matplotlib", "nats", "obstore", "pandas", "pyarrow", "requests", "scipy"}


def test_the_definitions_load_and_every_asset_is_described() -> None:
    definitions = build_defs(load_settings())
    Definitions.validate_loadable(definitions)
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    live = {"daq_announcements", "raw_image", "preprocessed_tensor"}
    live |= {"event_catalog", "event_tensors"}
    training = {key.to_user_string() for key in TRAINING_ASSETS}
    quality = {"pipeline_health"}
    assert set(specs) == live | training | quality
    for name, spec in specs.items():
        assert spec.description
        assert spec.owners
        assert spec.kinds
        assert spec.tags
        [group] = [
            group
            for group, names in {"live": live, "training": training, "quality": quality}.items()
            if name in names
        ]
        assert spec.group_name == group
        assert spec.code_version or name == "daq_announcements"
        # What nobody asks for would never be made: sensors and a schedule ask for the others.
        asked_for = live | quality | {"training_archive"}
        assert (spec.automation_condition is not None) == (name not in asked_for)
        # How old may it become? automation/freshness.py
        assert (spec.freshness_policy is not None) == (name != "daq_announcements"), name
    assert specs["preprocessed_tensor"].code_version == load_settings().preprocess_spec.hash
    for name in ("raw_image", "preprocessed_tensor", "pixel_histogram", "suggested_window"):
        assert "ADU" in (specs[name].description or "")


def test_importing_the_definitions_pulls_in_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, cygno_assets.definitions; print(*sys.modules)"
    loaded = subprocess.run(  # the tests' own process has imported everything already
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"CYGNO_HOME": str(tmp_path)},
    ).stdout.split()
    assert "dagster" in loaded
    assert not HEAVY & set(loaded)


def test_all_of_dagsters_state_goes_to_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "elsewhere"
    monkeypatch.setenv("CYGNO_HOME", str(home))
    monkeypatch.setenv("DAGSTER_HOME", str(CHECKOUT))
    before = set(CHECKOUT.iterdir())
    with DagsterInstance.get() as instance:
        assert isinstance(instance, CygnoInstance)
        instance.get_runs_count()
        instance.all_instigator_state()
        assert Path(instance.root_directory) == home / "dagster"
        assert Path(instance.storage_directory()).is_relative_to(home)
    assert (home / "dagster" / "dagster.db").is_file()
    assert set(CHECKOUT.iterdir()) == before


def test_dagster_still_asks_an_instance_class_for_its_defaults() -> None:
    """Contract with Dagster's internals: what cygno_assets/instance.py overrides."""
    theirs = InstanceRef.config_defaults("/folder")
    assert {"local_artifact_storage", "storage", "compute_logs"} <= set(theirs), (
        "InstanceRef.config_defaults has changed; see cygno_assets/instance.py"
    )
    ref = InstanceRef.from_dir(str(CHECKOUT))
    state = str(load_settings().dagster_state)
    part = ref.local_artifact_storage_data
    assert str(yaml.safe_load(part.config_yaml)["base_dir"]).startswith(state), (
        "Dagster no longer takes its folders from the instance class's config_defaults; see "
        "cygno_assets/instance.py"
    )


def test_the_code_location_has_one_name_everywhere() -> None:
    """The name is part of a sensor's identity: another one would lose its cursor."""
    import tomllib

    workspace = yaml.safe_load((CHECKOUT / "workspace.yaml").read_text())
    names = {entry["python_module"]["location_name"] for entry in workspace["load_from"]}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    names.add(project["tool"]["dg"]["project"]["code_location_name"])
    assert names == {LOCATION}
