"""The definitions as a whole, and what dagster.yaml says of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance, Definitions, TableColumn
from dagster._core.instance.ref import InstanceRef

from cygno_assets.build import build_defs
from cygno_assets.instance import CygnoInstance
from cygno_assets.names import (
    LIVE_GROUP,
    QUALITY_GROUP,
    TRAINING_ARCHIVE,
    TRAINING_ASSETS,
    TRAINING_GROUP,
)
from cygno_assets.services.dagster_services import LOCATION
from cygno_assets.settings import CHECKOUT, load_settings
from cygno_assets_tests.wire import no_settings_from_outside

HEAVY = {"PIL", "matplotlib", "nats", "obstore", "pandas", "pyarrow", "requests", "scipy"}
TABLE = "dagster/column_schema"


with no_settings_from_outside():
    DEFINITIONS = build_defs(load_settings())
SPECS = {spec.key.to_user_string(): spec for spec in DEFINITIONS.resolve_all_asset_specs()}
GROUPS = {LIVE_GROUP, TRAINING_GROUP, QUALITY_GROUP}
UNITS = re.compile(r"\b(ADU|keV|pixels?|mm|UTC|seconds?|s)\b")
NO_QUANTITIES = {"daq_announcements", "unlabelled_paths"}
"""Assets in which nothing has a unit."""


def test_the_definitions_load_and_the_assets_are_these() -> None:
    Definitions.validate_loadable(DEFINITIONS)
    live = {"daq_announcements", "raw_image", "preprocessed_tensor"}
    live |= {"event_catalog", "event_tensors", "pipeline_health"}
    assert live | {key.to_user_string() for key in TRAINING_ASSETS} == set(SPECS)
    assert SPECS["preprocessed_tensor"].code_version == load_settings().preprocess_spec.hash
    # What nobody asks for would never be made: a sensor asks for the archive.
    for key in TRAINING_ASSETS:
        condition = SPECS[key.to_user_string()].automation_condition
        assert (condition is None) == (key == TRAINING_ARCHIVE)


@pytest.mark.parametrize("name", SPECS)
def test_the_web_ui_says_what_an_asset_is(name: str) -> None:
    spec = SPECS[name]
    assert spec.group_name in GROUPS
    assert spec.description
    assert UNITS.search(spec.description) or name in NO_QUANTITIES
    assert spec.owners
    assert spec.kinds
    assert "domain" in spec.tags
    # What is made elsewhere has no code of ours, and is as old as it is.
    assert spec.code_version or name == "daq_announcements"
    assert spec.freshness_policy or name == "daq_announcements"


@pytest.mark.parametrize("name", SPECS)
def test_the_web_ui_says_where_an_assets_code_is(name: str) -> None:
    said = SPECS[name].metadata["dagster/code_references"].value.code_references
    assert said
    for reference in said:
        path = Path(reference.file_path)
        assert path.is_relative_to(CHECKOUT / "cygno_assets")
        line = path.read_text().splitlines()[reference.line_number - 1]
        assert line.lstrip().startswith(("@", "def "))


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if "parquet" in s.kinds])
def test_a_table_has_columns_and_each_says_what_it_means(name: str) -> None:
    columns = _columns(name)
    assert columns
    assert all(column.description and column.type for column in columns.values())
    # A name may carry the unit; otherwise the words do.
    for column in columns.values():
        if column.name.endswith("_kev"):
            assert "keV" in column.description


@pytest.mark.parametrize("name", [n for n in SPECS if TABLE in SPECS[n].metadata])
def test_a_table_made_of_tables_says_which_columns_come_from_which(name: str) -> None:
    above = {dep.asset_key.to_user_string() for dep in SPECS[name].deps}
    tables = {other for other in above if TABLE in SPECS[other].metadata}
    lineage = SPECS[name].metadata.get("dagster/column_lineage")
    if not tables:
        assert lineage is None
        return
    assert lineage is not None
    sources = lineage.deps_by_column
    assert sources.keys() <= _columns(name).keys()
    for dep in (dep for deps in sources.values() for dep in deps):
        assert dep.asset_key.to_user_string() in tables
        assert dep.column_name in _columns(dep.asset_key.to_user_string())
    # A column that is there under the same name comes from there.
    for column in _columns(name):
        if any(column in _columns(other) for other in tables):
            assert column in sources


def test_everything_else_that_the_web_ui_lists_is_described_too() -> None:
    repository = DEFINITIONS.get_repository_def()
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    named = [*repository.sensor_defs, *repository.schedule_defs, *jobs]
    assert [one.name for one in named if not one.description] == []
    checks = list(DEFINITIONS.asset_checks or [])
    assert [
        spec.key for check in checks for spec in check.check_specs if not spec.description
    ] == []


def test_each_check_can_be_executed_by_itself_in_the_web_ui() -> None:
    for check in DEFINITIONS.asset_checks or []:
        assert check.can_subset or len(list(check.check_specs)) == 1


def _columns(name: str) -> dict[str, TableColumn]:
    return {column.name: column for column in SPECS[name].metadata[TABLE].columns}


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
