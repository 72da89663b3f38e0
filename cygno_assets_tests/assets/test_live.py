"""The assets of live events, run in this process against a real inbox and a real S3 server."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dagster import AssetKey, DagsterInstance, Definitions, ExecuteInProcessResult
from PIL import Image

from cygno_assets.assets.live import FINAL_TAG, LIVE_TAG
from cygno_assets.build import build_defs
from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.physics.histogram import counts_from_text
from cygno_assets.physics.images import decode_image, preprocess
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.settings import Settings, load_settings
from cygno_assets_tests.daq.test_download import serving
from cygno_assets_tests.wire import REAL_IMAGES, fill_inbox, message, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

RAW, TENSOR = AssetKey("raw_image"), AssetKey("preprocessed_tensor")
TAKEN = "2024-11-27 14:27:36.570564"


@dataclass
class Detector:
    """Announces images as the DAQ does, and runs what the sensor would run."""

    bucket: BucketSettings
    inbox_url: str
    home: Path
    instance: DagsterInstance
    overrides: dict[str, object] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        given = {"inbox_url": self.inbox_url, "download_ca_file": self.bucket.ca_file}
        return load_settings(given | self.overrides)

    def announce(self, data: bytes, filename: str | None = None) -> str:
        """Puts bytes under a name into the bucket and the inbox; returns the event id."""
        filename = filename or name_of(data)
        bucket = Bucket(self.bucket)
        bucket.put(filename, data)
        url = bucket.presigned_url(filename, timedelta(hours=1))
        fill_inbox(self.inbox_url, [message(filename, url, TAKEN)])
        return filename.rpartition(".")[0]

    def run(self, event_id: str, *assets: AssetKey) -> ExecuteInProcessResult:
        definitions = build_defs(self.settings)
        Definitions.validate_loadable(definitions)
        self.instance.add_dynamic_partitions("daq_event", [event_id])
        return definitions.resolve_job_def("live_event").execute_in_process(
            partition_key=event_id,
            instance=self.instance,
            asset_selection=list(assets) or None,
            tags={} if assets else {LIVE_TAG: "true"},
            raise_on_error=False,
        )

    def raw_file(self, event_id: str) -> Path:
        return self.home / "data" / "raw_image" / f"{event_id}.jpg"

    def tensor_file(self, event_id: str) -> Path:
        return self.home / "data" / "preprocessed_tensor" / f"{event_id}.npy"

    def metadata(self, key: AssetKey, event_id: str) -> Mapping[str, Any]:
        record = self.instance.get_latest_data_version_record(key, partition_key=event_id)
        assert record is not None
        assert record.asset_materialization is not None
        return {name: item.value for name, item in record.asset_materialization.metadata.items()}

    def data_version(self, key: AssetKey, event_id: str) -> str:
        record = self.instance.get_latest_data_version_record(key, partition_key=event_id)
        assert record is not None
        assert record.asset_materialization is not None
        return str((record.asset_materialization.tags or {})["dagster/data_version"])


@pytest.fixture
def detector(daq_bucket: BucketSettings, inbox_url: str, tmp_path: Path) -> Iterator[Detector]:
    with DagsterInstance.ephemeral() as instance:
        yield Detector(daq_bucket, inbox_url, tmp_path / "home", instance)


def reason(result: ExecuteInProcessResult) -> str:
    """Why a run failed, in the words a user reads."""
    assert not result.success
    failures = [event for event in result.all_events if event.is_step_failure]
    data = failures[0].step_failure_data
    if data.user_failure_data is not None:
        return str(data.user_failure_data.description)
    assert data.error is not None
    return (data.error.cause or data.error).message


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


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
    assert reason(detector.run(gone)) == (
        f"{gone}: neither its image is stored nor its announcement still in the inbox "
        "(kept 7 days); it can only be made after the DAQ has announced it again"
    )


def test_an_inbox_that_is_away_is_tried_again(detector: Detector) -> None:
    detector.inbox_url = "nats://127.0.0.1:1"
    result = detector.run("cygno-" + 32 * "0")
    assert "no inbox answers" in reason(result)
    assert len([event for event in result.all_events if event.is_step_up_for_retry]) == 2


def truncated_jpeg() -> bytes:
    return REAL_IMAGES[0].read_bytes()[:20_000]


def claims_to_be_huge() -> bytes:
    """A PNG whose header says 60,000 × 60,000; its checksums are right."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"<html>gone</html>", "not a JPEG or PNG image: 17 bytes", id="html"),
        pytest.param(truncated_jpeg(), "image cannot be decoded (20000 bytes)", id="truncated"),
        pytest.param(
            png(Image.new("RGB", (576, 576))), "image is mode RGB; the camera's are", id="colour"
        ),
        pytest.param(png(Image.new("I;16", (576, 576))), "image is mode I;16", id="16-bit"),
        pytest.param(claims_to_be_huge(), "image too large: ", id="huge"),
        pytest.param(
            png(Image.new("L", (127, 576))),
            "image of 127 × 576 pixels is smaller than the central square of 128",
            id="small",
        ),
    ],
)
def test_an_answer_that_is_no_image_of_ours_is_refused_by_name_and_the_next_goes_through(
    detector: Detector, data: bytes, why: str
) -> None:
    bad = detector.announce(data)
    result = detector.run(bad)
    assert reason(result).startswith(f"{bad}: {why}")
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    assert not detector.tensor_file(bad).exists()
    # Its md5 is right: these are the DAQ's bytes, and its URL dies within the hour.
    assert detector.raw_file(bad).read_bytes() == data
    assert detector.run(detector.announce(REAL_IMAGES[0].read_bytes())).success


@pytest.mark.parametrize(
    ("overrides", "data", "filename", "why"),
    [
        pytest.param({}, b"other bytes", name_of(b"some"), "wrong md5", id="wrong md5"),
        pytest.param(
            {"download_max_bytes": 1000},
            bytes(2000),
            None,
            "larger than the 1000 bytes allowed",
            id="too large",
        ),
        pytest.param(
            {"names_without_md5": True},
            b"<html>gone</html>",
            "run7-0001.jpg",
            "not a JPEG or PNG image",
            id="unvouched",
        ),
    ],
)
def test_what_is_not_what_was_announced_is_refused_and_not_kept(
    detector: Detector,
    overrides: dict[str, object],
    data: bytes,
    filename: str | None,
    why: str,
) -> None:
    detector.overrides |= overrides
    bad = detector.announce(data, filename)
    assert why in reason(detector.run(bad))
    assert not detector.raw_file(bad).exists()
    detector.overrides.pop("download_max_bytes", None)
    assert detector.run(detector.announce(REAL_IMAGES[0].read_bytes())).success


def test_an_event_announced_again_while_it_is_made_is_made_by_the_new_url(
    detector: Detector,
) -> None:
    """The sensor passes over it, for a run is under way: that run must look."""
    data = REAL_IMAGES[0].read_bytes()
    with serving() as origin:

        def announce_again_and_refuse(request: BaseHTTPRequestHandler) -> None:
            detector.announce(data)
            request.send_error(403)

        first = origin.announced(announce_again_and_refuse, data=data)
        fill_inbox(detector.inbox_url, [message(first.filename, first.url, TAKEN)])
        assert detector.run(first.event_id).success
        assert len(origin.requests) == 1
    assert detector.raw_file(first.event_id).read_bytes() == data
    assert detector.metadata(RAW, first.event_id)["stream_sequence"] == 2


def test_a_failure_for_good_says_so_on_the_run(detector: Detector) -> None:
    event_id = detector.announce(b"no image")
    result = detector.run(event_id)
    assert not result.success
    run = detector.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags[FINAL_TAG] == "not_an_image"
    [failure] = [e.step_failure_data for e in result.all_events if e.is_step_failure]
    assert failure.user_failure_data.metadata["kind"].value == "not_an_image"


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


def test_a_partition_that_is_no_event_is_refused(detector: Detector) -> None:
    assert reason(detector.run("../../etc/passwd")).startswith("partition '../../etc/passwd'")
