"""What `make chaos` says is only worth something if it would say otherwise: it is told of each way
in which events come to harm, and of each way not to have looked.
"""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests
from upath import UPath

from cygno_assets.physics.images import decode_image, preprocess
from cygno_assets.services.certificates import make_certificates
from cygno_assets.settings import load_settings
from cygno_assets_tests.chaos import __main__ as chaos
from cygno_assets_tests.chaos.account import Account, Expected
from cygno_assets_tests.chaos.faults import Fault, all_faults
from cygno_assets_tests.chaos.files import damaged, half_files, secrets_in
from cygno_assets_tests.chaos.store import FaultyStore
from cygno_assets_tests.chaos.world import World
from cygno_assets_tests.wire import REAL_IMAGES, name_of

if TYPE_CHECKING:
    from pathlib import Path

EVENTS = {"one": 10.0, "two": 10.125}
GOOD = Account(
    expected=Expected(),
    requested=2,
    truth={*EVENTS},
    heard=EVENTS,
    materialized={*EVENTS},
    successes={"one": 1, "two": 1},
    failed={},
    hit={"one"},
)
FORBIDDEN = replace(
    GOOD,
    expected=Expected(fails="forbidden", fails_all=True),
    materialized={"two"},
    successes={"two": 1},
    failed={"one": "forbidden"},
)
SPEC = load_settings().preprocess_spec


def test_all_is_good() -> None:
    assert GOOD.problems == []
    assert FORBIDDEN.problems == []
    assert (GOOD.rate_hz, FORBIDDEN.kinds) == (8.0, {"forbidden": 1})


@pytest.mark.parametrize(
    ("account", "change", "problem"),
    [
        (GOOD, {"materialized": {"two"}, "successes": {"two": 1}}, "lost: one"),
        (GOOD, {"successes": {"one": 2, "two": 1}}, "doubled: one: 2 runs"),
        (GOOD, {"successes": {"two": 1}}, "materialized without a successful run: one"),
        (GOOD, {"damaged": ["a file is half"]}, "damaged: a file is half"),
        (GOOD, {"trouble": ["after 1 s still not"]}, "after 1 s still not"),
        (GOOD, {"hit": set()}, "the fault hit nothing"),
        (GOOD, {"heard": {"one": 10.0, "two": 10.5}}, "2.0 events/s are no load"),
        (GOOD, {"heard": {"one": 10.0}}, "2 events were to be announced, 2 were"),
        (GOOD, {"requested": 3}, "3 events were to be announced, 2 were"),
        (GOOD, {"truth": {"one"}, "requested": 1}, "1 events were heard that no DAQ announced"),
        (
            GOOD,
            {"heard": {}, "truth": set(), "requested": 0, "materialized": set(), "successes": {}},
            "nothing was announced",
        ),
        (FORBIDDEN, {"expected": Expected()}, "one failed on forbidden: should have passed"),
        (FORBIDDEN, {"failed": {"one": "missing"}}, "one failed on missing: should have passed"),
        (FORBIDDEN, {"hit": {"two"}}, "one failed on forbidden: should have passed"),
        (FORBIDDEN, {"hit": {"one", "two"}}, "two was hit, and did not fail on forbidden"),
        (
            GOOD,
            {"expected": Expected(fails="expired")},
            "no event failed on expired",
        ),
    ],
)
def test_each_harm_makes_a_row_bad(
    account: Account, change: dict[str, Any], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = replace(account, **change)
    assert [found for found in bad.problems if found.startswith(problem)]
    assert chaos._show("a fault", bad)
    assert f"BAD: {problem}" in capsys.readouterr().out


def test_what_a_dying_server_of_the_daq_takes_along_is_no_loss_of_ours() -> None:
    account = replace(
        GOOD,
        expected=Expected(lost_before_us=1),
        truth={*EVENTS, "three"},
        requested=3,
    )
    assert (account.problems, account.lost_before_us) == ([], 1)
    assert replace(account, requested=4).problems


@pytest.mark.parametrize(
    ("account", "in_the_end", "left", "status"),
    [
        (GOOD, GOOD, [], 0),
        (replace(GOOD, hit=set()), GOOD, [], 1),
        (GOOD, replace(GOOD, successes={"one": 2, "two": 1}), [], 1),
        (GOOD, GOOD, ["a process"], 1),
    ],
)
def test_one_problem_is_enough(
    account: Account,
    in_the_end: Account,
    left: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = SimpleNamespace(account_of_all=lambda _: in_the_end)
    monkeypatch.setattr(chaos, "_small_file_system", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(chaos, "running_world", lambda _: contextlib.nullcontext(world))
    monkeypatch.setattr(chaos, "suffer", lambda *_: account)
    monkeypatch.setattr(chaos, "processes_of", lambda _: left)
    assert chaos.run([Fault("a fault", lambda _: None)]) == status


def test_what_does_not_happen_in_time_makes_the_row_bad() -> None:
    nothing = SimpleNamespace(
        keep_alive=lambda: None, service=None, messages=[], look=lambda _: None
    )
    world = World(*[nothing] * 8)  # type: ignore[arg-type]  # none is asked for more
    world.others = nothing  # type: ignore[assignment]
    assert world.wait_for("what happens", lambda: True, 0)
    assert world.row.trouble == []
    assert not world.wait_for("what never happens", lambda: False, 0)
    assert world.row.trouble == ["after 0 s still not: what never happens"]


def test_rows_have_names_of_their_own() -> None:
    names = [fault.name for fault in all_faults()]
    assert len(names) == len(set(names))
    assert max(map(len, names)) < 36


@dataclass(frozen=True)
class Stored:
    event: str
    image: Path
    tensor: Path


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """An event whose files are as they must be."""
    data = REAL_IMAGES[0].read_bytes()
    event = name_of(data).removesuffix(".jpg")
    image = tmp_path / "raw_image" / f"{event}.jpg"
    tensor = tmp_path / "preprocessed_tensor" / f"{event}.npy"
    for file in (image, tensor):
        file.parent.mkdir()
    image.write_bytes(data)
    np.save(tensor, preprocess(decode_image(data, max_pixels=10**6), SPEC))
    return Stored(event, image, tensor)


def test_whole_files_are_whole(stored: Stored, tmp_path: Path) -> None:
    stored.image.with_name(".half.partial").write_bytes(b"half")
    assert damaged(UPath(tmp_path), [stored.event], SPEC) == []
    assert half_files(UPath(tmp_path), SPEC, since=0) == []


def _other_values(file: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.load(file) / 2)
    return buffer.getvalue()


@pytest.mark.parametrize("which", ["image", "tensor"])
@pytest.mark.parametrize("kept", [0, 60, 1000])
def test_half_a_file_is_found(which: str, kept: int, stored: Stored, tmp_path: Path) -> None:
    file: Path = getattr(stored, which)
    file.write_bytes(file.read_bytes()[:kept])
    assert any(str(file) in wrong for wrong in damaged(UPath(tmp_path), [stored.event], SPEC))
    assert any(str(file) in wrong for wrong in half_files(UPath(tmp_path), SPEC, since=0))
    assert half_files(UPath(tmp_path), SPEC, since=time.time() + 1) == []


def test_a_tensor_of_another_image_is_found(stored: Stored, tmp_path: Path) -> None:
    stored.tensor.write_bytes(_other_values(stored.tensor))
    assert damaged(UPath(tmp_path), [stored.event], SPEC)[0].endswith("is not its image's tensor")


@pytest.mark.parametrize("which", ["image", "tensor"])
def test_a_missing_file_is_found(which: str, stored: Stored, tmp_path: Path) -> None:
    file: Path = getattr(stored, which)
    file.unlink()
    assert f"{file} is not there" in damaged(UPath(tmp_path), [stored.event], SPEC)


def test_a_secret_is_found_but_where_it_may_be(tmp_path: Path) -> None:
    for name in ("ours.sqlite", "inbox/stream"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0url?signed=abc\0")
    assert secrets_in(tmp_path, {"a signature": "signed="}, ["inbox"]) == [
        "ours.sqlite holds a signature"
    ]
    assert secrets_in(tmp_path, {"a signature": "other="}, []) == []


def test_the_store_tells_whom_it_has_answered_badly(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    upstream: Any = SimpleNamespace(ca_file=tmp_path / "ca.pem", port=1)  # nobody is there
    hit: set[str] = set()
    with FaultyStore(tmp_path / "store", upstream).running() as store:

        def get(event: str) -> int:
            url = f"{store.endpoint}/bucket/{event}.jpg"
            return requests.get(url, verify=str(store.ca_file), timeout=10).status_code

        with store.answering(lambda d: d.send(403, b""), hit, lambda event: event == "one"):
            assert get("one") == 403
            with pytest.raises(requests.ConnectionError):
                get("two")
        with pytest.raises(requests.ConnectionError):
            get("one")
    assert hit == {"one"}
