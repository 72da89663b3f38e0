from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import obstore.exceptions
import pytest
import requests

from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings

HOUR = timedelta(hours=1)


def get(url: str, settings: BucketSettings) -> requests.Response:
    return requests.get(url, verify=str(settings.ca_file), timeout=10)


def test_a_presigned_url_fetches_what_was_put(daq_bucket: BucketSettings) -> None:
    bucket = Bucket(daq_bucket)
    content = bytes(range(256)) * 200
    bucket.put("cygno-put.jpg", content)

    response = get(bucket.presigned_url("cygno-put.jpg", HOUR), daq_bucket)

    assert response.status_code == 200
    assert response.content == content
    assert response.headers["Content-Type"] == "image/jpeg"


def test_a_presigned_url_has_the_schools_form(daq_bucket: BucketSettings) -> None:
    url = urlsplit(Bucket(daq_bucket).presigned_url("cygno-form.jpg", HOUR))
    query = parse_qs(url.query)

    assert f"{url.scheme}://{url.netloc}" == daq_bucket.endpoint
    assert url.path == f"/{daq_bucket.bucket}/cygno-form.jpg"
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["3600"]


def test_without_a_right_signature_nothing_is_fetched(daq_bucket: BucketSettings) -> None:
    bucket = Bucket(daq_bucket)
    bucket.put("cygno-signed.jpg", b"image")
    url = bucket.presigned_url("cygno-signed.jpg", HOUR)
    signature = parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]
    wrong = signature[:-1] + ("0" if signature[-1] != "0" else "1")

    assert get(url, daq_bucket).status_code == 200
    assert get(url.replace(signature, wrong), daq_bucket).status_code == 403
    assert get(url.partition("?")[0], daq_bucket).status_code == 403


def test_a_wrong_secret_stores_nothing(daq_bucket: BucketSettings) -> None:
    stranger = replace(daq_bucket, secret_access_key="wrong")

    with pytest.raises(obstore.exceptions.BaseError):
        Bucket(stranger).put("cygno-stranger.jpg", b"image")

    url = Bucket(daq_bucket).presigned_url("cygno-stranger.jpg", HOUR)
    assert get(url, daq_bucket).status_code == 404


def test_the_secret_is_not_shown(daq_bucket: BucketSettings) -> None:
    assert daq_bucket.secret_access_key not in repr(daq_bucket)
    assert daq_bucket.endpoint in repr(daq_bucket)


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(days=8)])
def test_a_lifetime_that_cannot_be_signed_is_named(
    daq_bucket: BucketSettings, lifetime: timedelta
) -> None:
    with pytest.raises(ValueError, match=f"lifetime = {lifetime}"):
        Bucket(daq_bucket).presigned_url("cygno-x.jpg", lifetime)


def test_a_missing_ca_file_is_named(tmp_path: Path) -> None:
    settings = BucketSettings("https://127.0.0.1:1", "b", "key", "secret", "r", tmp_path / "ca.pem")

    with pytest.raises(ValueError, match=r"ca_file = '.*ca\.pem': no such file"):
        Bucket(settings)
