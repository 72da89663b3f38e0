"""`cygno-assets up` on Postgres: what it does while that is away."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml

from cygno_assets.settings import CHECKOUT
from cygno_assets_tests.end_to_end.running import Program
from cygno_assets_tests.scale.servers import PostgresServer, server_folder
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_it_outlives_its_database_and_goes_on_recording(tmp_path: Path) -> None:
    config = yaml.safe_load((CHECKOUT / "dagster.yaml").read_text())
    beyond = yaml.safe_load((CHECKOUT / "deploy" / "dagster.yaml").read_text())
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "dagster.yaml").write_text(
        yaml.safe_dump(config | {"storage": beyond["storage"]})
    )
    with (
        server_folder() as folder,
        Program(["simulate", "daq", "--rate", "2", "--seed", "3"], tmp_path / "daq") as daq,
    ):
        postgres = PostgresServer(folder)
        options = ["--nats", daq.says(r"DAQ's NATS server (nats://[^,]+)")]
        options += ["--ca-file", daq.says(r"--ca-file (\S+)")]
        options += ["--image-host", daq.says(r"--image-host (\S+)")]
        environ = {
            "CYGNO_DAGSTER_CONFIG": str(tmp_path / "config"),
            "CYGNO_POSTGRES_URL": postgres.url(),
        }
        try:
            postgres.start()
            with Program(["up", *options], tmp_path / "up", environ) as up:

                def shown(what: str) -> int:
                    return int(re.findall(rf"{what} (\d+)", up.output)[-1])

                up.says(r"materialized [1-9]")
                postgres.stop()
                up.says("NO DATABASE")
                recorded = shown("recorded")
                wait_until("it goes on recording", lambda: shown("recorded") > recorded, 60)
                recorded = shown("recorded")
                postgres.start()
                wait_until("all is made", lambda: shown("materialized") > recorded, 120)
                assert up.interrupt() == 130
                up.nothing_left()
        finally:
            postgres.stop()
