"""What failed, was rejected or is missing on a real system, and the commands that mend it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import nats

from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.services.process import free_port
from cygno_assets_tests.end_to_end.running import PROGRAM, Program, WebUI
from cygno_assets_tests.wire import REAL_IMAGES, message, name_of, wait_until

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = [file.read_bytes() for file in REAL_IMAGES]


@dataclass
class Daq:
    """Announces what a test wants."""

    nats_url: str
    bucket: BucketSettings

    def url(self, filename: str, content: bytes | None) -> str:
        bucket = Bucket(self.bucket)
        if content is not None:
            bucket.put(filename, content)
        return bucket.presigned_url(filename, timedelta(hours=1))

    def says(self, *messages: bytes) -> None:
        async def publish() -> None:
            client = await nats.connect(self.nats_url)
            for text in messages:
                await client.publish("daq/data", text)
            await client.flush()
            await client.close()

        asyncio.run(publish())

    def announces(self, filename: str, content: bytes | None) -> str:
        taken = str(datetime.now(UTC).replace(tzinfo=None))
        self.says(message(filename, self.url(filename, content), taken))
        return filename.rpartition(".")[0]


def run(home: Path, *arguments: str, environ: dict[str, str] | None = None) -> tuple[int, str]:
    with Program(list(arguments), home, environ or {}) as program:
        return program.ends(), program.output


def test_what_is_missing_is_listed_and_mended(
    tmp_path: Path, daq_bucket: BucketSettings, daq_nats_url: str
) -> None:
    home = tmp_path / "system"  # the fixtures' servers know the usual one
    environ = {
        "CYGNO_DAQ_NATS_URL": daq_nats_url,
        "CYGNO_DOWNLOAD_CA_FILE": str(daq_bucket.ca_file),
        "CYGNO_DOWNLOAD_HOSTS": daq_bucket.endpoint,
    }
    daq = Daq(daq_nats_url, daq_bucket)
    assert run(home, "reconcile")[0] == 1
    assert "nothing has run in" in run(home, "reconcile")[1]
    with Program(["up"], home, environ) as up:
        ui = WebUI(up.says(r"web UI +(\S+)"))
        good = [daq.announces(name_of(image), image) for image in IMAGES[:3]]
        wrong = daq.announces(name_of(IMAGES[3]), IMAGES[0])  # other bytes than its name says
        sunset = daq.url("sunset.jpg", IMAGES[3])
        signature = sunset.rpartition("X-Amz-Signature=")[2]
        daq.says(b"no JSON", message("sunset.jpg", sunset))
        wait_until("three tensors", lambda: set(ui.events()) == set(good))
        wait_until(
            "a failure that is believed",
            lambda: ui.runs_of(wrong) == ["FAILURE"] * 4,
            timeout_s=180,
        )

        status, said = run(home, "reconcile")
        assert status == 1
        assert f"{wrong}  failed: wrong_content" in said
        assert "2 messages rejected" in said

        # A file is gone, and another whole folder entry with it.
        (home / "data" / "preprocessed_tensor" / f"{good[0]}.npy").unlink()
        (home / "data" / "raw_image" / f"{good[1]}.jpg").unlink()
        found = json.loads(run(home, "reconcile", "--json")[1])
        assert found["counts"] == {"failed": 1, "no image": 1, "no tensor": 1}
        status, said = run(home, "reconcile", "--repair", environ=environ)
        assert status == 1, said  # for what failed stays failed
        assert "2 of 2 events: completed success" in said
        found = json.loads(run(home, "reconcile", "--json")[1])
        assert {d["event_id"]: d["what"] for d in found["differences"]} == {wrong: "failed"}

        # The DAQ mends its bucket; nobody announces it again.
        Bucket(daq_bucket).put(name_of(IMAGES[3]), IMAGES[3])
        assert run(home, "replay", "--kind", "expired")[1].strip() == (
            "no event has failed on expired"
        )
        status, said = run(home, "replay", environ=environ)
        assert status == 0, said
        assert "1 wrong_content" in said
        assert run(home, "reconcile")[0] == 0

        status, said = run(home, "rejected", "list")
        first, second = said.splitlines()
        assert "message is not JSON" in first
        assert "does not end in the md5" in second
        sequence = second.split()[0]
        status, said = run(home, "rejected", "show", sequence)
        assert "sunset.jpg" in said
        assert signature not in said
        status, said = run(home, "rejected", "replay")
        assert status == 1
        assert said.count("still rejected") == 2
        assert "no rejected message of sequence 1\n" in run(home, "rejected", "show", "1")[1]
        assert up.interrupt() == 130
        up.nothing_left()

    # The setting that rejected it changes, for the whole system.
    environ["CYGNO_NAMES_WITHOUT_MD5"] = "true"
    with Program(["up"], home, environ) as up:
        ui = WebUI(up.says(r"web UI +(\S+)"))
        status, said = run(home, "rejected", "replay", sequence, environ=environ)
        assert (status, said.split()[1]) == (0, "sunset")
        wait_until("a tensor of it, too", lambda: "sunset" in ui.events())
        assert "sunset" not in run(home, "rejected", "list")[1]
        status, said = run(home, "reconcile")
        assert status == 0, said
        assert "1 messages rejected" in said
        assert up.interrupt() == 130
        up.nothing_left()


def test_events_of_an_outage_that_outlived_their_urls_are_told_and_made_when_announced_anew(
    tmp_path: Path, daq_bucket: BucketSettings, daq_nats_url: str
) -> None:
    home = tmp_path / "system"
    away = f"127.0.0.1:{free_port()}"  # nothing listens there
    environ = {
        "CYGNO_DAQ_NATS_URL": daq_nats_url,
        "CYGNO_DOWNLOAD_CA_FILE": str(daq_bucket.ca_file),
        "CYGNO_DOWNLOAD_HOSTS": f"{daq_bucket.endpoint},{away}",
    }
    daq = Daq(daq_nats_url, daq_bucket)
    check = ("daq_announcements", "no_event_failed_or_was_rejected")
    with Program(["up"], home, environ) as up:
        ui = WebUI(up.says(r"web UI +(\S+)"))
        filename = name_of(IMAGES[0])
        # It is called expired a minute after its time, for clocks differ: 5 s from now.
        signed = f"{datetime.now(UTC) - timedelta(seconds=59):%Y%m%dT%H%M%SZ}"
        daq.says(
            message(
                filename,
                f"https://{away}/{filename}?X-Amz-Date={signed}&X-Amz-Expires=4&X-Amz-Signature=0",
                str(datetime.now(UTC).replace(tzinfo=None)),
            )
        )
        event = filename.removesuffix(".jpg")
        lost = name_of(IMAGES[1]).removesuffix(".jpg")
        daq.says(message(f"{lost}.jpg", "https://elsewhere.invalid/x"))

        wait_until("it expired", lambda: any("URL expired" in t for t in ui.failures(event)))
        wait_until("no run is left", lambda: not ui.unfinished_runs())
        found = json.loads(run(home, "reconcile", "--json")[1])["differences"]
        assert {one["event_id"]: one["detail"] for one in found} == {
            event: "expired",
            lost: "not_allowed",
        }
        assert ui.run_job("reconciliation_check") == "SUCCESS"
        assert ui.check_verdicts(*check)[0] == (
            "FAILED",
            "2 events failed, 0 messages were rejected",
        )
        daq.announces(filename, IMAGES[0])
        wait_until("its tensor", lambda: event in ui.events())
        daq.announces(filename, IMAGES[0])  # once more: nothing happens

        # Of one event Dagster forgets its only run; of another there are only files.
        ui.delete_run(ui.newest_run(lost))
        unknown = name_of(IMAGES[2]).removesuffix(".jpg")
        for name, image in ((lost, IMAGES[1]), (unknown, IMAGES[2])):
            (home / "data" / "raw_image" / f"{name}.jpg").write_bytes(image)
        (home / "data" / "preprocessed_tensor" / f"{unknown}.npy").write_bytes(b"")
        done = subprocess.run(
            [PROGRAM, "reconcile", "--json", "--repair"],
            env=os.environ | environ | {"CYGNO_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        found = json.loads(done.stdout)["differences"]
        assert {one["event_id"]: one["what"] for one in found} == {
            lost: "never ran",
            unknown: "no record",
        }
        assert done.returncode == 0, done.stderr
        assert "2 of 2 events: completed success" in done.stderr
        assert set(ui.events()) == {event, lost, unknown}
        assert ui.runs_of(event).count("SUCCESS") == 1
        assert (home / "data" / "preprocessed_tensor" / f"{unknown}.npy").stat().st_size > 1000
        assert run(home, "reconcile")[0] == 0
        assert ui.run_job("reconciliation_check") == "SUCCESS"
        assert ui.check_verdicts(*check)[0][0] == "SUCCEEDED"
        assert up.interrupt() == 130
        up.nothing_left()
