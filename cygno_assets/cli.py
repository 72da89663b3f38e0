"""The program `cygno-assets`: its commands and options. What they do is done elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cygno_assets.settings import SettingsError, load_settings, settings_table

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cygno-assets")
def cli() -> None:
    """CYGNO's camera images as Dagster data assets, live and simulated.

    Settings are CYGNO_* environment variables; `cygno-assets settings` lists them.
    """


def main() -> None:
    """Entry point; what is wrong with a setting, a process or a file is said in a line."""
    from cygno_assets.services.process import ServiceError

    try:
        cli()
    except (SettingsError, ServiceError, ConnectionError, ValueError) as error:
        click.echo(f"cygno-assets: {error}", err=True)
        sys.exit(1)


_port = click.option("--port", type=click.IntRange(1, 65535), help="Port of the web UI.")
_rate = click.option(
    "--rate",
    type=click.FloatRange(0, 10_000, min_open=True),
    default=2.0,
    show_default=True,
    help="Mean rate of arrivals, in events/s.",
)
_seed = click.option("--seed", type=int, help="Same seed, same images and gaps.")
_images = click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Take images from this folder instead of simulating them.",
)
_events = click.option("--events", type=click.IntRange(1), help="End after so many events.")
_FAULTS = (
    click.option(
        "--pedestal-shift",
        type=click.FloatRange(-255, 255),
        help="Shift the simulated camera's pedestal, in ADU.",
    ),
    click.option(
        "--hot-columns",
        type=click.IntRange(0, 576),
        help="Make so many of its columns 6 ADU too bright.",
    ),
    click.option(
        "--exposure",
        type=click.FloatRange(0, 1000, min_open=True),
        help="Expose so many times as long: light grows with it, the pixels' noise with its root.",
    ),
    click.option(
        "--fault-from",
        type=click.IntRange(1),
        help="Do these three from this event on, counted from 1.",
    ),
    click.option(
        "--stop-after",
        type=click.IntRange(0),
        help="Let the DAQ fall silent after so many events, but keep running.",
    ),
)


def _faults(command: Callable[..., None]) -> Callable[..., None]:
    """Ways for the DAQ to misbehave, so that the checks have something to find."""
    for option in reversed(_FAULTS):
        command = option(command)
    return command


def _check_faults(faults: Mapping[str, Any], events: int | None, images: Path | None) -> None:
    """Refuses what cannot be done together."""
    of_camera = {"pedestal_shift", "hot_columns", "exposure", "fault_from"}
    if images is not None and any(faults[name] is not None for name in of_camera):
        raise click.UsageError("--images are no simulated camera's, so it can have no fault")
    if events is not None and faults["stop_after"] is not None:
        raise click.UsageError("--events and --stop-after exclude each other")


@cli.command()
@_events
@_rate
@_seed
@_images
@click.option("--training", is_flag=True, help="With --events: wait for the training set too.")
@_faults
@_port
def demo(
    *,
    events: int | None,
    rate: float,
    seed: int | None,
    images: Path | None,
    training: bool,
    port: int | None,
    **faults: Any,
) -> None:
    """Run everything against a simulated DAQ, until Ctrl-C or for --events.

    The DAQ offers a training set too, which is materialized beside the live events. With --events
    the exit status is 0 only if all events were materialized, and with --training, all of the
    training set.
    """
    from cygno_assets.services.run import run_demo

    _check_faults(faults, events, images)
    _guarded(
        lambda: run_demo(
            {"webserver_port": port},
            events=events,
            rate_hz=rate,
            seed=seed,
            images=images,
            training=training,
            faults=faults,
        )
    )


@cli.command()
@click.option("--nats", "nats_url", help="The DAQ's NATS server; overrides CYGNO_DAQ_NATS_URL.")
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Authority of the object store's certificate; overrides CYGNO_DOWNLOAD_CA_FILE.",
)
@click.option(
    "--image-host",
    "image_hosts",
    multiple=True,
    help="Host[:port] that images may be fetched from, as in the announced URLs; repeatable; "
    "overrides CYGNO_DOWNLOAD_HOSTS.",
)
@_port
def up(
    nats_url: str | None, ca_file: Path | None, image_hosts: tuple[str, ...], port: int | None
) -> None:
    """Run everything against a real DAQ, until Ctrl-C."""
    from cygno_assets.services.run import run_up

    _guarded(
        lambda: run_up(
            {
                "daq_nats_url": nats_url,
                "download_ca_file": ca_file,
                "download_hosts": ",".join(image_hosts) or None,
                "webserver_port": port,
            }
        )
    )


@cli.command()
@click.option(
    "--live",
    type=click.IntRange(0),
    default=lambda: os.cpu_count() or 1,
    show_default="one for each CPU",
    help="Processes for events.",
)
@click.option(
    "--background",
    type=click.IntRange(0),
    default=lambda: os.cpu_count() or 1,
    show_default="one for each CPU",
    help="Processes for backfills, which leave the CPU to those for events.",
)
def worker(live: int, background: int) -> None:
    """Execute runs that `up` on another machine launches (docs/scaling.md), until Ctrl-C."""
    from cygno_assets.services.worker import run_worker

    _guarded(lambda: run_worker(click.echo, live=live, background=background))


@cli.command()
@click.option(
    "--name", default="recorder", show_default=True, help="Tells it from others beside it."
)
def record(name: str) -> None:
    """Run a recorder alone: from the DAQ's server into an inbox that runs already."""
    from cygno_assets.daq.recorder import Recorder

    settings = load_settings()
    _log_to_terminal()
    _run_until_signal(Recorder(settings, settings.resolve_inbox_url(), name).run())


@cli.command()
def inbox() -> None:
    """Run the inbox alone: our NATS server with JetStream."""
    from cygno_assets.services.process import watch
    from cygno_assets.services.stack import locked_home, running_inbox

    def run() -> int:
        settings = load_settings()
        with locked_home(settings), running_inbox(settings) as server:
            click.echo(f"inbox {server.url} – Ctrl-C ends")
            watch([server.service])

    _guarded(run)


@cli.group()
def backfill() -> None:
    """Make data again, by a backfill of the running system."""


@backfill.command("training")
@click.option("--no-wait", is_flag=True, help="Return when it is requested.")
def backfill_training(*, no_wait: bool) -> None:
    """Backfill all recoil × energy cells of the training set.

    Cells whose images have not changed finish without decoding any. The totals and figures follow
    by themselves.
    """
    from cygno_assets.services.backfill import run_training_backfill

    sys.exit(run_training_backfill(load_settings(), click.echo, wait=not no_wait))


@cli.command()
@click.option("--repair", is_flag=True, help="Make again what is missing.")
@click.option("--deep", is_flag=True, help="Read every stored image and tensor too: is it whole?")
@click.option("--all", "all_of_them", is_flag=True, help="List all, not the first twenty.")
@click.option("--json", "as_json", is_flag=True, help="All differences, for programs.")
def reconcile(**options: bool) -> None:
    """Compare what the inbox holds, what ran, what is materialized and what is stored.

    Counts the events of which not everything agrees, and lists them with the reason. The exit
    status is 0 only if everything agrees, or was mended, and nothing was lost within a day.
    """
    from cygno_assets.services.mending import run_reconcile

    sys.exit(run_reconcile(load_settings(), click.echo, **options))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="All of it, for programs.")
def status(*, as_json: bool) -> None:
    """Whether the running system is well: servers, backlog, latency, failures, room on the disk.

    The exit status is 0 if all is well, 1 if something is wrong (said in the last lines), and 2 if
    nothing runs.
    """
    from cygno_assets.services.status import run_status

    sys.exit(run_status(load_settings(), click.echo, as_json=as_json))


@cli.command()
@click.argument("events", nargs=-1)
@click.option("--kind", help="Only those that failed on this, such as `expired`.")
def replay(events: tuple[str, ...], kind: str | None) -> None:
    """Make failed EVENTS again, as the web UI does; all that failed, if none is named."""
    from cygno_assets.services.mending import run_replay

    sys.exit(run_replay(load_settings(), click.echo, events=events, kind=kind))


@cli.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="The counts, for programs.")
def prune(*, dry_run: bool, as_json: bool) -> None:
    """Take old runs and partition keys out of Dagster, of events that the catalogue holds.

    The schedule `prune` does it every night; the CYGNO_HISTORY_ settings say what stays.
    """
    from cygno_assets.services.pruning import run_prune

    run_prune(load_settings(), click.echo, dry_run=dry_run, as_json=as_json)


@cli.command()
@click.argument("event")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to put the picture; <event>.png in the current folder if not given.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(event: str, picture: Path | None, *, as_json: bool) -> None:
    """Show one EVENT's whole story, and draw it: image, tensor, histogram.

    Announcements, runs, versions, files and its row of the catalogue, as far as any of them is
    still known. EVENT may be the beginning of a name, such as cygno-a1b2.
    """
    from cygno_assets.services.show import run_show

    run_show(load_settings(), event, click.echo, picture=picture, as_json=as_json)


@cli.group()
def rejected() -> None:
    """Messages of the DAQ that could not be events; they are kept in the inbox."""


@rejected.command("list")
def rejected_list() -> None:
    """List them: sequence, when, size, and why."""
    from cygno_assets.services.mending import list_rejected

    list_rejected(load_settings(), click.echo)


@rejected.command("show")
@click.argument("sequence", type=click.IntRange(1))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write the message into as it came, signatures included.",
)
def rejected_show(sequence: int, output: Path | None) -> None:
    """Show the beginning of the message of this SEQUENCE, without the signature of its URL."""
    from cygno_assets.services.mending import show_rejected

    show_rejected(load_settings(), sequence, click.echo, output=output)


@rejected.command("replay")
@click.argument("sequences", nargs=-1, type=click.IntRange(1))
def rejected_replay(sequences: tuple[int, ...]) -> None:
    """Read these again by the settings of now, or all; what is an event goes its way."""
    from cygno_assets.services.mending import replay_rejected

    sys.exit(replay_rejected(load_settings(), sequences, click.echo))


@cli.command()
@click.option("--markdown", is_flag=True, help="As the table in docs/settings.md.")
def settings(*, markdown: bool) -> None:
    """List the settings: variable, default and meaning."""
    if markdown:
        click.echo(settings_table(), nl=False)
        return
    for line in settings_table().splitlines()[2:]:
        name, default, meaning = (part.strip(" `") for part in line.strip("| ").split(" | ", 2))
        click.echo(f"{name} = {default}")
        click.echo(click.wrap_text(meaning, 96, "    ", "    "))


@cli.group()
def simulate() -> None:
    """Simulate what a DAQ delivers."""


@simulate.command("daq")
@click.option("--nats", "nats_url", help="NATS server to announce on; one is started if not given.")
@click.option("--s3-endpoint", help="S3 server for the images; one is started if not given.")
@click.option("--bucket", default="cygno-daq", show_default=True, help="Bucket on that S3 server.")
@click.option("--region", default="us-east-1", show_default=True, help="Region of the bucket.")
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file of the authority of the S3 server's certificate.",
)
@click.option("--subject", default="daq/data", show_default=True, help="Subject to announce on.")
@click.option("--timezone", default="UTC", show_default=True, help="Of the DAQ's clock.")
@click.option(
    "--season",
    "season_s",
    type=click.FloatRange(0, min_open=True),
    default=10_800.0,
    show_default=True,
    help="Period of the signal's seasons, in s.",
)
@click.option(
    "--truth",
    type=click.Path(dir_okay=False, path_type=Path),
    help="SQLite file of the truth table, which stays on the DAQ's side.",
)
@click.option(
    "--url-lifetime",
    "url_lifetime_s",
    type=click.IntRange(1, 7 * 86_400),
    default=3600,
    show_default=True,
    help="Seconds that a presigned URL is valid for.",
)
@click.option("--burst", is_flag=True, help="Announce all --events at once.")
@_events
@_rate
@_seed
@_images
@_faults
def simulate_daq(**options: Any) -> None:
    """Simulate the DAQ: images into a bucket, announcements over NATS.

    Alone it starts servers of its own, prints how to listen to them, and keeps them up until
    Ctrl-C, for images are fetched after they were announced. With --nats and
    --s3-endpoint it uses those; the bucket's keys are then taken from AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY.
    """
    from cygno_assets.services.simulated_daq import run_simulated_daq

    _check_faults(options, options["events"], options["images"])
    _log_to_terminal()
    _guarded(lambda: run_simulated_daq(**options))


@simulate.command("training-set")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same archive.")
@click.option(
    "--copies",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="So many times 612 images, all different.",
)
def simulate_training_set(file: Path, seed: int, copies: int) -> None:
    """Write a training set: FILE, a zip with the layout and population of the school's."""
    from cygno_assets.daq.simulator.training_set import member_count, write_training_set

    try:
        with click.progressbar(
            write_training_set(file, seed, copies=copies),
            length=member_count(copies),
            label=str(file),
        ) as members:
            for _ in members:
                pass
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _guarded(command: Callable[[], int | None]) -> None:
    """Runs a command that starts processes; none of them outlives it."""
    from cygno_assets.services.guardian import guarded
    from cygno_assets.services.process import ServiceError

    def run() -> int:
        try:
            return command() or 0
        except (SettingsError, ServiceError, ConnectionError, FileNotFoundError) as error:
            click.echo(f"cygno-assets: {error}", err=True)
            return 1

    sys.exit(guarded(run))


def _run_until_signal(work: Coroutine[Any, Any, None]) -> None:
    async def run() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise

    asyncio.run(run())


def _log_to_terminal() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )


if __name__ == "__main__":
    main()
