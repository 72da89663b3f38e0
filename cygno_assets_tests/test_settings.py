"""Settings: what is wrong is named by its variable, and no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.settings import (
    CHECKOUT,
    Settings,
    SettingsError,
    environment_name,
    load_settings,
    settings_table,
)

FIELDS = list(Settings.model_fields)


def load(**environ: str) -> Settings:
    return load_settings(environ={f"CYGNO_{name}": value for name, value in environ.items()})


def complaint(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**environ)
    return str(caught.value)


def test_the_defaults_are_valid() -> None:
    settings = load()

    assert settings.home == CHECKOUT / ".cygno"
    assert settings.preprocess_spec == PreprocessSpec()
    assert settings.data_url == (settings.home / "data").as_uri()
    assert load_settings(settings.model_dump(), environ={}) == settings


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("DAQ_NATS_URL", "tls://anna:p@ss@daq.example:4443", "tls://anna:p@ss@daq.example:4443"),
        ("DAQ_SUBJECT", "daq/data", "daq/data"),
        ("DAQ_TIMEZONE", "Europe/Rome", "Europe/Rome"),
        (
            "DOWNLOAD_HOSTS",
            "Minio.Example:9000, http://[0::1],",
            ("minio.example:9000", "http://[::1]"),
        ),
        ("DOWNLOAD_HOSTS", "*.example.org,https://10.0.0.7", ("*.example.org", "10.0.0.7")),
        ("DOWNLOAD_INSECURE", "true", True),
        ("ENERGY_FOLD_EDGES_KEV", "2, 8.5", (2.0, 8.5)),
        ("DOWNLOAD_TIMEOUT_S", "0.5", 0.5),
        ("NAMES_WITHOUT_MD5", "1", True),
        ("INBOX_PORT", "4223", 4223),
        ("INBOX_MAX_AGE_DAYS", "0.5", 0.5),
        ("STORAGE_URL", "s3://bucket/prefix/", "s3://bucket/prefix"),
        ("STORAGE_URL", "file:///data/", "file:///data"),
        ("STORAGE_S3_ENDPOINT", "http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("TRAINING_ARCHIVE", "https://host/a.zip?X=1", "https://host/a.zip?X=1"),
        ("TRAINING_ARCHIVE", "file:///data/a.zip", "file:///data/a.zip"),
        ("TRAINING_ARCHIVE", "/data/my set.zip", "/data/my set.zip"),
        ("TRAINING_ARCHIVE", "~/set.zip", str(Path("~/set.zip").expanduser())),
        ("TRAINING_ARCHIVE_SHA256", 32 * "aF", 32 * "aF"),
        ("NOTIFY_WEBHOOK_URL", "https://h.org/x", SecretStr("https://h.org/x")),
        ("NOTIFY_WEBHOOK_URL", "http://127.0.0.1:80/x", SecretStr("http://127.0.0.1:80/x")),
        ("NOTIFY_WEBHOOK_URL", "http://localhost/x", SecretStr("http://localhost/x")),
        ("NOTIFY_WEBHOOK_URL", "http://[::1]:80/x", SecretStr("http://[::1]:80/x")),
        ("WINDOW_LOW", "-1.5", -1.5),
        ("OWNERS", "anna@example.org, team:cygno,", ("anna@example.org", "team:cygno")),
        ("HOME", "~/cygno", Path("~/cygno").expanduser()),
        ("HOME", "state", Path.cwd() / "state"),
    ],
)
def test_a_setting_is_read(variable: str, value: str, read: object) -> None:
    assert getattr(load(**{variable: value}), variable.lower()) == read


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("DAQ_NATS_URL", "http://127.0.0.1:4222", "not of the form nats://host:port"),
        ("DAQ_NATS_URL", "127.0.0.1:4222", "not of the form nats://host:port"),
        ("DAQ_NATS_URL", "nats://", "not of the form nats://host:port"),
        ("DAQ_NATS_URL", "nats://host:port", "not of the form nats://host:port"),
        ("DAQ_NATS_URL", "nats://[host", "not of the form nats://host:port"),
        ("DAQ_SUBJECT", "daq data", "no NATS subject"),
        ("DAQ_SUBJECT", "daq.*", "no NATS subject"),
        ("DAQ_SUBJECT", ">", "no NATS subject"),
        ("DAQ_SUBJECT", "daq..data", "no NATS subject"),
        ("DAQ_SUBJECT", ".daq", "no NATS subject"),
        ("DAQ_SUBJECT", "daq.", "no NATS subject"),
        ("DAQ_TIMEZONE", "Mars/Olympus", "no IANA time zone"),
        ("DAQ_TIMEZONE", "../etc/passwd", "no IANA time zone"),
        ("DAQ_TIMEZONE", "Europe", "no IANA time zone"),
        ("DOWNLOAD_HOSTS", "*", "'*' names no plain host"),
        ("DOWNLOAD_HOSTS", "*.org", "'*.org' is no pattern of the form *.example.org"),
        ("DOWNLOAD_HOSTS", "minio,minio/bucket", "'minio/bucket' has something after its host"),
        ("DOWNLOAD_HOSTS", "minio, 127.1", "'127.1' writes an address in an odd form"),
        ("DOWNLOAD_HOSTS", "minio:0", "'minio:0' names port 0"),
        ("DOWNLOAD_HOSTS", "ftp://minio", "is neither https nor http"),
        ("ENERGY_FOLD_EDGES_KEV", "15,5", "(15.0, 5.0): must be at least one, in keV"),
        ("ENERGY_FOLD_EDGES_KEV", ",", "(): must be at least one, in keV"),
        ("ENERGY_FOLD_EDGES_KEV", "5,high", "should be a valid number"),
        ("DOWNLOAD_CA_FILE", "nowhere.pem", "there is no file 'nowhere.pem'"),
        ("DOWNLOAD_CA_FILE", "/", "there is no file '/'"),
        ("DOWNLOAD_INSECURE", "maybe", "boolean"),
        ("DOWNLOAD_TIMEOUT_S", "0", "greater than 0"),
        ("DOWNLOAD_TIMEOUT_S", "601", "less than or equal to 600"),
        ("DOWNLOAD_TIMEOUT_S", "nan", "Input should be"),
        ("DOWNLOAD_TIMEOUT_S", "soon", "valid number"),
        ("DOWNLOAD_MAX_BYTES", "999", "greater than or equal to 1000"),
        ("DOWNLOAD_MAX_BYTES", "20 MB", "valid integer"),
        ("IMAGE_MAX_PIXELS", "3", "greater than or equal to 4"),
        ("NAMES_WITHOUT_MD5", "2", "boolean"),
        ("INBOX_URL", "inbox", "not of the form nats://host:port"),
        ("INBOX_PORT", "0", "greater than or equal to 1"),
        ("INBOX_PORT", "65536", "less than or equal to 65535"),
        ("INBOX_MAX_AGE_DAYS", "0", "greater than 0"),
        ("INBOX_MAX_AGE_DAYS", "inf", "finite"),
        ("INBOX_MAX_BYTES", "1000", "greater than or equal to 1048576"),
        ("MAX_UNFINISHED_LIVE_RUNS", "0", "greater than or equal to 1"),
        ("MAX_UNFINISHED_LIVE_RUNS", "10001", "less than or equal to 10000"),
        ("STORAGE_URL", "/data", "neither file:///absolute/path nor s3://bucket/prefix"),
        ("STORAGE_URL", "file://host/data", "neither file:///absolute/path"),
        ("STORAGE_URL", "file:data", "neither file:///absolute/path"),
        ("STORAGE_URL", "s3:///prefix", "neither file:///absolute/path"),
        ("STORAGE_URL", "gs://bucket", "neither file:///absolute/path"),
        ("STORAGE_URL", "s3://anna:hunter2@bucket/x", "holds a user name or password; set CYGNO_"),
        ("STORAGE_URL", "gs://anna:hunter2@bucket", "holds a user name or password"),
        ("STORAGE_URL", "gs://bucket?key=hunter2", "'gs://bucket?…' is neither"),
        ("STORAGE_URL", "s4:anna:hunter2@bucket", "the address is neither"),
        ("STORAGE_S3_ENDPOINT", "https://anna:hunter2@minio", "holds a user name or password"),
        ("STORAGE_S3_ENDPOINT", "https://anna:hunter2@mini\u2100", "the address is no http://"),
        ("STORAGE_S3_ENDPOINT", "https://anna:hunter2/@minio", "the address is no http://"),
        ("STORAGE_S3_ENDPOINT", "minio:9000?password=hunter2", "'minio:9000?…' is no http://"),
        (
            "STORAGE_S3_ENDPOINT",
            "https://minio?password=hunter2",
            "'https://minio?…' is no http://",
        ),
        ("STORAGE_S3_ENDPOINT", "minio:9000", "no http:// or https:// address"),
        ("STORAGE_S3_ENDPOINT", "https://", "no http:// or https:// address"),
        ("STORAGE_S3_CA_FILE", "nowhere.pem", "there is no file 'nowhere.pem'"),
        ("TRAINING_ARCHIVE", "set.zip", "nor an absolute path"),
        ("TRAINING_ARCHIVE", "ftp://host/set.zip", "neither https://…"),
        ("TRAINING_ARCHIVE", "file://host/set.zip", "neither https://…"),
        ("TRAINING_ARCHIVE", "https://anna:hunter2@mini\u2100/set.zip", "neither https://…"),
        ("TRAINING_ARCHIVE", "https:///set.zip", "neither https://…"),
        ("TRAINING_ARCHIVE_SHA256", "abc", "'abc' is not 64 hexadecimal digits"),
        ("TRAINING_ARCHIVE_CA_FILE", "nowhere.pem", "there is no file 'nowhere.pem'"),
        ("TRAINING_ARCHIVE_CHECK_S", "0", "greater than or equal to 1"),
        ("TRAINING_ARCHIVE_MAX_MEMBERS", "many", "valid integer"),
        ("CROP_HALF_WIDTH", "0", "greater than or equal to 1"),
        ("CROP_HALF_WIDTH", "64.5", "valid integer"),
        ("WINDOW_LOW", "110", "CYGNO_WINDOW_LOW (110) must be below CYGNO_WINDOW_HIGH (110)"),
        ("WINDOW_HIGH", "80", "CYGNO_WINDOW_LOW (80) must be below CYGNO_WINDOW_HIGH (80)"),
        ("WINDOW_LOW", "nan", "WINDOW_LOW"),
        ("WINDOW_HIGH", "inf", "finite"),
        ("WINDOW_LOW", "-inf", "finite"),
        ("WEBSERVER_PORT", "http", "valid integer"),
        ("LIVE_FRESH_S", "60", "greater than or equal to 120"),
        ("BACKLOG_OLD_S", "0", "greater than 0"),
        ("NOTIFY_EVERY_S", "-1", "greater than or equal to 0"),
        ("NOTIFY_WEBHOOK_URL", "hooks.slack.com/x", "is neither https nor http"),
        ("NOTIFY_WEBHOOK_URL", "http://hooks.slack.com/x", "must be https://… unless its host is"),
        ("NOTIFY_WEBHOOK_URL", "https://anna:pw@h.org/x", "holds a user name or password"),
        ("OWNERS", "anna", "'anna' is neither an e-mail address nor `team:name`"),
        ("OWNERS", "team:", "'team:' is neither"),
        ("OWNERS", "team:cygno,team:a@b", "'team:a@b' is neither"),
        ("DAQ_NATS_CA_FILE", "nowhere.pem", "there is no file 'nowhere.pem'"),
        ("DAQ_NATS_CREDENTIALS_FILE", "nowhere.creds", "there is no file 'nowhere.creds'"),
        (
            "DAQ_NATS_CREDENTIALS_FILE",
            str(CHECKOUT / "LICENSE"),
            "does not hold a NATS user JWT and its seed",
        ),
        ("DAQ_NATS_USER", "anna", "CYGNO_DAQ_NATS_PASSWORD go together"),
        ("DAQ_NATS_PASSWORD", "hunter2", "CYGNO_DAQ_NATS_USER and"),
        ("STORAGE_S3_ACCESS_KEY_ID", "AKIA", "CYGNO_STORAGE_S3_SECRET_ACCESS_KEY go together"),
        ("STORAGE_S3_SECRET_ACCESS_KEY", "hunter2", "CYGNO_STORAGE_S3_ACCESS_KEY_ID and"),
    ],
)
def test_a_wrong_setting_is_named_with_its_reason(variable: str, value: str, reason: str) -> None:
    said = complaint(**{variable: value})

    assert f"CYGNO_{variable}" in said
    assert reason in said
    assert "hunter2" not in said
    assert len(said.splitlines()) == 1


USER = {"DAQ_NATS_USER": "anna", "DAQ_NATS_PASSWORD": "hunter2"}
TOKEN = {"DAQ_NATS_TOKEN": "hunter2"}
IN_URL = {"DAQ_NATS_URL": "nats://hunter2@daq:4222"}


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (USER, TOKEN, "CYGNO_DAQ_NATS_USER and CYGNO_DAQ_NATS_TOKEN"),
        (IN_URL, USER, "user or token in CYGNO_DAQ_NATS_URL and CYGNO_DAQ_NATS_USER"),
        (IN_URL, TOKEN, "user or token in CYGNO_DAQ_NATS_URL and CYGNO_DAQ_NATS_TOKEN"),
    ],
)
def test_only_one_way_of_logging_in_at_the_daq(
    first: dict[str, str], second: dict[str, str], named: str
) -> None:
    said = complaint(**first, **second)

    assert said == f"{named} exclude each other: set one"


def test_a_credentials_file_excludes_the_other_ways(tmp_path: Path) -> None:
    file = tmp_path / "daq.creds"
    file.write_text("-----BEGIN NATS USER JWT-----\n…\n-----BEGIN USER NKEY SEED-----\n…\n")

    assert load(DAQ_NATS_CREDENTIALS_FILE=str(file)).daq_nats_credentials_file == file
    for other, name in ((USER, "USER"), (TOKEN, "TOKEN"), (IN_URL, "URL")):
        said = complaint(DAQ_NATS_CREDENTIALS_FILE=str(file), **other)
        assert f"CYGNO_DAQ_NATS_{name} and CYGNO_DAQ_NATS_CREDENTIALS_FILE exclude" in said


def test_an_authority_is_of_no_use_without_tls() -> None:
    said = complaint(DAQ_NATS_CA_FILE=__file__, DAQ_NATS_URL="ws://daq:80")

    assert "CYGNO_DAQ_NATS_CA_FILE is of no use with ws:// in CYGNO_DAQ_NATS_URL" in said


def test_all_that_is_wrong_is_listed_at_once() -> None:
    said = complaint(INBOX_PORT="0", DAQ_SUBJECT="a b", WINDOW_LO="1", CROP_HALF_WIDTH="x")

    assert sorted(line.partition(":")[0] for line in said.splitlines()) == [
        "CYGNO_CROP_HALF_WIDTH",
        "CYGNO_DAQ_SUBJECT",
        "CYGNO_INBOX_PORT",
        "CYGNO_WINDOW_LO",
    ]


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("WINDOW_LO", "CYGNO_WINDOW_LO: no such setting; did you mean CYGNO_WINDOW_LOW?"),
        ("NATS_URL", "CYGNO_NATS_URL: no such setting; did you mean CYGNO_DAQ_NATS_URL?"),
        ("XYZZY", "CYGNO_XYZZY: no such setting"),
        ("window_low", "CYGNO_window_low: no such setting"),
    ],
)
def test_an_unknown_variable_is_refused(variable: str, reason: str) -> None:
    said = complaint(**{variable: "1"})

    assert said.startswith(reason)


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(SettingsError, match="CYGNO_CROP: "):
        load_settings({"crop": 1}, environ={})


def test_variables_of_others_are_none_of_ours() -> None:
    assert load_settings(environ={"PATH": "/bin", "DAQ_SUBJECT": "x y"}) == load()


@pytest.mark.parametrize("field", FIELDS)
def test_an_empty_variable_counts_as_unset(field: str) -> None:
    assert load_settings(environ={environment_name(field): ""}) == load()


def test_the_environment_is_the_processs_unless_another_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CYGNO_WINDOW_LOW", "90")

    assert load_settings().window_low == 90
    assert load_settings(environ={}).window_low == 80


def test_overrides_win_unless_they_are_none() -> None:
    environ = {"CYGNO_WINDOW_LOW": "90", "CYGNO_WINDOW_HIGH": "120"}

    settings = load_settings({"window_low": 95, "window_high": None}, environ=environ)

    assert (settings.window_low, settings.window_high) == (95, 120)


def test_a_wrong_variable_that_is_overridden_does_not_matter() -> None:
    assert load_settings({"inbox_port": 1}, environ={"CYGNO_INBOX_PORT": "x"}).inbox_port == 1


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().window_low = 1.0


SECRETS = {
    "DAQ_NATS_URL": "nats://anna:hunter2@daq:4222",
    "INBOX_URL": "nats://hunter2@inbox:4222",
    "STORAGE_S3_ACCESS_KEY_ID": "AKIA",
    "STORAGE_S3_SECRET_ACCESS_KEY": "hunter2",
    "NOTIFY_WEBHOOK_URL": "https://hooks.example.org/services/hunter2",
    "TRAINING_ARCHIVE": "https://host/set.zip?X-Amz-Signature=hunter2",
}


def test_no_secret_is_shown() -> None:
    settings = load(**SECRETS)

    assert "hunter2" not in repr(settings) + str(settings) + f"{settings}"
    for login in (USER, TOKEN):
        assert "hunter2" not in repr(load(**login))
    assert settings.storage_s3_secret_access_key is not None
    assert settings.storage_s3_secret_access_key.get_secret_value() == "hunter2"


@pytest.mark.parametrize(
    "wrong",
    [
        {"DAQ_NATS_URL": "http://anna:hunter2@daq:4222"},
        {"DAQ_NATS_URL": "nats://anna:hunter2@daq:port"},
        {"INBOX_URL": "hunter2@inbox"},
        {"TRAINING_ARCHIVE": "ftp://anna:hunter2@host/set.zip"},
        {"NOTIFY_WEBHOOK_URL": "http://hooks.example.org/services/hunter2"},
        {"NOTIFY_WEBHOOK_URL": "https://anna:hunter2@hooks.example.org"},
        {"NOTIFY_WEBHOOK_URL": "https://hooks.example.org:port/hunter2"},
        {"DOWNLOAD_HOSTS": "https://anna:hunter2@minio"},
        {"STORAGE_S3_ACCESS_KEY_ID": ""},
        {"INBOX_PORT": "x"},
        {"WINDOW_LOW": "200"},
        {"DAQ_NATS_PASSWORD": "hunter2"},
        {"DAQ_NATS_TOKEN": "hunter2"},
    ],
    ids=str,
)
def test_no_secret_is_in_an_error(wrong: dict[str, str]) -> None:
    assert "hunter2" not in complaint(**(SECRETS | wrong))


def test_the_table_lists_every_setting() -> None:
    rows = settings_table().splitlines()

    assert rows[:2] == ["| variable | default | meaning |", "|---|---|---|"]
    assert len(rows) == len(FIELDS) + 2
    for field, row in zip(FIELDS, rows[2:], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 3, row
        assert cells[0] == f"`{environment_name(field)}`"
        assert cells[2], f"{field} has no description"
    assert str(CHECKOUT) not in settings_table()


def test_the_inboxs_address_is_as_set_else_as_left_in_the_home(tmp_path: Path) -> None:
    settings = load(HOME=str(tmp_path))
    with pytest.raises(SettingsError, match=r"no inbox runs for .*CYGNO_INBOX_URL") as caught:
        settings.resolve_inbox_url()
    assert str(tmp_path) in str(caught.value)

    settings.inbox_url_file.parent.mkdir()
    settings.inbox_url_file.write_text("nats://127.0.0.1:4567\n")
    assert settings.resolve_inbox_url() == "nats://127.0.0.1:4567"

    settings = load(HOME=str(tmp_path), INBOX_URL="nats://inbox:4222")
    assert settings.resolve_inbox_url() == "nats://inbox:4222"
