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
from cygno_assets_tests.chaos.faults import SETTLED_S, UNDER_WAY, Fault, all_faults
from cygno_assets_tests.chaos.world import World, running_world
from cygno_assets_tests.end_to_end.running import processes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cygno_assets_tests.chaos.account import Account

_SHOWN = 20
_COLUMNS = (
    *("fault", "announced", "events/s", "materialized", "failed", "lost", "doubled", "recovered"),
)
_SMALL = {"data": "1g", "inbox": "128m", "dagster": "1g"}
"""File systems of their own, which can be filled."""


def suffer(world: World, fault: Fault) -> Account:
    """Announces events, breaks something in the middle, and waits until all is settled."""
    world.begin()
    first = min(UNDER_WAY, fault.events)
    world.announce(fault.events, *fault.options)
    world.wait_for("events arrive", lambda: len(world.heard()) >= first, 300)
    fault.does(world)
    over, before = time.monotonic(), world.heard().keys()
    if fault.loaded and not world.announcing():
        world.row.trouble.append("no event arrived any more when the fault was over")
    world.look_at_files()
    world.wait_until_settled(before, SETTLED_S)
    recovered_s = time.monotonic() - over
    world.wait_for_rest(SETTLED_S)
    account = world.account(fault.expected, recovered_s)
    fault.then(world, account)
    return account


def run(faults: Sequence[Fault]) -> int:
    """Runs them all on one system; 0 if there is no problem with any, and nothing left running."""
    bad = 0
    with tempfile.TemporaryDirectory(prefix="cygno-chaos-") as folder:
        home = Path(folder)
        print(_row(*_COLUMNS))
        with ExitStack() as cleanup:
            for name, size in _SMALL.items():
                cleanup.enter_context(_small_file_system(home / name, size))
            with running_world(home) as world:
                for fault in faults:
                    print(f"{fault.name} …", file=sys.stderr, flush=True)
                    bad += _show(fault.name, suffer(world, fault))
                may_be_lost = sum(fault.expected.lost_before_us for fault in faults)
                bad += _show("all of it, in the end", world.account_of_all(may_be_lost))
        left = processes_of(home)
        print(f"left running: {len(left)}; rows with a problem: {bad}")
    return 1 if bad or left else 0


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
    widths = (36, 10, 9, 13, 24, 5, 8, 10)
    return "".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True))


def _show(name: str, account: Account) -> bool:
    """Prints a row and what is wrong with it; returns whether anything is."""
    print(
        _row(
            name,
            len(account.heard),
            f"{account.rate_hz:.1f}",
            len(account.materialized),
            ", ".join(f"{count} {kind}" for kind, count in account.kinds.items()) or "0",
            len(account.lost),
            len(account.doubled),
            f"{account.recovered_s:.1f} s",
        ),
        flush=True,
    )
    if account.lost_before_us > 0:
        print(f"    lost before anybody heard of them: {account.lost_before_us}")
    problems = account.problems
    for problem in problems[:_SHOWN]:
        print(f"    BAD: {problem}")
    if len(problems) > _SHOWN:
        print(f"    BAD: and {len(problems) - _SHOWN} more", flush=True)
    return bool(problems)


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
    if not faults:
        parser.error("no fault of that name")
    sys.exit(guarded(lambda: run(faults)))


if __name__ == "__main__":
    main()
