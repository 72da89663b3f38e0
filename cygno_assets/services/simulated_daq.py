"""`cygno-assets simulate daq`: the simulated DAQ, on servers given or on its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cygno_assets.services.guardian import until_stopped
from cygno_assets.services.process import ServiceError, watch
from cygno_assets.services.stack import DaqServers, running_daq_servers
from cygno_assets.settings import check_nats_url, load_settings


def run_simulated_daq(
    *,
    nats_url: str | None,
    s3_endpoint: str | None,
    bucket: str,
    region: str,
    ca_file: Path | None,
    subject: str,
    timezone: str,
    season_s: float,
    truth: Path | None,
    url_lifetime_s: int,
    burst: bool,
    events: int | None,
    rate: float,
    seed: int | None,
    images: Path | None,
    pedestal_shift: float | None,
    hot_columns: int | None,
    exposure: float | None,
    fault_from: int | None,
    stop_after: int | None,
) -> int:
    """Runs the DAQ until all events are announced, or until it is interrupted.

    Servers of its own stay up until it is interrupted.

    Returns:
        0.

    Raises:
        ServiceError: an option is wrong or missing, or a server does not come up.
    """
    from cygno_assets.daq.simulator.bucket import BucketSettings
    from cygno_assets.daq.simulator.camera import CameraFault
    from cygno_assets.daq.simulator.daq import DaqConfig, SimulatedDaq
    from cygno_assets.daq.simulator.events import ImagesFromDirectory, ParametricImages, Season

    if (nats_url is None) != (s3_endpoint is None):
        raise ServiceError("--nats and --s3-endpoint go together: give both or neither")
    seed = secrets.randbelow(2**31) if seed is None else seed
    try:
        zone = ZoneInfo(timezone)
        fault = CameraFault(
            pedestal_shift_adu=pedestal_shift or 0.0,
            hot_columns=hot_columns or 0,
            exposure=exposure or 1.0,
        )
        source = (
            ParametricImages(seed, fault=fault, fault_from=fault_from or 1)
            if images is None
            else ImagesFromDirectory(images, seed)
        )
    except ZoneInfoNotFoundError:
        raise ServiceError(f"--timezone {timezone!r} is no IANA time zone") from None
    except ValueError as error:
        raise ServiceError(str(error)) from None
    servers: DaqServers | None = None
    with ExitStack() as cleanup:
        if nats_url is None or s3_endpoint is None:
            servers = cleanup.enter_context(running_daq_servers(load_settings().home))
            nats_url, settings = servers.nats_url, servers.bucket
            print(
                f"DAQ's NATS server {nats_url}, seed {seed}; listen to it with\n"
                f"  cygno-assets up --nats {nats_url} --ca-file {settings.ca_file}"
                f" --image-host {settings.endpoint}",
                flush=True,
            )
        else:
            settings = BucketSettings(
                endpoint=s3_endpoint,
                bucket=bucket,
                access_key_id=_from_environment("AWS_ACCESS_KEY_ID"),
                secret_access_key=_from_environment("AWS_SECRET_ACCESS_KEY"),
                region=region,
                ca_file=ca_file,
            )
        if truth is None:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="cygno-truth-")))
            truth = folder / "truth.sqlite"
        try:
            config = DaqConfig(
                nats_url=check_nats_url(nats_url),
                bucket=settings,
                source=source,
                truth_path=truth,
                timezone=zone,
                rate_hz=rate,
                limit=events,
                stop_after=stop_after,
                seed=seed,
                season=Season(season_s),
                burst=burst,
                url_lifetime=timedelta(seconds=url_lifetime_s),
                subject=subject,
            )
            announced = asyncio.run(until_stopped(SimulatedDaq(config).run()))
        except ValueError as error:
            raise ServiceError(str(error)) from None
        print(f"{announced} announced", flush=True)
        if servers is not None:
            print("its servers stay up for the images – Ctrl-C ends", flush=True)
            watch(servers.services)
    return 0


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ServiceError(f"{name} is not set: the bucket's keys come from the environment")
    return value
