"""What failed, was rejected or is missing on a real system, and the commands that mend it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import nats

from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets_tests.end_to_end.running import Program, WebUI
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
        daq.says(b"no JSON", message("sunset.jpg", "https://daq.invalid/x?X-Amz-Signature=c0ffee"))
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
        assert found["counts"] == {
            **dict.fromkeys(("never ran", "no record"), 0),
            "failed": 1,
            "no image": 1,
            "no tensor": 1,
        }
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
        assert "c0ffee" not in said
        status, said = run(home, "rejected", "replay")
        assert status == 1
        assert said.count("still rejected") == 2
        status, said = run(
            home, "rejected", "replay", sequence, environ={"CYGNO_NAMES_WITHOUT_MD5": "true"}
        )
        assert (status, said.split()[1]) == (0, "sunset")
        assert "no rejected message of sequence 1\n" in run(home, "rejected", "show", "1")[1]
        assert up.interrupt() == 130
        up.nothing_left()
