"""`cygno-assets show`: while the system runs, when it does not, and when Dagster has forgotten."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from dagster import DagsterInstance
from PIL import Image

from cygno_assets.build import build_defs
from cygno_assets.cli import cli
from cygno_assets.names import CATALOG_JOB
from cygno_assets.services.process import ServiceError
from cygno_assets.settings import CHECKOUT
from cygno_assets_tests.assets.detector import TAKEN, Detector
from cygno_assets_tests.wire import REAL_IMAGES, fill_inbox, message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings


@pytest.fixture
def detector(
    daq_bucket: BucketSettings, inbox_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Detector]:
    """On the instance that the program opens too: of dagster.yaml, in this test's home."""
    monkeypatch.setenv("DAGSTER_HOME", str(CHECKOUT))
    monkeypatch.setenv("CYGNO_INBOX_URL", inbox_url)
    monkeypatch.chdir(tmp_path)
    with DagsterInstance.get() as instance:
        yield Detector(daq_bucket, inbox_url, tmp_path / "home", instance)


def show(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["show", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def shown(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(show("--json", *arguments))
    return found


def catalogue(detector: Detector) -> None:
    job = build_defs(detector.settings).resolve_job_def(CATALOG_JOB)
    job.execute_in_process(partition_key=TAKEN[:10], instance=detector.instance)


def test_a_running_systems_event(detector: Detector, tmp_path: Path) -> None:
    data = REAL_IMAGES[0].read_bytes()
    event_id = detector.announce(data)
    detector.run(event_id)
    before = show(event_id)
    assert "no row (yet)" in before
    catalogue(detector)
    text = show(event_id)
    for expected in (
        "sequence 1",
        f"acquired {TAKEN[:-3]}",
        "its URL is valid until ",
        "success",
        f"version {event_id.removeprefix('cygno-')}, code 1",
        f"from raw_image {event_id.removeprefix('cygno-')}",
        f"raw_image  {len(data)} bytes, md5 right  {detector.raw_file(event_id)}",
        "mean_adu",
        f"picture    {event_id}.png",
    ):
        assert expected in text
    assert "X-Amz" not in text
    assert Image.open(tmp_path / f"{event_id}.png").size == (1400, 460)

    story = shown(event_id[:10], "--picture", "elsewhere.png")
    assert story["event_id"] == event_id
    assert story["picture"] == "elsewhere.png"
    assert story["notes"] == []
    [announcement], [run] = story["announcements"], story["runs"]
    assert announcement["url_expired"] is False
    assert (run["status"], run["attempt"]) == ("success", 0)
    assert run["took_s"] > 0
    assert story["lineage"]["raw_image"]["run_id"] == run["run_id"]
    assert story["catalogue"]["run_id"] == run["run_id"]
    assert "X-Amz" not in json.dumps(story)


def test_a_failed_event_announced_twice_whose_url_has_expired(detector: Detector) -> None:
    event_id, signed = REAL_IMAGES[0].stem, datetime.now(UTC) - timedelta(hours=3)
    url = (
        f"https://{detector.bucket.endpoint.partition('://')[2]}/x.jpg?X-Amz-Expires=3600"
        f"&X-Amz-Date={signed:%Y%m%dT%H%M%SZ}&X-Amz-Signature=secret"
    )
    name = f"{event_id}.jpg"
    fill_inbox(detector.inbox_url, [message(name, url, TAKEN), message(name, url, TAKEN[:19])])
    assert not detector.run(event_id).success
    text = show(event_id)
    assert "sequence 1" in text
    assert "sequence 2" in text
    assert "2:00:0" in text  # so long ago
    assert "expired: " in text
    assert "raw_image  NOT THERE" in text
    assert "picture    none" in text
    assert "secret" not in text
    [run] = shown(event_id)["runs"]
    assert (run["status"], run["kind"]) == ("failure", "expired")


def test_a_damaged_image_is_told(detector: Detector) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())
    detector.run(event_id)
    detector.raw_file(event_id).write_bytes(REAL_IMAGES[1].read_bytes())
    detector.tensor_file(event_id).write_bytes(b"")
    text = show(event_id)
    assert "md5 WRONG" in text
    assert "0 bytes, DAMAGED" in text


def test_dagster_and_the_inbox_have_forgotten_it(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())
    run = detector.run(event_id)
    catalogue(detector)
    detector.instance.delete_run(run.run_id)
    detector.instance.delete_dynamic_partition("daq_event", event_id)
    monkeypatch.setenv("CYGNO_INBOX_URL", "nats://127.0.0.1:1")
    text = show(event_id[:12])
    assert "Dagster knows of no run of it (any more)" in text
    assert "without its announcements: no inbox answers at nats://127.0.0.1:1" in text
    assert run.run_id in text  # the catalogue's
    assert f"picture    {event_id}.png" in text


def test_nothing_runs_and_nothing_ever_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match="no event 'cygno-a1' is known"):
        show("cygno-a1")
    assert not os.listdir(tmp_path)  # noqa: PTH208 – nothing was made by looking


def test_only_files_are_left(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())
    detector.run(event_id)
    catalogue(detector)
    data = (detector.home / "data").as_uri()
    monkeypatch.delenv("CYGNO_INBOX_URL")
    monkeypatch.setenv("CYGNO_HOME", str(detector.home.parent / "another"))
    monkeypatch.setenv("CYGNO_STORAGE_URL", data)
    text = show(event_id)
    assert "Dagster has run nothing in " in text
    assert "no inbox runs for " in text
    assert "md5 right" in text
    assert "mean_adu" in text


def test_names_that_are_none(detector: Detector) -> None:
    names = [f"cygno-ab{number:030x}.jpg" for number in (0, 1)]
    fill_inbox(detector.inbox_url, [message(name, "https://daq.invalid/x") for name in names])
    with pytest.raises(ServiceError, match=r"2 events begin with 'cygno-ab': cygno-ab000"):
        show("cygno-ab")
    with pytest.raises(ServiceError, match=r"did you mean cygno-ab0000.*"):
        show("cygno-ac000000000000000000000000000000")
    with pytest.raises(ServiceError, match=r"no event '\.\./x' is known"):
        show("../x")
    assert shown(names[0].removesuffix(".jpg"))["runs"] == []
