"""The sensor `notifications`: tells people of runs that failed for good, and of checks that fail.

Here belong what is told, when, and how it is sent. What is tried again by itself, be it by the
sensor `failed_events` or by Dagster, is not told. Dagster's own sensors for failed runs take a few
runs in a tick and fall behind; this one reads them all and tells of them in one message.
"""

import json
import re
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    DagsterInstance,
    DefaultSensorStatus,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from cygno_assets.automation.cursors import parsed
from cygno_assets.hosts import without_queries
from cygno_assets.names import NOTIFICATIONS, PARTITION_TAG
from cygno_assets.records.history import (
    failed_for_good,
    failure_kind,
    failures_after,
    makes_event,
    newest_failure,
    reason_of,
    runs_by_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dagster import DagsterRun

    from cygno_assets.settings import Settings

_EVERY_S = 5
_SETTLED_S = 10.0
"""Whether Dagster runs a failed run again, it says some seconds later."""
_AT_ONCE = 1000
_A_TICK_AT_MOST = 20_000
_EXAMPLES = 5
_REASON_LENGTH = 300
_TIMEOUT_S = 5.0
_ANSWER_BYTES = 65_536


class NotTakenError(ConnectionError):
    """The webhook has not taken a message; the text has no part of its address."""


@dataclass(frozen=True)
class Example:
    """One failed run.

    Attributes:
        run_id: of it.
        what: it was to make.
        reason: why it failed, in words.
    """

    run_id: str
    what: str
    reason: str


@dataclass
class Digest:
    """What is to be told.

    Attributes:
        failed: how many runs failed, by what they make and on what kind of failure.
        examples: the first of them.
        failing: checks that fail, since the last message, with what they say.
        passing: checks that failed before it and pass.
    """

    failed: dict[str, int] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    failing: dict[str, str] = field(default_factory=dict)
    passing: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.failed or self.failing or self.passing)

    def add(self, instance: DagsterInstance, runs: "Iterable[DagsterRun]") -> None:
        """Adds runs that failed for good; why is looked up for the first of them only."""
        for run in runs:
            what = _what(run)
            label = f"{what}: {failure_kind(run)}"
            self.failed[label] = self.failed.get(label, 0) + 1
            if len(self.examples) < _EXAMPLES:
                reason = without_queries(reason_of(instance, run))[:_REASON_LENGTH]
                of = run.tags.get(PARTITION_TAG)
                self.examples.append(Example(run.run_id, f"{what} {of}" if of else what, reason))

    def text(self, ui_url: str | None) -> str:
        """In words, with links to the web UI if its address is known."""
        lines: list[str] = []
        if self.failed:
            counts = ", ".join(f"{count} {label}" for label, count in sorted(self.failed.items()))
            lines.append(f"runs that failed for good: {sum(self.failed.values())} ({counts})")
        for example in self.examples:
            where = f" ({_page(ui_url, example.run_id)})"
            lines.append(f"- {example.what}: {example.reason}{where}")
        lines += [f"check {name} fails: {why}" for name, why in sorted(self.failing.items())]
        lines += [f"check {name} passes again" for name in sorted(self.passing)]
        return "\n".join(lines)

    def message(self, ui_url: str | None) -> dict[str, Any]:
        """For the webhook: `text`, which Slack and Mattermost show, and the same in fields, raw."""
        return {
            "text": f"cygno-assets: {_as_written(self.text(ui_url))}",
            "failed": self.failed,
            "examples": [
                {**asdict(example), "url": _page(ui_url, example.run_id)}
                for example in self.examples
            ],
            "checks_failing": self.failing,
            "checks_passing": self.passing,
        }


@dataclass
class Cursor:
    """What the sensor remembers.

    Attributes:
        storage_id: of the last failure read; None before the first tick.
        failing: the checks that failed when it last looked.
        sent: when the last message was, in s since 1970.
        digest: what has not been told yet.
    """

    storage_id: int | None = None
    failing: list[str] = field(default_factory=list)
    sent: float = 0.0
    digest: Digest = field(default_factory=Digest)

    @classmethod
    def parse(cls, text: str | None) -> "Cursor":
        """Reads what Dagster keeps.

        Raises:
            ValueError: it is no cursor of this sensor.
        """

        def of(value: dict[str, Any]) -> "Cursor":
            digest = value.pop("digest")
            examples = [Example(**fields) for fields in digest.pop("examples")]
            return cls(**value, digest=Digest(**digest, examples=examples))

        return parsed(text, of) or cls()

    def dump(self) -> str:
        """As Dagster keeps it."""
        return json.dumps(asdict(self))

    def read_failures(self, instance: DagsterInstance) -> None:
        """Reads on in the runs that failed; on the first tick none, for they may be years old."""
        if self.storage_id is None:
            self.storage_id = newest_failure(instance)
            return
        for _ in range(_A_TICK_AT_MOST // _AT_ONCE):
            page = failures_after(instance, self.storage_id, _AT_ONCE)
            settled = [one for one in page.records if one.timestamp <= time.time() - _SETTLED_S]
            if settled:
                runs = runs_by_id(instance, [one.run_id for one in settled])
                found = [runs[one.run_id] for one in settled if one.run_id in runs]
                self.digest.add(instance, filter(failed_for_good, found))
                self.storage_id = settled[-1].storage_id
            if len(settled) < len(page.records) or not page.has_more:
                return

    def read_checks(self, instance: DagsterInstance, keys: "Iterable[AssetCheckKey]") -> None:
        """Looks which checks fail by now; on the first tick, that they do is no news."""
        before = set(self.failing)
        for key in keys:
            name = f"{key.asset_key.to_user_string()}: {key.name}"
            record = instance.get_latest_asset_check_evaluation_record(key)
            evaluation = None if record is None else record.evaluation
            if not isinstance(evaluation, AssetCheckEvaluation):
                continue  # it never ran, or is only planned: as it was
            fails = not evaluation.passed and evaluation.severity == AssetCheckSeverity.ERROR
            if fails and name not in before:
                before.add(name)
                why = without_queries(evaluation.description or "")[:_REASON_LENGTH]
                self._turned(name, why)
            elif not fails and name in before:
                before.remove(name)
                self._turned(name, None)
        self.failing = sorted(before)

    def _turned(self, name: str, why: str | None) -> None:
        """Notes that a check fails, or passes if `why` is None; back and forth is no news."""
        if self.storage_id is None:
            return
        if why is None:
            if self.digest.failing.pop(name, None) is None:
                self.digest.passing.append(name)
        elif name in self.digest.passing:
            self.digest.passing.remove(name)
        else:
            self.digest.failing[name] = why


def build_notifications_sensor(settings: "Settings") -> SensorDefinition:
    """The sensor, for these settings."""
    every_s = settings.notify_every_s
    webhook = settings.notify_webhook_url

    @sensor(
        name=NOTIFICATIONS,
        minimum_interval_seconds=_EVERY_S,
        default_status=DefaultSensorStatus.RUNNING,
        description="Tells of runs that failed and are not tried again, and of checks of severity "
        "ERROR that begin to fail or pass again: in its log"
        + ("" if webhook is None else ", and to the webhook")
        + f". At most one message in {every_s:g} s; it sums up what happened since the last.",
    )
    def notifications(context: SensorEvaluationContext) -> SensorResult:
        cursor = Cursor.parse(context.cursor)
        repository = context.repository_def
        keys = [] if repository is None else repository.asset_graph.asset_check_keys
        cursor.read_checks(context.instance, sorted(keys))
        cursor.read_failures(context.instance)

        def skip(why: str) -> SensorResult:
            return SensorResult(skip_reason=SkipReason(why), cursor=cursor.dump())

        if not cursor.digest:
            return skip("nothing to tell")
        now = time.time()
        if now < cursor.sent + every_s:
            return skip("summed up in the next message")
        ui_url = _ui_url(settings)
        if webhook is not None:
            try:
                send(webhook.get_secret_value(), cursor.digest.message(ui_url))
            except NotTakenError as error:
                context.log.warning("%s; it is sent again", error)
                return skip(f"not told: {error}")
        context.log.error(cursor.digest.text(ui_url))
        cursor.digest, cursor.sent = Digest(), now
        return skip("told")

    return notifications


def send(url: str, message: dict[str, Any]) -> None:
    """Posts a message to a webhook.

    Args:
        url: its address; whoever knows it may write there, so it is never printed.
        message: JSON.

    Raises:
        NotTakenError: it does not answer in time, or not with a status of success.
    """
    from requests import RequestException

    from cygno_assets.daq.http_session import AnswerTooLongError, AnswerTooSlowError, session

    web = session(max_bytes=_ANSWER_BYTES, max_s=_TIMEOUT_S, public_only=False)
    try:
        with web.post(url, json=message, timeout=_TIMEOUT_S, stream=True) as answer:
            status = answer.status_code
    except (RequestException, AnswerTooLongError, AnswerTooSlowError) as error:
        # Of such an error only the kind is said: its text has the address.
        raise NotTakenError(f"the webhook does not answer ({type(error).__name__})") from None
    if not 200 <= status < 300:
        raise NotTakenError(f"the webhook answers with status {status}")


def _as_written(text: str) -> str:
    """A text that Slack and Mattermost show as it is.

    In a failure's reason is what somebody has sent us; `<!channel>`, and in Mattermost `@channel`,
    would call everybody.
    """
    for mark, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, name)
    return re.sub(r"@(?=all|channel|here)", "@\u200b", text)


def _what(run: "DagsterRun") -> str:
    """What a run makes, in a few words."""
    if makes_event(run):
        return "live event"
    assets = sorted(key.to_user_string() for key in run.asset_selection or ())
    return ", ".join(assets) if assets else run.job_name


def _page(ui_url: str | None, run_id: str) -> str:
    """The address of a run's page; its id where no web UI is known."""
    return f"run {run_id}" if ui_url is None else f"{ui_url}/runs/{run_id}"


def _ui_url(settings: "Settings") -> str | None:
    try:
        return settings.web_ui_url_file.read_text().strip()
    except FileNotFoundError:
        return None
