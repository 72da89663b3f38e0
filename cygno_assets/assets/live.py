"""The assets of a live event: its raw image and its preprocessed tensor.

Here belong what an event's run does and what the web UI shows of it; how an image is fetched is
daq/download.py, how it is preprocessed is physics/images.py.
"""

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSpec,
    Backoff,
    DataVersion,
    Failure,
    Jitter,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    RetryPolicy,
    asset,
)

from cygno_assets.assets.metadata import code_of, picture, stored_at
from cygno_assets.daq.announcement import (
    NotAnEventError,
    is_event_id,
    md5_in,
    parse_announcement,
)
from cygno_assets.daq.download import (
    DoubtfulDownloadError,
    DownloadError,
    DownloadLimits,
    FinalDownloadError,
    RetriableDownloadError,
    content_md5,
    download_image,
    span,
)
from cygno_assets.daq.inbox import (
    EVENT_SUBJECT,
    STREAM,
    Inbox,
    InboxUnavailableError,
    StoredMessage,
)
from cygno_assets.hosts import AllowedHost
from cygno_assets.names import (
    ANNOUNCEMENTS,
    DOUBTS_TAG,
    FINAL_TAG,
    KIND,
    KIND_TAG,
    LIVE_GROUP,
    LIVE_TAG,
    MAX_DOUBTS,
    PREPROCESSED_TENSOR,
    RAW_IMAGE,
    SEQUENCE_TAG,
)
from cygno_assets.partitions import daq_event_partitions
from cygno_assets.physics.images import ImageError
from cygno_assets.settings import SettingsError
from cygno_assets.storage.errors import StoreError, StoreRefusedError
from cygno_assets.storage.io_managers import RawImageIOManager

if TYPE_CHECKING:
    from dagster import RawMetadataValue
    from PIL.Image import Image

    from cygno_assets.daq.announcement import Announcement
    from cygno_assets.physics.spec import PreprocessSpec
    from cygno_assets.physics.tracks import Spot
    from cygno_assets.settings import Settings

    _Useless = DownloadError | ImageError | NotAnEventError

# Temporary trouble that outlasts the short retries inside the request; what is final raises
# Failure(allow_retries=False) instead.
_RETRY = RetryPolicy(max_retries=2, delay=2, backoff=Backoff.EXPONENTIAL, jitter=Jitter.PLUS_MINUS)

_MAX_ASKED = 5
"""Announcements of one event by which a run asks for its image."""


def build_live_assets(settings: "Settings") -> list[AssetSpec | AssetsDefinition]:
    """The assets of live events, for these settings."""
    spec = settings.preprocess_spec
    owners = list(settings.owners)
    timezone = ZoneInfo(settings.daq_timezone)
    limits = DownloadLimits(
        max_bytes=settings.download_max_bytes,
        timeout_s=settings.download_timeout_s,
        hosts=tuple(AllowedHost.parse(entry) for entry in settings.download_hosts),
        ca_file=settings.download_ca_file,
        insecure=settings.download_insecure,
    )

    seen: dict[str, tuple[StoredMessage, Announcement] | None] = {}
    """What the run under way has read for its first asset, by its id."""

    def read(message: StoredMessage) -> "Announcement":
        return parse_announcement(
            message.payload, timezone=timezone, names_without_md5=settings.names_without_md5
        )

    def announced_if_known(
        inbox: Inbox, event_id: str, context: AssetExecutionContext
    ) -> "tuple[StoredMessage, Announcement] | None":
        """For metadata only: an image that is stored needs no inbox."""
        if context.run.run_id in seen:
            return seen[context.run.run_id]
        try:
            message = inbox.newest_announcement(event_id)
            return None if message is None else (message, read(message))
        except (InboxUnavailableError, SettingsError, NotAnEventError) as error:
            context.log.warning("without the announcement's metadata: %s", error)
            return None

    def decode(data: bytes) -> "Image":
        from cygno_assets.physics.images import decode_image

        return decode_image(data, max_pixels=settings.image_max_pixels)

    def fetch(announcement: "Announcement") -> bytes:
        data = download_image(announcement, limits)
        if announcement.md5 is None:
            decode(data)  # nothing else vouches for these bytes
        return data

    def download(
        inbox: Inbox, event_id: str, context: AssetExecutionContext
    ) -> "tuple[tuple[StoredMessage, Announcement], bytes]":
        """Downloads by the newest announcement, then by those before it and those that come.

        The newest need not be the best, nor even the DAQ's, nor need any but the oldest.
        """
        newest = inbox.newest_announcement(event_id)
        failed: dict[int, tuple[StoredMessage, _Useless]] = {}
        away: dict[str, RetriableDownloadError] = {}
        asked, waiting = 0, [] if newest is None else [newest]
        while waiting and asked < _MAX_ASKED:
            # The last place is the oldest's: nobody can announce a name before the DAQ has made it.
            message = waiting.pop(0 if asked == _MAX_ASKED - 1 else -1)
            try:
                announcement = read(message)
                if announcement.source in away:  # another signature would not bring it back
                    raise away[announcement.source]
                data = fetch(announcement)
            except (DownloadError, ImageError, NotAnEventError) as error:
                failed[message.sequence] = message, error
                asked += not isinstance(error, FinalDownloadError | NotAnEventError)
                if isinstance(error, RetriableDownloadError):
                    away[announcement.source] = error
            else:
                return (message, announcement), data
            if not waiting:
                known = inbox.announcements(event_id)
                waiting = [message for message in known if message.sequence not in failed]
        if not failed:
            raise _failed_for_good(context, "gone", _nothing_left(event_id, settings))
        raise _not_downloaded(context, event_id, list(failed.values()))

    announcements = AssetSpec(
        ANNOUNCEMENTS,
        description="What the DAQ says of its images on NATS, kept verbatim in the inbox: for "
        "each a presigned URL, a time and a file name. The sensor `daq_events` makes a partition "
        "of the assets downstream for each.",
        group_name=LIVE_GROUP,
        owners=owners,
        kinds={"nats"},
        tags={"domain": "daq"},
        metadata={
            "subject": settings.daq_subject,
            "inbox_stream": STREAM,
            "inbox_subjects": f"{EVENT_SUBJECT}.*",
            "kept_days": settings.inbox_max_age_days,
            **code_of(parse_announcement),
        },
    )

    @asset(
        key=RAW_IMAGE,
        deps=[announcements],
        partitions_def=daq_event_partitions,
        group_name=LIVE_GROUP,
        owners=owners,
        kinds={"image", "s3" if settings.data_url.startswith("s3://") else "file"},
        tags={"domain": "daq"},
        code_version="1",
        io_manager_key="raw_image_io_manager",
        retry_policy=_RETRY,
        description="One camera image byte for byte as the DAQ delivered it (JPEG, 8-bit, "
        "576 × 576 pixels of about 0.6 mm, values in ADU), checked against the md5 in its name. "
        "An image that is stored already is not downloaded again.",
    )
    def raw_image(
        context: AssetExecutionContext,
        inbox: ResourceParam[Inbox],
        raw_image_io_manager: ResourceParam[RawImageIOManager],
    ) -> MaterializeResult[None]:
        event_id = _event_id(context)
        found: tuple[StoredMessage, Announcement] | None = None
        downloaded: dict[str, RawMetadataValue] = {}
        try:
            data = _undamaged(raw_image_io_manager.stored(RAW_IMAGE, event_id), event_id)
            if data is not None:
                context.log.info("already stored: not downloaded")
                found = announced_if_known(inbox, event_id, context)
            else:
                found, data = download(inbox, event_id, context)
                # Kept before anything is done with them: the URL dies after an hour.
                raw_image_io_manager.keep(RAW_IMAGE, event_id, data)
                downloaded["downloaded"] = MetadataValue.timestamp(datetime.now(UTC))
            seen.clear()
            seen[context.run.run_id] = found
            image = decode(data)
        except ImageError as error:
            raise _useless(context, event_id, error) from None
        except (InboxUnavailableError, SettingsError) as error:
            raise _may_pass(context, "no_inbox", f"{event_id}: {error}") from None
        except StoreRefusedError as error:
            raise _may_pass(context, "storage_refused", f"{event_id}: {error}") from None
        except (StoreError, OSError) as error:
            raise _may_pass(context, "storage", f"{event_id}: {error}") from None
        metadata: dict[str, RawMetadataValue] = {
            **({} if found is None else _times(*found)),
            **downloaded,
            **({} if found is None else _source(*found)),
            "size_bytes": len(data),
            "md5": content_md5(data),
            "path": stored_at(raw_image_io_manager.path(RAW_IMAGE, event_id)),
            **image_metadata(image),
        }
        return MaterializeResult(metadata=metadata, data_version=DataVersion(content_md5(data)))

    @asset(
        key=PREPROCESSED_TENSOR,
        partitions_def=daq_event_partitions,
        group_name=LIVE_GROUP,
        owners=owners,
        kinds={"numpy", "s3" if settings.data_url.startswith("s3://") else "file"},
        tags={"domain": "physics"},
        # A changed specification makes what was made by another one stale.
        code_version=spec.hash,
        io_manager_key="tensor_io_manager",
        description=f"What a model sees of one event: the central {spec.side} × {spec.side} "
        f"pixels, windowed from {spec.window_low:g}–{spec.window_high:g} ADU to [0, 1], float32 "
        "(no unit), as .npy.",
    )
    def preprocessed_tensor(
        context: AssetExecutionContext,
        raw_image: bytes,
        inbox: ResourceParam[Inbox],
    ) -> MaterializeResult[Any]:
        from cygno_assets.physics.images import preprocess, thumbnail_jpeg

        event_id = _event_id(context)
        if _undamaged(raw_image, event_id) is None:
            raise _failed_for_good(
                context,
                "damaged",
                f"{event_id}: the stored image is damaged; materialize raw_image again",
            )
        try:
            image = decode(raw_image)
            tensor = preprocess(image, spec)
        except ImageError as error:
            raise _useless(context, event_id, error) from None
        metadata: dict[str, RawMetadataValue] = {
            "thumbnail": picture(
                "image/jpeg",
                thumbnail_jpeg(tensor),
                "tensor",
                f"black {spec.window_low:g} ADU, white {spec.window_high:g} ADU",
            ),
            **tensor_metadata(image, spec),
        }
        # Made again by hand, hours later, it would say nothing of the pipeline.
        live = context.run.tags.get(LIVE_TAG) == "true"
        if live and (found := announced_if_known(inbox, event_id, context)):
            latency = datetime.now(UTC) - found[1].acquired
            metadata["latency_s"] = round(latency.total_seconds(), 3)
        digest = hashlib.sha256(tensor.tobytes()).hexdigest()[:16]
        return MaterializeResult(
            value=tensor, metadata=metadata, data_version=DataVersion(f"{spec.hash}-{digest}")
        )

    return [announcements, raw_image, preprocessed_tensor]


def image_metadata(image: "Image") -> "dict[str, RawMetadataValue]":
    """What an image's pixels tell, as the web UI shows it and checks/live_window.py reads it."""
    import numpy as np

    from cygno_assets.physics.columns import column_pattern
    from cygno_assets.physics.histogram import counts_to_text, mean_and_sd, pixel_counts, range_of
    from cygno_assets.physics.tracks import brightest_spot

    counts = pixel_counts(image)
    mean, sd = mean_and_sd(counts)
    low, high = range_of(counts)
    pixels = np.asarray(image)
    columns = column_pattern(pixels)
    return {
        "dimensions_px": f"{image.width} × {image.height}",
        "mode": image.mode,
        "mean_adu": round(mean, 3),
        "sd_adu": round(sd, 3),
        "min_adu": low,
        "max_adu": high,
        "column_sd_adu": round(columns.sd_adu, 3),
        "hottest_column": columns.hottest,
        "hottest_column_excess_adu": round(columns.excess_adu, 3),
        **_brightest(brightest_spot(pixels)),
        # So that windows of events can be summed without opening an image.
        "pixel_counts": counts_to_text(counts),
    }


def tensor_metadata(image: "Image", spec: "PreprocessSpec") -> "dict[str, RawMetadataValue]":
    """What a tensor was made by, and what that clipped of its image.

    Raises:
        ImageError: the image is smaller than the crop.
    """
    from cygno_assets.physics.images import clipped_shares

    clipped_low, clipped_high = clipped_shares(image, spec)
    return {
        "spec_hash": spec.hash,
        "window_adu": f"{spec.window_low:g}–{spec.window_high:g}",
        "dimensions_px": f"{spec.side} × {spec.side}",
        "clipped_low_share": round(clipped_low, 6),
        "clipped_high_share": round(clipped_high, 6),
    }


def _event_id(context: AssetExecutionContext) -> str:
    event_id: str = context.partition_key
    if not is_event_id(event_id):
        raise _failed_for_good(
            context,
            "no_event",
            f"partition {event_id[:60]!r} is no event: letters, digits, '_' and '-' only",
        )
    return event_id


def _failed_for_good(context: AssetExecutionContext, kind: str, why: str) -> Failure:
    """A failure that trying again would not mend; said on the run too, where it can be counted."""
    context.instance.add_run_tags(context.run.run_id, {FINAL_TAG: kind})
    return Failure(why, metadata={KIND: kind}, allow_retries=False)


def _undamaged(data: bytes | None, event_id: str) -> bytes | None:
    """These bytes, unless the event's name says that they are not its image."""
    if data is None or md5_in(event_id) in {None, content_md5(data)}:
        return data
    return None


def _nothing_left(event_id: str, settings: "Settings") -> str:
    return (
        f"{event_id}: neither its image is stored nor its announcement still in the inbox "
        f"(kept {settings.inbox_max_age_days:g} days); it can only be made after the DAQ has "
        "announced it again"
    )


def _useless(context: AssetExecutionContext, event_id: str, error: ImageError) -> Failure:
    return _failed_for_good(context, "no_image", f"{event_id}: {error}")


def _not_downloaded(
    context: AssetExecutionContext, event_id: str, failed: "list[tuple[StoredMessage, _Useless]]"
) -> Failure:
    """The failure of a run whose event's announcements, in the order tried, were all useless.

    It is that of the one which gives most hope: the newest of them, if they are alike.
    """
    message, error = min(failed, key=lambda one: _hopelessness(one[1]))
    why = f"{event_id}: {error}"
    if isinstance(error, DownloadError) and error.kind == "expired" and message.received:
        why += f"; the event had waited {span(datetime.now(UTC) - message.received)}"
    if len(failed) > 1:
        why += f"; none of {len(failed)} announcements led to it"
    # The sensor passes over what is announced while a run is under way: this one has seen these.
    newest = max(message.sequence for message, _ in failed)
    context.instance.add_run_tags(context.run.run_id, {SEQUENCE_TAG: str(newest)})
    if isinstance(error, RetriableDownloadError):
        return _may_pass(context, error.kind, why)
    if isinstance(error, DoubtfulDownloadError):
        return _doubtful(context, error.kind, why)
    return _failed_for_good(context, _kind_of(error), why)


def _hopelessness(error: "_Useless") -> int:
    kinds = (RetriableDownloadError, DoubtfulDownloadError)
    return next((at for at, kind in enumerate(kinds) if isinstance(error, kind)), len(kinds))


def _kind_of(error: "_Useless") -> str:
    if isinstance(error, DownloadError):
        return error.kind
    return "no_event" if isinstance(error, NotAnEventError) else "no_image"


def _may_pass(context: AssetExecutionContext, kind: str, why: str) -> Failure:
    """A failure that is tried again, first within the run."""
    if context.retry_number == _RETRY.max_retries:
        context.instance.add_run_tags(context.run.run_id, {KIND_TAG: kind})
    return Failure(why, metadata={KIND: kind})


def _doubtful(context: AssetExecutionContext, kind: str, why: str) -> Failure:
    """A failure that other runs must see too, some time later, before it is one for good."""
    doubts = int(context.run.tags.get(DOUBTS_TAG, "0"))
    if doubts >= MAX_DOUBTS or LIVE_TAG not in context.run.tags:  # a person's is not run again
        return _failed_for_good(context, kind, why)
    tags = {KIND_TAG: kind, DOUBTS_TAG: str(doubts + 1)}
    context.instance.add_run_tags(context.run.run_id, tags)
    return Failure(why, metadata={KIND: kind}, allow_retries=False)


def _times(message: StoredMessage, announced: "Announcement") -> dict[str, "RawMetadataValue"]:
    times: dict[str, RawMetadataValue] = {"acquired": MetadataValue.timestamp(announced.acquired)}
    if message.received is not None:
        times["announced"] = MetadataValue.timestamp(message.received)
    return times


def _brightest(spot: "Spot | None") -> dict[str, "RawMetadataValue"]:
    if spot is None:
        return {}
    return {
        "brightest_adu": round(spot.adu, 3),
        "brightest_row": spot.row,
        "brightest_column": spot.column,
    }


def _source(message: StoredMessage, announced: "Announcement") -> dict[str, "RawMetadataValue"]:
    return {"source": announced.source, "stream_sequence": message.sequence}
