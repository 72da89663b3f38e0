"""`python -m cygno_assets_tests.chaos`: breaks the running system, and prints what came of it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cygno_assets.services.guardian import guarded
from cygno_assets_tests.chaos.faults import Fault, all_faults
from cygno_assets_tests.chaos.world import Account, World, running_world
from cygno_assets_tests.end_to_end.running import processes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_UNDER_WAY_S = 2.0
_SETTLED_S = 300.0
_SMALL = {"data": "1g", "inbox": "128m"}
"""File systems of their own, which can be filled."""


def suffer(world: World, fault: Fault) -> Account:
    """Announces events, breaks something in the middle, and waits until all is settled."""
    since = len(world.witness.messages)
    world.announce(fault.events, *fault.options)
    world.wait_for("the first events", lambda: len(world.witness.messages) > since + 3, 120)
    world.pause(_UNDER_WAY_S)
    fault.does(world)
    over, before = time.monotonic(), set(world.witness.events(since))
    recovered: list[float] = []

    def settled() -> bool:
        if not recovered and not world.unsettled(before):
            recovered.append(time.monotonic() - over)
        ended = world.daq.status is not None
        return bool(recovered) and ended and not world.unsettled(set(world.witness.events(since)))

    world.wait_for(f"{fault.name}: all is settled", settled, _SETTLED_S)
    world.wait_for("no run is left", world.idle, 60)
    return world.account(set(world.witness.events(since)), (recovered or [float("inf")])[0])


def run(faults: Sequence[Fault]) -> int:
    """Runs them all on one system; 0 if nothing was lost, doubled, half or left running."""
    good = True
    with tempfile.TemporaryDirectory(prefix="cygno-chaos-") as folder:
        home = Path(folder)
        print(_row("fault", "announced", "materialized", "failed", "lost", "doubled", "recovered"))
        with ExitStack() as cleanup:
            for name, size in _SMALL.items():
                cleanup.enter_context(_small_file_system(home / name, size))
            with running_world(home) as world:
                for fault in faults:
                    print(f"{fault.name} …", file=sys.stderr, flush=True)
                    account = suffer(world, fault)
                    unexpected = account.failed.keys() - fault.may_fail
                    good = good and account.good and not unexpected
                    _show(fault, account)
        left = processes_of(home)
        print(f"left running: {len(left)}")
    return 0 if good and not left else 1


@contextmanager
def _small_file_system(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _row(*cells: object) -> str:
    widths = (32, 10, 13, 24, 5, 8, 10)
    return "".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True))


def _show(fault: Fault, account: Account) -> None:
    failed = ", ".join(f"{count} {kind}" for kind, count in sorted(account.failed.items()))
    print(
        _row(
            fault.name,
            account.announced,
            account.materialized,
            failed or "0",
            len(account.lost),
            len(account.duplicated),
            f"{account.recovered_s:.1f} s",
        ),
        flush=True,
    )
    for what, events in (
        ("lost", account.lost),
        ("doubled", account.duplicated),
        ("half", account.broken),
    ):
        for event in events:
            print(f"    {what}: {event}")
    for kind in sorted(account.failed.keys() - fault.may_fail):
        print(f"    {kind}: should have passed")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="the most telling ones only")
    parser.add_argument("--only", action="append", default=[], help="faults whose name holds this")
    arguments = parser.parse_args()
    faults = [
        fault
        for fault in all_faults()
        if (fault.short or not arguments.short)
        and (not arguments.only or any(text in fault.name for text in arguments.only))
    ]
    sys.exit(guarded(lambda: run(faults)))


if __name__ == "__main__":
    main()
