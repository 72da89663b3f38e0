"""Logging in at the DAQ's server, in every way there is; what is secret is never said."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import nats.errors
import nkeys
import psutil
import pytest

from cygno_assets.daq.source import DaqClient
from cygno_assets.services.certificates import make_certificates
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import free_port
from cygno_assets_tests.daq.recording import (
    SUBJECT,
    Host,
    daq,
    event,
    other_server,
    publish,
    recorders,
    recording,
    stored_payloads,
    until,
)
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from nats.aio.msg import Msg

SECRET = "hunter2"


def records_one_event(
    daq_url: str, inbox_url: str, daq_options: dict[str, object], **settings: object
) -> None:
    """Fails unless a recorder with these settings hears the DAQ."""

    async def work() -> None:
        async with recording(daq_url, inbox_url, **settings) as recorder:
            await until("it listens", lambda: recorder.counts.daq_connected)
            async with daq(daq_url, **daq_options) as client:
                await publish(client, event(1))
                await until("it is stored", lambda: recorder.counts.stored == 1)

    asyncio.run(work())
    assert stored_payloads(inbox_url) == [event(1)]


def is_refused(
    daq_url: str, inbox_url: str, why: str, caplog: pytest.LogCaptureFixture, **settings: object
) -> None:
    """Fails unless a recorder with these settings is refused, says why but no secret, and tries on.

    It says more than it usually does, from then on.
    """
    caplog.set_level("DEBUG")

    async def work() -> None:
        async with recording(daq_url, inbox_url, **settings) as recorder:
            await until("it says why", lambda: f"{why}; trying on" in caplog.text)
            assert not recorder.counts.daq_connected

    asyncio.run(work())
    assert SECRET not in caplog.text


USER = f'authorization {{ user: "anna", password: "{SECRET}" }}'
TOKEN = f'authorization {{ token: "{SECRET}" }}'


@pytest.mark.parametrize(
    ("server", "right", "wrong"),
    [
        (
            USER,
            {"daq_nats_user": "anna", "daq_nats_password": SECRET},
            {"daq_nats_user": "anna", "daq_nats_password": "hunter3"},
        ),
        (TOKEN, {"daq_nats_token": SECRET}, {"daq_nats_token": "hunter3"}),
    ],
    ids=["user", "token"],
)
def test_user_and_token(
    tmp_path: Path,
    inbox_url: str,
    caplog: pytest.LogCaptureFixture,
    server: str,
    right: dict[str, object],
    wrong: dict[str, object],
) -> None:
    options = {name.removeprefix("daq_nats_"): value for name, value in right.items()}
    with other_server(tmp_path / "daq", server) as url:
        is_refused(url, inbox_url, "nats: 'Authorization Violation'", caplog, **wrong)
        records_one_event(url, inbox_url, options, **right)

    assert "hunter" not in caplog.text


def test_secrets_of_a_recorder_process_are_in_no_log_and_no_argument(
    tmp_path: Path, inbox_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYGNO_DAQ_NATS_USER", "anna")
    monkeypatch.setenv("CYGNO_DAQ_NATS_PASSWORD", "hunter3")
    with (
        other_server(tmp_path / "daq", USER) as url,
        recorders(tmp_path, url, inbox_url, "one") as one,
    ):
        log = tmp_path / "one.log"
        service = one.services["one"].start()
        wait_until("it is refused", lambda: "Authorization Violation" in log.read_text())
        assert not any("hunter" in word for word in psutil.Process(service.pid).cmdline())
        monkeypatch.setenv("CYGNO_DAQ_NATS_PASSWORD", SECRET)
        one.start()

    assert f"connected to the DAQ at {url}" in log.read_text()
    assert "hunter" not in log.read_text()


def jwt(issuer: nkeys.KeyPair, subject: str, kind: str, **claims: object) -> str:
    """As NATS' tool nsc makes them."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    claim = {
        "jti": os.urandom(8).hex(),
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "name": kind,
        "sub": subject,
        "nats": {"type": kind, "version": 2, **claims},
    }
    signed = ".".join(
        part(json.dumps(each).encode()) for each in ({"typ": "JWT", "alg": "ed25519-nkey"}, claim)
    )
    return f"{signed}.{part(issuer.sign(signed.encode()))}"


def key_pair(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))


def credentials(token: str, seed: bytes) -> str:
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )


def test_credentials_file(tmp_path: Path, inbox_url: str, caplog: pytest.LogCaptureFixture) -> None:
    operator = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    account = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    user, stranger = (key_pair(nkeys.PREFIX_BYTE_USER) for _ in range(2))
    account_id = account.public_key.decode()
    unlimited = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1}
    limits = unlimited | {"exports": -1, "wildcards": True}
    account_jwt = jwt(operator, account_id, "account", limits=limits)
    user_jwt = jwt(account, user.public_key.decode(), "user", subs=-1, data=-1, payload=-1)
    good, bad = tmp_path / "good.creds", tmp_path / "bad.creds"
    good.write_text(credentials(user_jwt, bytes(user.seed)))
    bad.write_text(credentials(user_jwt, bytes(stranger.seed)))

    with other_server(
        tmp_path / "daq",
        f"operator: {jwt(operator, operator.public_key.decode(), 'operator')}",
        "resolver: MEMORY",
        f"resolver_preload: {{ {account_id}: {account_jwt} }}",
    ) as url:
        is_refused(
            url,
            inbox_url,
            "nats: 'Authorization Violation'",
            caplog,
            daq_nats_credentials_file=bad,
        )
        records_one_event(
            url, inbox_url, {"user_credentials": str(good)}, daq_nats_credentials_file=good
        )

    assert user_jwt not in caplog.text
    assert bytes(user.seed).decode() not in caplog.text


def test_tls_with_an_authority(
    tmp_path: Path, inbox_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_certificates(tmp_path / "ours")
    make_certificates(tmp_path / "others")
    ca_file = tmp_path / "ours" / "ca.pem"
    files = {name: json.dumps(str(tmp_path / "ours" / f"{name}.pem")) for name in ("cert", "key")}
    with other_server(
        tmp_path / "daq",
        f"tls {{ cert_file: {files['cert']}, key_file: {files['key']} }}",
        USER,
    ) as url:
        secrets = {"daq_nats_user": "anna", "daq_nats_password": SECRET}
        no_pem = tmp_path / "no.pem"
        no_pem.write_text("no certificate")
        is_refused(url, inbox_url, "SSLCertVerificationError", caplog, **secrets)
        for other, why in (
            (tmp_path / "others" / "ca.pem", "SSLCertVerificationError"),
            (no_pem, "SSLError"),
        ):
            caplog.clear()
            is_refused(url, inbox_url, why, caplog, daq_nats_ca_file=other, **secrets)
        records_one_event(
            url,
            inbox_url,
            {
                "user": "anna",
                "password": SECRET,
                "tls": ssl.create_default_context(cafile=str(ca_file)),
            },
            daq_nats_ca_file=ca_file,
            **secrets,
        )
        assert "recording daq/data" in caplog.text
        assert SECRET not in caplog.text


def test_no_error_ends_the_search_for_a_second_connection(
    tmp_path: Path, inbox_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first does not answer any more, and just now the CA file is being exchanged."""
    make_certificates(tmp_path / "ours")
    ca_file, away = tmp_path / "ours" / "ca.pem", tmp_path / "away.pem"
    files = {name: json.dumps(str(tmp_path / "ours" / f"{name}.pem")) for name in ("cert", "key")}

    async def work(server_url: str) -> None:
        host = Host(server_url, resets=False)
        tls = ssl.create_default_context(cafile=str(ca_file))
        async with (
            host.running() as url,
            recording(url, inbox_url, daq_nats_ca_file=ca_file) as recorder,
            daq(server_url, tls=tls) as client,
        ):
            counts = recorder.counts
            for number in (1, 2):  # what fails then is the second connection
                await until("it listens", lambda: counts.daq_connected)
                ca_file.rename(away)
                host.power_fails()
                await until("it is silent", lambda: not counts.daq_connected)
                await until("it fails", lambda: "FileNotFoundError; trying on" in caplog.text)
                away.rename(ca_file)
                await until("it listens again", lambda: counts.daq_connected)
                await publish(client, event(number))
                await until("it is stored", lambda: counts.stored == number)  # noqa: B023  # now
                caplog.clear()

    with other_server(
        tmp_path / "daq", f"tls {{ cert_file: {files['cert']}, key_file: {files['key']} }}"
    ) as server_url:
        asyncio.run(work(server_url))


def test_a_late_answer_to_who_has_given_up_does_no_harm(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "daq", tmp_path / "daq.log", name="DAQ")
    heard: list[bytes] = []

    async def hear(message: Msg) -> None:
        heard.append(message.data)

    async def work() -> None:
        client = DaqClient()
        await client.connect(server.url)
        await client.subscribe(SUBJECT, cb=hear)
        await client.flush()
        os.kill(server.service.pid, signal.SIGSTOP)
        with pytest.raises(nats.errors.FlushTimeoutError):
            await client.flush(timeout=1)
        os.kill(server.service.pid, signal.SIGCONT)
        await publish(client, event(1))
        await until("it is heard", lambda: heard == [event(1)])
        assert client.is_connected
        await client.close()

    try:
        server.start()
        asyncio.run(work())
    finally:
        server.stop()


@pytest.mark.parametrize("insisting", ["tls://", "a CA file"])
def test_no_password_is_sent_to_a_server_without_tls_that_should_have_it(
    tmp_path: Path, inbox_url: str, insisting: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_certificates(tmp_path / "ours")
    heard: list[bytes] = []
    port = free_port()
    ended = threading.Event()

    def listen(server: socket.socket) -> None:
        info = {"server_id": "x", "version": "2.12.0", "max_payload": 1024, "auth_required": True}
        while not ended.is_set():
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            with client:
                client.settimeout(5)
                client.sendall(b"INFO " + json.dumps(info).encode() + b"\r\n")
                try:
                    heard.append(client.recv(4096))
                except TimeoutError:
                    heard.append(b"")

    settings: dict[str, object] = (
        {} if insisting == "tls://" else {"daq_nats_ca_file": tmp_path / "ours" / "ca.pem"}
    )
    scheme = "tls" if insisting == "tls://" else "nats"
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(0.2)
        thread = threading.Thread(target=listen, args=(server,))
        thread.start()
        try:
            is_refused(
                f"{scheme}://127.0.0.1:{port}",
                inbox_url,
                "nats: secure connection not available",
                caplog,
                daq_nats_user="anna",
                daq_nats_password=SECRET,
                **settings,
            )
            wait_until("it was there", lambda: heard)
        finally:
            ended.set()
            thread.join()

    assert not any(heard)
