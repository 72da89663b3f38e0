"""Every CYGNO_* setting: its type, default, meaning and check.

Here belongs what a person may set from outside, and nothing else: no behaviour, no Dagster.
The table in docs/settings.md is made from this module (`cygno-assets settings --markdown`).
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from cygno_assets.hosts import AllowedHost, Endpoint, is_loopback, without_queries
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.physics.splits import SplitSpec, check_edges

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "CYGNO_"
CHECKOUT = Path(__file__).resolve().parent.parent
"""The folder that holds dagster.yaml and workspace.yaml."""


class SettingsError(ValueError):
    """One or more settings are wrong; the message names each variable and says why."""


class Settings(BaseModel):
    """The settings, read once and then unchanged.

    Build it with `load_settings`, which turns what pydantic finds wrong into a `SettingsError`
    that names the environment variables.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    home: Path = Field(
        CHECKOUT / ".cygno",
        description="Folder of all state: Dagster's databases, the inbox, the data, logs. "
        "Deleting it is a clean start.",
    )

    dagster_config: Path = Field(
        CHECKOUT,
        description="Folder of the dagster.yaml to use: the checkout, or `deploy` in it, with "
        "which runs are executed by workers on any number of machines (docs/scaling.md).",
    )
    postgres_url: SecretStr | None = Field(
        None,
        description="With `deploy/dagster.yaml`: the database of Dagster's state, "
        "`postgresql://user:password@host/database`.",
    )
    broker_url: SecretStr | None = Field(
        None,
        description="With `deploy/dagster.yaml`: what brings runs to the workers, "
        "`amqp://user:password@host:5672//`.",
    )

    daq_nats_url: str = Field(
        "nats://127.0.0.1:4222",
        repr=False,  # may hold a password
        description="NATS server of the DAQ; `tls://host:port` insists on TLS. It may hold user "
        "and password, or a token: `nats://user:password@host:port`, `nats://token@host:port`.",
    )
    daq_nats_user: str | None = Field(None, description="User at the DAQ's NATS server.")
    daq_nats_password: SecretStr | None = Field(None, description="That user's password.")
    daq_nats_token: SecretStr | None = Field(
        None, description="Token for the DAQ's NATS server, instead of user and password."
    )
    daq_nats_credentials_file: Path | None = Field(
        None,
        description="Credentials file for the DAQ's NATS server (`….creds`, a JWT and its seed), "
        "instead of user and password.",
    )
    daq_nats_ca_file: Path | None = Field(
        None,
        description="PEM file of the authority that signed the certificate of the DAQ's NATS "
        "server. With it, a server without TLS is refused.",
    )
    daq_subject: str = Field("daq/data", description="Subject the DAQ announces images on.")
    daq_timezone: str = Field(
        "UTC",
        description="IANA time zone of the DAQ's clock, which announces local time without a "
        "zone (the school's: Europe/Rome).",
    )

    download_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts to fetch images from, separated by commas, as they stand in the "
        "announced URLs: `host`, `host:port`, an address, or `*.example.org` for all names below "
        "it that lead to public addresses. Only by https, unless written `http://host:port`. "
        "From any other host nothing is fetched.",
    )
    download_ca_file: Path | None = Field(
        None,
        description="PEM file of the authority that signed the object store's certificate; "
        "without it, those of Python's certifi are trusted.",
    )
    download_insecure: bool = Field(
        False,
        description="`true` skips certificate checks of downloads, for a DAQ whose authority "
        "you cannot get.",
    )
    download_timeout_s: float = Field(
        20.0, gt=0, le=600, description="Seconds without a byte after which a download fails."
    )
    download_max_bytes: int = Field(
        20_000_000, ge=1_000, description="Largest image file accepted, in bytes."
    )
    image_max_pixels: int = Field(
        25_000_000,
        ge=4,
        description="Largest image decoded, in pixels (width × height); the camera's full "
        "sensor has 5.3 million.",
    )
    names_without_md5: bool = Field(
        False,
        description="`true` accepts file names that do not carry the md5 of their content "
        "(`<name>-<md5>.jpg`); their bytes then cannot be checked.",
    )

    inbox_url: str | None = Field(
        None,
        repr=False,  # may hold a password
        description="NATS server of the inbox (JetStream). Without it, the one that "
        "`cygno-assets up`, `demo` or `inbox` started for this home.",
    )
    inbox_port: int | None = Field(
        None, ge=1, le=65535, description="Port of the inbox on 127.0.0.1; a free one if unset."
    )
    inbox_max_age_days: float = Field(
        7.0, gt=0, description="Days an announcement is kept in the inbox."
    )
    inbox_max_bytes: int = Field(
        4 * 1024**3, ge=1024**2, description="Bytes of announcements kept; the oldest go first."
    )

    max_unfinished_live_runs: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Live runs queued or running at once; further events wait in the inbox.",
    )

    reconciliation_cron: str = Field(
        "*/15 * * * *",
        description="When it is checked that no event was lost, as a cron line in UTC.",
    )

    history_days: float = Field(
        30.0,
        gt=0,
        description="Days that Dagster keeps the runs of an event after it was made; "
        "`event_catalog` keeps its row for ever.",
    )
    history_events: int = Field(
        100_000, ge=1, description="Most events whose runs Dagster keeps; the oldest go first."
    )
    raw_image_days: float | None = Field(
        None,
        gt=0,
        description="Days that raw images are kept after their event was made, and longer while "
        "Dagster has its runs; for ever if unset. Tensors are never deleted.",
    )
    prune_cron: str = Field(
        "30 3 * * *",
        description="When Dagster's history is pruned to that, as a cron line in UTC.",
    )

    catalog_every_s: int = Field(
        300,
        ge=5,
        le=86_400,
        description="Seconds between looks for events that are not in the event catalogue yet.",
    )

    live_fresh_s: int = Field(
        3600,
        ge=120,
        description="Seconds without a new event after which the live assets are overdue in the "
        "web UI; it warns after half of them.",
    )
    backlog_old_s: float = Field(
        600.0,
        gt=0,
        description="Seconds that the oldest event may wait before `cygno-assets status` calls it "
        "wrong; presigned URLs live for 3600.",
    )
    notify_webhook_url: SecretStr | None = Field(
        None,
        description="Where failures are told, as Slack's and Mattermost's incoming webhooks take "
        "them: `https://…`, or `http://` on this machine. Without it, in the log of the sensor "
        "`notifications` alone.",
    )
    notify_every_s: float = Field(
        60.0,
        ge=0,
        description="Seconds between two such messages; what happens meanwhile is "
        "summed up in the next.",
    )

    live_checks_cron: str = Field(
        "*/5 * * * *",
        description="When the newest events are judged by the checks of live data, as a cron line "
        "in UTC.",
    )
    live_window_s: float = Field(
        3600.0,
        gt=0,
        le=86_400,
        description="Seconds before the newest event whose events are judged together.",
    )
    expected_rate_hz: float | None = Field(
        None,
        gt=0,
        description="Events/s that the DAQ should deliver; without it, as many as in the recent "
        "past.",
    )

    storage_url: str | None = Field(
        None,
        description="Where images and tensors are kept: `file:///…` or `s3://bucket/prefix`. "
        "Without it, `data` in the home.",
    )
    storage_s3_endpoint: str | None = Field(
        None, description="Address of an S3 server that is not Amazon's, `https://host:port`."
    )
    storage_s3_region: str = Field("us-east-1", description="Region of the S3 bucket.")
    storage_s3_access_key_id: str | None = Field(None, description="S3 access key.")
    storage_s3_secret_access_key: SecretStr | None = Field(None, description="S3 secret key.")
    storage_s3_ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed the S3 server's certificate."
    )

    crop_half_width: int = Field(
        64, ge=1, le=4096, description="Half the side of the central crop, in pixels."
    )
    window_low: float = Field(80.0, description="Window: this many ADU and less become 0.")
    window_high: float = Field(110.0, description="Window: this many ADU and more become 1.")

    training_archive: str = Field(
        "https://pandora.infn.it/public/269d22/dl/training_set.zip",
        repr=False,  # may be presigned
        description="The training set: a zip, by URL (`https://…`, `file:///…`), by absolute path, "
        "or `s3://bucket/key` on the S3 server of the storage.",
    )
    training_archive_sha256: str | None = Field(
        None, description="sha256 of that zip, if you know it; any other is refused."
    )
    training_archive_ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed its server's certificate."
    )
    training_archive_check_s: int = Field(
        3600, ge=1, description="Seconds between looks for a new archive."
    )
    training_archive_max_bytes: int = Field(
        10_000_000_000, ge=1, description="Largest zip accepted, in bytes."
    )
    training_archive_max_members: int = Field(
        200_000, ge=1, description="Most files accepted in it."
    )
    training_archive_max_unpacked_bytes: int = Field(
        100_000_000_000, ge=1, description="Most bytes its files may unpack to, all together."
    )
    split_seed: int = Field(
        0,
        description="Seed by which the training set is divided into train, validation and test.",
    )
    split_validation_share: float = Field(
        0.15, ge=0, lt=1, description="Share of the training set's images to validate by."
    )
    split_test_share: float = Field(
        0.15, ge=0, lt=1, description="Share of the training set's images to test on."
    )
    energy_fold_edges_kev: tuple[float, ...] = Field(
        SplitSpec().energy_fold_edges_kev,
        description="Where the ranges of energies that are left out together end, in keV, "
        "separated by commas.",
    )
    training_backfill_cron: str = Field(
        "0 4 * * 1",
        description="When all training partitions are backfilled, as a cron line in UTC; by "
        "default on Mondays at 04:00. A new archive is not waited for.",
    )

    webserver_host: str = Field(
        "127.0.0.1", description="Address the web UI listens on; only this machine by default."
    )
    webserver_port: int | None = Field(
        None, ge=1, le=65535, description="Port of the web UI; 3000, or a free one if taken."
    )

    owners: tuple[str, ...] = Field(
        ("team:cygno",),
        description="Owners shown on every asset, separated by commas: e-mail addresses or "
        "`team:name`.",
    )

    @field_validator("owners", "download_hosts", "energy_fold_edges_kev", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("download_hosts")
    @classmethod
    def _in_one_form(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(AllowedHost.parse(entry)) for entry in value)

    @field_validator("energy_fold_edges_kev")
    @classmethod
    def _check_edges(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        check_edges(value)
        return value

    @field_validator("owners")
    @classmethod
    def _check_owners(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for owner in value:
            if not owner.removeprefix("team:") or ("@" not in owner) == (
                not owner.startswith("team:")
            ):
                raise ValueError(f"{owner!r} is neither an e-mail address nor `team:name`")
        return value

    @field_validator("dagster_config")
    @classmethod
    def _holds_dagster_yaml(cls, value: Path) -> Path:
        folder = value.expanduser().resolve()
        if not (folder / "dagster.yaml").is_file():
            raise ValueError(f"there is no dagster.yaml in {str(folder)!r}")
        return folder

    @field_validator("home")
    @classmethod
    def _absolute_home(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("daq_timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no IANA time zone such as UTC or Europe/Rome") from None
        return value

    @field_validator("daq_nats_url", "inbox_url")
    @classmethod
    def _nats_url(cls, value: str | None) -> str | None:
        return value if value is None else check_nats_url(value)

    @field_validator("daq_subject")
    @classmethod
    def _publishable_subject(cls, value: str) -> str:
        if not all(value.split(".")) or any(c.isspace() or c in "*>" for c in value):
            raise ValueError(f"{value!r} is no NATS subject: no spaces, `*`, `>` or empty parts")
        return value

    @field_validator("notify_webhook_url")
    @classmethod
    def _nobody_listens_in(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:  # the value stays out of the text, for whoever knows it may write there
            endpoint = Endpoint.of(value.get_secret_value())
        except ValueError as error:
            raise ValueError(str(error)) from None
        if endpoint.scheme != "https" and not is_loopback(endpoint.host):
            raise ValueError("must be https://… unless its host is this machine")
        return value

    @field_validator("storage_url")
    @classmethod
    def _known_storage(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = _without_login(value)
        if parts.scheme == "s3" and parts.netloc:
            return value.rstrip("/")
        if parts.scheme == "file" and not parts.netloc and parts.path[:1] == "/" != parts.path:
            return value.rstrip("/")
        raise ValueError(f"{_shown(value)} is neither file:///absolute/path nor s3://bucket/prefix")

    @field_validator("storage_s3_endpoint")
    @classmethod
    def _http_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = _without_login(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise ValueError(f"{_shown(value)} is no http:// or https:// address")
        return value

    @field_validator("training_archive")
    @classmethod
    def _url_or_absolute_path(cls, value: str) -> str:
        parts = _split(value)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return value
        if parts.scheme == "file" and not parts.netloc and parts.path[:1] == "/":
            return value
        if parts.scheme == "s3" and parts.netloc and parts.path.strip("/"):
            return value
        path = Path(value).expanduser()
        if parts.scheme == "" and path.is_absolute():
            return str(path)
        # The value stays out of the text, for it may be presigned.
        raise ValueError(
            "neither https://…, http://…, file:///absolute/path, s3://bucket/key nor an absolute "
            "path"
        )

    @field_validator("training_archive_sha256")
    @classmethod
    def _hexadecimal(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise ValueError(f"{value!r} is not 64 hexadecimal digits")
        return value

    @field_validator(
        "daq_nats_credentials_file",
        "daq_nats_ca_file",
        "download_ca_file",
        "storage_s3_ca_file",
        "training_archive_ca_file",
    )
    @classmethod
    def _existing_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {str(value)!r}")
        return value

    @field_validator("daq_nats_credentials_file")
    @classmethod
    def _jwt_and_seed(cls, value: Path | None) -> Path | None:
        # nats-py would look for the end of a file that holds no JWT for ever.
        if value is not None:
            text = value.read_text(errors="replace")
            if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
                raise ValueError(f"{str(value)!r} does not hold a NATS user JWT and its seed")
        return value

    @model_validator(mode="after")
    def _one_login_at_the_daq(self) -> Settings:
        if (self.daq_nats_user is None) != (self.daq_nats_password is None):
            raise ValueError(
                f"{PREFIX}DAQ_NATS_USER and {PREFIX}DAQ_NATS_PASSWORD go together: "
                "set both or neither"
            )
        url = urlsplit(self.daq_nats_url)
        ways = {
            f"user or token in {PREFIX}DAQ_NATS_URL": url.username is not None,
            f"{PREFIX}DAQ_NATS_USER": self.daq_nats_user is not None,
            f"{PREFIX}DAQ_NATS_TOKEN": self.daq_nats_token is not None,
            f"{PREFIX}DAQ_NATS_CREDENTIALS_FILE": self.daq_nats_credentials_file is not None,
        }
        taken = [way for way, is_set in ways.items() if is_set]
        if len(taken) > 1:
            raise ValueError(f"{' and '.join(taken)} exclude each other: set one")
        if self.daq_nats_ca_file is not None and url.scheme == "ws":
            raise ValueError(
                f"{PREFIX}DAQ_NATS_CA_FILE is of no use with ws:// in {PREFIX}DAQ_NATS_URL: "
                "set wss://"
            )
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        if not self.window_low < self.window_high:
            raise ValueError(
                f"{PREFIX}WINDOW_LOW ({self.window_low:g}) must be below "
                f"{PREFIX}WINDOW_HIGH ({self.window_high:g})"
            )
        if not self.split_validation_share + self.split_test_share < 1:
            raise ValueError(
                f"{PREFIX}SPLIT_VALIDATION_SHARE ({self.split_validation_share:g}) and "
                f"{PREFIX}SPLIT_TEST_SHARE ({self.split_test_share:g}) must be below 1 together"
            )
        if (self.storage_s3_access_key_id is None) != (self.storage_s3_secret_access_key is None):
            raise ValueError(
                f"{PREFIX}STORAGE_S3_ACCESS_KEY_ID and {PREFIX}STORAGE_S3_SECRET_ACCESS_KEY "
                "go together: set both or neither"
            )
        return self

    @property
    def preprocess_spec(self) -> PreprocessSpec:
        """The one specification that live and training tensors are made by."""
        return PreprocessSpec(
            half_width=self.crop_half_width,
            window_low=self.window_low,
            window_high=self.window_high,
        )

    @property
    def split_spec(self) -> SplitSpec:
        """How the training set is divided."""
        return SplitSpec(
            seed=self.split_seed,
            validation_share=self.split_validation_share,
            test_share=self.split_test_share,
            energy_fold_edges_kev=self.energy_fold_edges_kev,
        )

    @property
    def data_url(self) -> str:
        """Where images and tensors are kept, whether set or not; without a trailing slash."""
        return self.storage_url or (self.home / "data").as_uri()

    @property
    def dagster_state(self) -> Path:
        """Folder of Dagster's databases and logs."""
        return self.home / "dagster"

    @property
    def inbox_url_file(self) -> Path:
        """The file in which whoever starts the inbox leaves its address for everybody else."""
        return self.home / "inbox" / "url"

    @property
    def web_ui_url_file(self) -> Path:
        """The file in which a running system leaves the address of its web UI."""
        return self.home / "web-ui-url"

    def resolve_inbox_url(self) -> str:
        """The inbox's address: as set, else as left in the home by the process that runs it.

        Raises:
            SettingsError: there is neither, so nobody started an inbox for this home.
        """
        if self.inbox_url is not None:
            return self.inbox_url
        try:
            return self.inbox_url_file.read_text().strip()
        except FileNotFoundError:
            raise SettingsError(
                f"no inbox runs for {self.home}: start one with `cygno-assets up`, `demo` or "
                f"`inbox`, or set {PREFIX}INBOX_URL"
            ) from None


def check_nats_url(value: str) -> str:
    """Returns the URL as it is.

    Raises:
        ValueError: it is not nats://host[:port] (or tls://, ws://, wss://). The value itself is
            not in the message, for it may hold a password.
    """
    parts = _split(value)
    if parts.scheme not in {"nats", "tls", "ws", "wss"} or not parts.hostname:
        raise ValueError("not of the form nats://host:port")
    return value


def _split(url: str) -> SplitResult:
    """A URL's parts, all empty if it cannot be parsed: Python's error may quote a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # read lazily; may raise
    except ValueError:
        return urlsplit("")
    return parts


def _without_login(url: str) -> SplitResult:
    """The parts of a URL of the object store, whose keys have settings of their own, kept secret.

    Raises:
        ValueError: it holds a user name or password.
    """
    parts = _split(url)
    if "@" in parts.netloc:
        raise ValueError(
            f"holds a user name or password; set {PREFIX}STORAGE_S3_ACCESS_KEY_ID and "
            f"{PREFIX}STORAGE_S3_SECRET_ACCESS_KEY"
        )
    return parts


def _shown(url: str) -> str:
    """A URL that is refused, in an error: a password may be before an `@` or after a `?`."""
    return "the address" if "@" in url else repr(without_queries(url))


def environment_name(field: str) -> str:
    """The environment variable of a setting: `daq_nats_url` → `CYGNO_DAQ_NATS_URL`."""
    return PREFIX + field.upper()


def load_settings(
    overrides: Mapping[str, object] | None = None, *, environ: Mapping[str, str] | None = None
) -> Settings:
    """Reads and checks all settings.

    Args:
        overrides: values by field name, which win over the environment. None means not given.
        environ: where to look for CYGNO_* variables; the process's environment if None.

    Raises:
        SettingsError: names each wrong or unknown variable and says what is wrong with it.
    """
    environ = os.environ if environ is None else environ
    known = {environment_name(field): field for field in Settings.model_fields}
    found = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    unknown = sorted(set(found) - set(known))
    # An empty variable counts as unset: that is how shells and compose files leave one out.
    values: dict[str, Any] = {known[n]: v for n, v in found.items() if n in known and v != ""}
    values |= {f: value for f, value in (overrides or {}).items() if value is not None}
    problems = []
    for name in unknown:
        near = get_close_matches(name, known, n=1)
        problems.append(f"{name}: no such setting{f'; did you mean {near[0]}?' if near else ''}")
    settings = None
    try:
        settings = Settings(**values)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            where = ".".join(environment_name(str(part)) for part in problem["loc"][:1])
            said = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {said}" if where else said)
    if settings is None or problems:
        raise SettingsError("\n".join(problems))
    return settings


def settings_table() -> str:
    """All settings as a Markdown table: variable, default, meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for field, info in Settings.model_fields.items():
        default = info.default
        if default is None or default == ():
            shown = "–"
        elif field == "home":
            shown = "`.cygno` in the checkout"
        elif field == "dagster_config":
            shown = "the checkout"
        elif isinstance(default, bool):
            shown = f"`{str(default).lower()}`"
        elif isinstance(default, tuple):
            values = (f"{item:g}" if isinstance(item, float) else item for item in default)
            shown = f"`{','.join(values)}`"
        else:
            shown = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        rows.append(f"| `{environment_name(field)}` | {shown} | {info.description} |")
    return "\n".join(rows) + "\n"
