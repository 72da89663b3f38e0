"""The assets of live events, run in this process against a real inbox and a real S3 server."""

from __future__ import annotations

import base64
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dagster import DagsterInstance
from PIL import Image

from cygno_assets.build import build_defs
from cygno_assets.daq import download
from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.names import (
    DOUBTS_TAG,
    FINAL_TAG,
    KIND_TAG,
    LIVE_TAG,
    MAX_DOUBTS,
    SEQUENCE_TAG,
)
from cygno_assets.physics.histogram import counts_from_text
from cygno_assets.physics.images import decode_image, preprocess
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.records.history import failure_kind, may_pass
from cygno_assets_tests.assets.detector import RAW, TAKEN, TENSOR, Detector, kind, reason
from cygno_assets_tests.origin import answer, serving
from cygno_assets_tests.wire import REAL_IMAGES, fill_inbox, message, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

    from dagster import DagsterRun, ExecuteInProcessResult


@pytest.fixture
def detector(daq_bucket: BucketSettings, inbox_url: str, tmp_path: Path) -> Iterator[Detector]:
    with DagsterInstance.ephemeral() as instance:
        yield Detector(daq_bucket, inbox_url, tmp_path / "home", instance)


@pytest.mark.parametrize("file", REAL_IMAGES, ids=lambda file: file.stem[:12])
def test_a_real_image_goes_from_its_announcement_to_its_tensor(
    detector: Detector, file: Path
) -> None:
    data = file.read_bytes()
    event_id = detector.announce(data)
    assert event_id == file.stem
    before = datetime.now(UTC).timestamp()
    assert detector.run(event_id).success

    assert detector.raw_file(event_id).read_bytes() == data
    tensor = np.load(detector.tensor_file(event_id), allow_pickle=False)
    assert (tensor.shape, tensor.dtype) == ((128, 128), np.float32)
    np.testing.assert_array_equal(
        tensor, preprocess(decode_image(data, max_pixels=10**6), PreprocessSpec())
    )

    pixels = np.asarray(Image.open(file))
    raw = detector.metadata(RAW, event_id)
    taken = datetime.fromisoformat(TAKEN).replace(tzinfo=UTC).timestamp()
    assert raw["acquired"] == pytest.approx(taken)
    assert before - 60 < raw["announced"] <= raw["downloaded"]
    assert raw["md5"] == event_id.removeprefix("cygno-")
    assert (raw["size_bytes"], raw["dimensions_px"], raw["mode"]) == (len(data), "576 × 576", "L")
    assert raw["mean_adu"] == pytest.approx(pixels.mean(), abs=0.001)
    assert raw["sd_adu"] == pytest.approx(pixels.std(), abs=0.001)
    assert (raw["min_adu"], raw["max_adu"]) == (pixels.min(), pixels.max())
    means = pixels.mean(axis=0)
    assert raw["column_sd_adu"] == pytest.approx(means.std(), abs=0.001)
    assert raw["hottest_column"] == means.argmax()
    assert raw["hottest_column_excess_adu"] == pytest.approx(
        means.max() - np.median(means), abs=0.001
    )
    row, column = raw["brightest_row"], raw["brightest_column"]
    square = pixels[row : row + 8, column : column + 8]
    assert raw["brightest_adu"] == pytest.approx(square.mean(), abs=0.001)
    np.testing.assert_array_equal(
        counts_from_text(raw["pixel_counts"]), np.bincount(pixels.ravel(), minlength=256)
    )
    assert raw["stream_sequence"] == 1
    assert raw["source"] == f"{detector.bucket.endpoint}/cygno-daq/{file.name}"
    assert raw["path"].endswith(f"/raw_image/{file.name}")

    made = detector.metadata(TENSOR, event_id)
    assert made["spec_hash"] == PreprocessSpec().hash
    central = pixels[224:352, 224:352]
    assert made["clipped_low_share"] == pytest.approx((central < 80).mean(), abs=1e-6)
    assert made["clipped_high_share"] == pytest.approx((central > 110).mean(), abs=1e-6)
    assert made["latency_s"] > 0
    thumbnail = made["thumbnail"]
    assert len(thumbnail.encode()) <= 4_096
    picture = base64.b64decode(thumbnail.partition("base64,")[2].partition(")")[0])
    assert Image.open(io.BytesIO(picture)).size == (256, 256)


def test_no_signature_reaches_the_database(detector: Detector) -> None:
    good = detector.announce(REAL_IMAGES[0].read_bytes())
    bad = detector.announce(b"no image", name_of(b"another"))
    detector.run(good)
    detector.run(bad)
    logs = [
        entry.to_json()
        for record in detector.instance.get_run_records()
        for entry in detector.instance.all_logs(record.dagster_run.run_id)
    ]
    assert any("cygno-daq" in line for line in logs)
    assert not [line for line in logs if "X-Amz" in line]


def test_what_is_stored_is_not_downloaded_again(detector: Detector) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())
    assert detector.run(event_id).success
    written = detector.raw_file(event_id).stat()
    detector.bucket = BucketSettings("https://127.0.0.1:1", "x", "x", "x", "x")
    assert detector.run(event_id).success
    assert detector.raw_file(event_id).stat().st_mtime_ns == written.st_mtime_ns
    assert "downloaded" not in detector.metadata(RAW, event_id)


def test_a_damaged_stored_image_is_noticed_and_fetched_again(detector: Detector) -> None:
    data = REAL_IMAGES[0].read_bytes()
    event_id = detector.announce(data)
    assert detector.run(event_id).success
    detector.raw_file(event_id).write_bytes(data[:-1])
    assert "the stored image is damaged" in reason(detector.run(event_id, TENSOR))
    assert detector.run(event_id).success
    assert detector.raw_file(event_id).read_bytes() == data


def test_same_bytes_and_spec_same_data_version_and_another_spec_another(
    detector: Detector,
) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())
    versions = []
    for window_high in (110.0, 110.0, 130.0):
        detector.overrides["window_high"] = window_high
        assert detector.run(event_id).success
        versions.append(
            (detector.data_version(RAW, event_id), detector.data_version(TENSOR, event_id))
        )
    assert versions[0] == versions[1]
    assert versions[0][0] == versions[2][0]
    assert versions[0][1] != versions[2][1]


def test_a_tensor_is_made_again_without_inbox_and_download(detector: Detector) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())
    assert detector.run(event_id).success
    detector.inbox_url = "nats://127.0.0.1:1"
    detector.overrides["window_low"] = 60.0
    assert detector.run(event_id, TENSOR).success
    made = detector.metadata(TENSOR, event_id)
    assert made["spec_hash"] == PreprocessSpec(window_low=60).hash
    assert "latency_s" not in made


def test_when_bytes_and_announcement_are_both_gone_it_says_so(detector: Detector) -> None:
    fill_inbox(detector.inbox_url, [])
    gone = "cygno-" + 32 * "0"
    result = detector.run(gone)
    assert kind(result) == "gone"
    assert reason(result) == (
        f"{gone}: neither its image is stored nor its announcement still in the inbox "
        "(kept 7 days); it can only be made after the DAQ has announced it again"
    )


def test_an_inbox_that_is_away_is_tried_again(detector: Detector) -> None:
    detector.inbox_url = "nats://127.0.0.1:1"
    result = detector.run("cygno-" + 32 * "0")
    assert "no inbox answers" in reason(result)
    assert kind(result) == "no_inbox"
    assert retries(result) == 2


def test_without_an_inbox_it_says_what_to_do_and_is_tried_again(detector: Detector) -> None:
    detector.overrides["inbox_url"] = None
    result = detector.run("cygno-" + 32 * "0")
    assert "no inbox runs for" in reason(result)
    assert kind(result) == "no_inbox"
    assert retries(result) == 2


def retries(result: ExecuteInProcessResult) -> int:
    return len([event for event in result.all_events if event.is_step_up_for_retry])


def test_a_server_that_is_away_is_tried_again_and_named(detector: Detector) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())
    detector.overrides["download_ca_file"] = None
    assert kind(detector.run(event_id)) == "untrusted"

    away = "http://127.0.0.1:1"
    detector.overrides["download_hosts"] = away
    again = message(f"{event_id}.jpg", f"{away}/x.jpg?X-Amz-Signature=1", TAKEN)
    fill_inbox(detector.inbox_url, [again])
    result = detector.run(event_id)
    assert kind(result) == "unavailable"
    assert "Connection refused; none of 2 announcements led to it" in reason(result)
    assert retries(result) == 2


def test_an_expired_url_says_how_long_the_event_waited(detector: Detector) -> None:
    event_id = REAL_IMAGES[0].stem
    bucket = Bucket(detector.bucket)
    url = bucket.presigned_url(f"{event_id}.jpg", timedelta(seconds=1))
    long_ago = re.sub("X-Amz-Date=[0-9]+", "X-Amz-Date=20241127", url)
    fill_inbox(detector.inbox_url, [message(f"{event_id}.jpg", long_ago, TAKEN)])

    result = detector.run(event_id)

    assert kind(result) == "expired"
    assert re.search(
        r"its URL expired at 2024-11-27 .* UTC, \d+ days, .* ago; the event had waited 0:00:0\d$",
        reason(result),
    )
    assert retries(result) == 0


def test_without_a_list_of_hosts_definitions_load_and_nothing_is_fetched(
    detector: Detector,
) -> None:
    detector.overrides["download_hosts"] = ""
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())

    result = detector.run(event_id)

    assert kind(result) == "not_allowed"
    assert reason(result).endswith(" is not in CYGNO_DOWNLOAD_HOSTS")
    assert retries(result) == 0


def test_an_event_announced_again_while_it_is_made_is_made_by_the_new_url(
    detector: Detector,
) -> None:
    """The sensor passes over it, for a run is under way: that run must look."""
    data = REAL_IMAGES[0].read_bytes()
    with serving() as origin:
        detector.overrides["download_hosts"] = f"{detector.bucket.endpoint},{origin.address}"

        def announce_again_and_refuse(request: BaseHTTPRequestHandler) -> None:
            detector.announce(data)
            request.send_error(418)

        first = origin.announced(announce_again_and_refuse, data=data)
        fill_inbox(detector.inbox_url, [message(first.filename, first.url, TAKEN)])
        assert detector.run(first.event_id).success
        assert len(origin.requests) == 1
    assert detector.raw_file(first.event_id).read_bytes() == data
    assert detector.metadata(RAW, first.event_id)["stream_sequence"] == 2


def announce(detector: Detector, event_id: str, *urls: str) -> None:
    """Announces an event once more for each URL, with a time of its own each."""
    times = (f"2024-11-27 15:00:{second:02d}" for second in range(60))
    said = [message(f"{event_id}.jpg", url, time) for url, time in zip(urls, times, strict=False)]
    fill_inbox(detector.inbox_url, said)


HOSTILE = "https://evil.example/x.jpg?X-Amz-Signature=1"


@pytest.mark.parametrize(
    "later",
    [[HOSTILE], [HOSTILE] * 20, ["dead"], ["absent"], ["dead"] * 3, ["other"] * 20],
)
def test_a_later_announcement_of_no_use_does_not_spoil_a_good_one(
    detector: Detector, later: list[str]
) -> None:
    data = REAL_IMAGES[0].read_bytes()
    event_id = detector.announce(data)
    bucket = Bucket(detector.bucket)
    bucket.put("cygno-y.jpg", REAL_IMAGES[1].read_bytes())
    urls = {
        "dead": f"{detector.bucket.endpoint}/x.jpg?Expires=1732717656&Signature=1",
        "absent": bucket.presigned_url("cygno-x.jpg", timedelta(hours=1)),
        "other": bucket.presigned_url("cygno-y.jpg", timedelta(hours=1)),
    }
    announce(detector, event_id, *(urls.get(url, url) for url in later))
    assert detector.run(event_id).success
    assert detector.raw_file(event_id).read_bytes() == data
    assert detector.metadata(RAW, event_id)["stream_sequence"] == 1


def test_announcements_that_are_all_of_no_use_are_asked_a_handful_of_times(
    detector: Detector,
) -> None:
    event_id = "cygno-" + 32 * "0"
    with serving() as origin:
        detector.overrides["download_hosts"] = origin.address
        origin.answers[:] = [answer(status=418)]
        announce(detector, event_id, *[f"{origin.address}/{n}.jpg" for n in range(8)], HOSTILE)
        result = detector.run(event_id)
        assert origin.requests == [f"/{n}.jpg" for n in (7, 6, 5, 4, 0)]
    assert kind(result) == "bad_answer"
    assert reason(result).endswith(
        "/7.jpg: HTTP 418 I'm a Teapot; none of 6 announcements led to it"
    )
    assert tags(detector, result)[SEQUENCE_TAG] == "9"


def test_a_server_that_is_away_is_not_asked_once_for_each_signature(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PAUSES_S", {})
    event_id = "cygno-" + 32 * "0"
    with serving() as origin:
        detector.overrides["download_hosts"] = origin.address
        origin.answers[:] = [answer(status=503)]
        urls = [f"{origin.address}/{n % 2}.jpg?X-Amz-Signature={n}" for n in range(4)]
        announce(detector, event_id, *urls)
        result = detector.run(event_id)
        asked = [request.partition("?")[0] for request in origin.requests]
    assert kind(result) == "unavailable"
    assert asked == ["/1.jpg", "/0.jpg"] * (1 + retries(result))


def test_hostile_announcements_alone_fail_for_good_by_the_newest(detector: Detector) -> None:
    event_id = "cygno-" + 32 * "0"
    announce(detector, event_id, "https://evil.example/1", "https://evil.example:8/2")
    result = detector.run(event_id)
    assert tags(detector, result)[FINAL_TAG] == "not_allowed"
    assert reason(result).endswith(
        "host evil.example:8 is not in CYGNO_DOWNLOAD_HOSTS; none of 2 announcements led to it"
    )


def run_of(detector: Detector, result: ExecuteInProcessResult) -> DagsterRun:
    run = detector.instance.get_run_by_id(result.run_id)
    assert run is not None
    return run


def tags(detector: Detector, result: ExecuteInProcessResult) -> dict[str, str]:
    return dict(run_of(detector, result).tags)


def test_what_a_server_answers_is_believed_after_a_minute_of_runs(detector: Detector) -> None:
    data = REAL_IMAGES[0].read_bytes()
    with serving() as origin:
        detector.overrides["download_hosts"] = origin.address
        announced = origin.announced(answer(b"<html>Sign in</html>"), data=data)
        announce(detector, announced.event_id, announced.url)
        given: dict[str, str] = {}
        for doubts in range(1, MAX_DOUBTS + 1):
            result = detector.run(announced.event_id, tags=given)
            assert kind(result) == "wrong_content"
            assert may_pass(run_of(detector, result))
            assert failure_kind(run_of(detector, result)) == "wrong_content"
            assert retries(result) == 0
            given = {DOUBTS_TAG: tags(detector, result)[DOUBTS_TAG]}
            assert given == {DOUBTS_TAG: str(doubts)}
        last = detector.run(announced.event_id, tags=given)
        assert tags(detector, last)[FINAL_TAG] == "wrong_content"
        assert not may_pass(run_of(detector, last))

        origin.answers[:] = [answer(data)]
        assert detector.run(announced.event_id, tags=given).success


def test_a_persons_run_that_fails_on_an_answer_has_failed(detector: Detector) -> None:
    """Nothing runs it again by itself."""
    event_id = detector.announce(b"other bytes", name_of(b"an image"))
    result = detector.run(event_id, RAW)
    assert LIVE_TAG not in tags(detector, result)
    assert tags(detector, result)[FINAL_TAG] == "wrong_content"


def test_what_failed_on_a_server_that_is_away_says_so_in_the_end(detector: Detector) -> None:
    """Or `replay --kind unavailable` would not find it."""
    away = "http://127.0.0.1:1"
    detector.overrides["download_hosts"] = away
    event_id = "cygno-" + 32 * "0"
    announce(detector, event_id, f"{away}/x.jpg")
    result = detector.run(event_id)
    assert tags(detector, result)[KIND_TAG] == "unavailable"
    assert failure_kind(run_of(detector, result)) == "unavailable"


def test_a_failure_for_good_says_so_on_the_run(detector: Detector) -> None:
    event_id = detector.announce(b"no image")
    result = detector.run(event_id)
    assert kind(result) == "no_image"
    run = detector.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags[FINAL_TAG] == "no_image"


def test_names_without_md5_are_accepted_by_setting(detector: Detector) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes(), "run7-0001.jpg")
    assert "does not end in the md5" in reason(detector.run(event_id))
    detector.overrides["names_without_md5"] = True
    assert detector.run(event_id).success


def test_everything_is_kept_in_s3_by_setting(
    detector: Detector, store_bucket: BucketSettings
) -> None:
    detector.overrides |= {
        "storage_url": f"s3://{store_bucket.bucket}/live",
        "storage_s3_endpoint": store_bucket.endpoint,
        "storage_s3_access_key_id": store_bucket.access_key_id,
        "storage_s3_secret_access_key": store_bucket.secret_access_key,
        "storage_s3_ca_file": store_bucket.ca_file,
    }
    event_id = detector.announce(REAL_IMAGES[1].read_bytes())
    assert detector.run(event_id).success
    assert detector.run(event_id).success
    assert "downloaded" not in detector.metadata(RAW, event_id)
    assert detector.metadata(RAW, event_id)["path"] == (
        f"s3://cygno-store/live/raw_image/{event_id}.jpg"
    )
    assert not (detector.home / "data").exists()
    with build_defs(detector.settings).get_asset_value_loader(detector.instance) as loader:
        tensor = loader.load_asset_value(TENSOR, partition_key=event_id)
        assert loader.load_asset_value(RAW, partition_key=event_id) == REAL_IMAGES[1].read_bytes()
    np.testing.assert_array_equal(
        tensor,
        preprocess(decode_image(REAL_IMAGES[1].read_bytes(), max_pixels=10**6), PreprocessSpec()),
    )
    shown = json.dumps([record.dagster_run.tags for record in detector.instance.get_run_records()])
    assert store_bucket.secret_access_key not in shown


@pytest.mark.parametrize(
    ("changed", "kind_of"),
    [
        ({"storage_s3_secret_access_key": "hunter2"}, "storage_refused"),
        ({"storage_s3_endpoint": "http://127.0.0.1:1"}, "storage"),
    ],
)
def test_a_bucket_of_ours_that_does_not_take_images_is_told_by_kind_and_shows_nothing(
    detector: Detector, store_bucket: BucketSettings, changed: dict[str, object], kind_of: str
) -> None:
    detector.overrides |= {
        "storage_url": f"s3://{store_bucket.bucket}/live",
        "storage_s3_endpoint": store_bucket.endpoint,
        "storage_s3_access_key_id": store_bucket.access_key_id,
        "storage_s3_secret_access_key": store_bucket.secret_access_key,
        "storage_s3_ca_file": store_bucket.ca_file,
        **changed,
    }
    result = detector.run(detector.announce(REAL_IMAGES[0].read_bytes()))
    assert kind(result) == kind_of
    assert failure_kind(run_of(detector, result)) == kind_of
    assert may_pass(run_of(detector, result))
    logs = "".join(entry.to_json() for entry in detector.instance.all_logs(result.run_id))
    assert store_bucket.bucket in logs
    for secret in (store_bucket.access_key_id, "hunter2", "AWS4-HMAC", "StringToSign"):
        assert secret not in logs


def test_a_partition_that_is_no_event_is_refused(detector: Detector) -> None:
    assert reason(detector.run("../../etc/passwd")).startswith("partition '../../etc/passwd'")
