"""`python -m bench peers`: its arithmetic, its tables and plots, and one very short run of two peers."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from bench.peers import build, encryption, figures, machine, page, plot, results, roster, runs, serve
from bench.peers.cases import CASES, CPU, HANDLED, LOST, MEMORY, P99, PER_CORE, RATE, UNHANDLED, Case, Plan, Target
from bench.processes import NotServing, started

ROOT = Path(__file__).parent.parent
OURS, THEIRS = "portico-green", "asyncio-streams"
needs_the_load = pytest.mark.skipif(
    sys.platform != "linux" or not build.possible(), reason="the load needs epoll, and a C compiler (cc) to make it"
)


@pytest.fixture(scope="module")
def encrypted() -> None:
    """The load over TLS, or a skip that says why there is none."""
    if sys.platform != "linux" or not build.possible():
        pytest.skip("the load needs epoll, and a C compiler (cc) to make it")
    build.programs()
    try:
        encryption.ready()
    except encryption.CannotEncryptError as error:
        pytest.skip(str(error))


CASE = Case(
    "echo-50", "Echo <&>", "echo", ("echo", "-c", "50"), (RATE, P99),
    targets=(Target(OURS, 1.6, THEIRS), Target(OURS, 20_000, figure=P99), Target(OURS, 2, "gevent")),
    plots=(RATE,),
)  # fmt: skip


def sample(messages: int, **others: Any) -> dict[str, Any]:
    usual = {"seconds": 2.0, "p50": 10.0, "p99": 100.0, "cpu": 1.0, "server_cpu": 1.9, "errors": 0, "stalled": 0}
    return {**usual, "messages": messages, **others}


ROUNDS = [
    {OURS: sample(400), THEIRS: sample(200)},
    {OURS: sample(100), THEIRS: sample(100)},
    {OURS: sample(900), THEIRS: sample(300)},
]


def result(rounds: list[dict[str, Any]] = ROUNDS) -> results.Result:
    return results.Result("echo-50", "2026-01-01 00:00", Plan(3, 2.0, 0.1, 10), rounds, {"gevent": "not installed"})


def test_a_median_stands_with_its_extremes() -> None:
    assert figures.value(ROUNDS, RATE, OURS) == figures.Spread(200.0, 50.0, 450.0)
    assert figures.value(ROUNDS, RATE, "gevent") is None


def test_ratios_are_made_within_a_round() -> None:
    assert figures.ratio(ROUNDS, RATE, OURS, THEIRS) == figures.Spread(2.0, 1.0, 3.0)


def test_a_round_that_one_of_the_two_missed_makes_no_ratio() -> None:
    rounds = [*ROUNDS[:1], {OURS: sample(1000)}]
    assert figures.ratio(rounds, RATE, OURS, THEIRS) == figures.Spread(2.0, 2.0, 2.0)


def test_the_best_of_several_is_found_within_a_round() -> None:
    rounds = [
        {OURS: sample(100), THEIRS: sample(50), "gevent": sample(200)},
        {OURS: sample(100), THEIRS: sample(400), "gevent": sample(200)},
        {OURS: sample(100), THEIRS: sample(100)},
    ]
    assert figures.ratio(rounds, RATE, OURS, (THEIRS, "gevent")) == figures.Spread(0.5, 0.25, 1.0)
    slow, fast = (sample(1, p99=p99) for p99 in (200.0, 100.0))
    assert figures.ratio([{OURS: fast, THEIRS: fast, "gevent": slow}], P99, OURS, (THEIRS, "gevent")) == figures.Spread(
        1.0, 1.0, 1.0
    )


def test_handshakes_are_told_by_the_servers_time_as_the_load_is_busy() -> None:
    assert PER_CORE.read(sample(100, server_cpu=0.5, cpu=2.0)) == 200
    assert PER_CORE.read(sample(0, server_cpu=0.0)) is None


def test_targets_are_met_from_the_right_side_or_not_measured() -> None:
    assert [verdict.met for verdict in figures.judge(CASE, ROUNDS)] == [True, True, None]
    slow = [{OURS: sample(100, p99=20_001.0), THEIRS: sample(100)}]
    assert [verdict.met for verdict in figures.judge(CASE, slow)] == [False, False, None]


def test_figures_of_nothing_are_none() -> None:
    nothing = sample(0, p99=0.0, idle=0, rss_before=1, rss_with=1)
    assert [figure.read(nothing) for figure in (P99, CPU, MEMORY)] == [None, None, None]


def test_memory_is_in_thousands_of_bytes() -> None:
    assert MEMORY.read(sample(1, idle=1024, rss_before=1000, rss_with=2000)) == pytest.approx(1.0)


def test_datagrams_lost_are_a_share_of_all() -> None:
    assert LOST.read(sample(75, lost=25)) == 25
    assert LOST.read(sample(0, lost=0)) is None


def test_ingest_is_what_handlers_have_counted_without_the_warm_up() -> None:
    taken = sample(90, warmed=100, sent=400, server={"handled": 180})
    assert HANDLED.read(taken) == 40
    assert UNHANDLED.read(taken) == 80


def test_a_load_that_floods_is_the_limit_only_if_nothing_was_lost() -> None:
    case = next(case for case in CASES if case.floods)
    for lost, bound in ((0, True), (1, False)):
        taken = sample(1, cpu=2.0, lost=lost, sent=lost + 1, sending=2.0, warmed=0, server={"handled": 1})
        assert ("load-bound" in page.tables(case, result([{"uvloop-udp": taken}]))) is bound


def test_the_table_shows_medians_ratios_and_verdicts() -> None:
    shown = page.tables(CASE, result())
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line]
    assert cells[0][:4] == ["server", "rate, msg/s", "ratio to asyncio-streams", "spread"]
    assert cells[2][:4] == [roster.named(OURS).title, "200", "2.00", "1.00-3.00"]
    assert [row[-1] for row in cells[-3:]] == ["yes", "yes", "not measured"]


def test_a_busy_load_and_errors_are_told() -> None:
    shown = page.tables(CASE, result([{OURS: sample(1, cpu=1.95, errors=3, stalled=2)}]))
    assert "load-bound" in shown
    assert "| 5 " in shown


def test_the_plot_is_well_formed_and_to_scale() -> None:
    rows = [
        plot.Bar("a <b>", figures.Spread(100, 90, 200), ours=True),
        plot.Bar("c", figures.Spread(50, 50, 50)),
    ]
    picture = ElementTree.fromstring(plot.bars("Title & more", "msg/s", rows))
    space = "{http://www.w3.org/2000/svg}"
    _, first, second = [float(bar.get("width", "0")) for bar in picture.iter(f"{space}rect")]
    assert first == pytest.approx(2 * second)
    assert "a <b>" in [text.text for text in picture.iter(f"{space}text")]
    ElementTree.fromstring(plot.bars("Nothing", "", []))


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    results.write(result(), tmp_path)
    kept = results.read(tmp_path)
    assert kept == [result()]
    page.write(kept, tmp_path / "benchmarks.md")
    text = (tmp_path / "benchmarks.md").read_text()
    assert "(benchmarks/echo-50.svg)" in text
    assert (tmp_path / "benchmarks" / "echo-50.svg").read_text().startswith("<svg")
    assert "gevent StreamServer, not installed" in text


def test_every_peer_can_be_served_and_every_target_is_of_a_peer() -> None:
    names = [peer.name for peer in roster.PEERS]
    assert set(names) == {*serve.ENTRIES, *(peer.name for peer in roster.PEERS if peer.program)}
    for case in CASES:
        assert case.reference in case.peers
        assert {target.peer for target in case.targets} <= set(case.peers)
        for than in (target.than for target in case.targets):
            assert {than} if isinstance(than, str) else set(than or ()) <= set(case.peers)


@pytest.mark.parametrize(("files", "idle"), [(20_000, 10_000), (4096, 3896), (100, 1), (-1, 10_000)])
def test_idle_connections_are_as_many_as_files_allow(files: int, idle: int) -> None:
    assert machine.possible_idle(10_000, files) == idle


def test_a_peer_that_is_not_there_says_so() -> None:
    code = "from bench.peers.process import need; need('no_such_package')"
    with pytest.raises(NotServing, match="not installed"), started([sys.executable, "-c", code]):
        pytest.fail("it serves")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "peers", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_says_what_it_can_measure() -> None:
    done = bench("--only", "nothing")
    assert done.returncode == 2
    assert "echo-50" in done.stderr


@needs_the_load
@pytest.mark.timeout(120)
def test_measures_two_peers(tmp_path: Path) -> None:
    arguments = ["--only", "echo-50", "--peers", "c-epoll,socketserver", "--rounds", "2", "--seconds", "0.1"]
    done = bench(*arguments, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "echo-50.json").read_text())
    assert [list(samples) for samples in kept["rounds"]] == [["c-epoll", "socketserver"]] * 2
    for samples in kept["rounds"]:
        for taken in samples.values():
            assert taken["messages"] > 0
            assert taken["errors"] == 0
            assert taken["server"]["peak"] > 0
    assert kept["told"]["versions"]["Python"]
    assert "socketserver.ThreadingTCPServer" in (tmp_path / "benchmarks.md").read_text()


@needs_the_load
@pytest.mark.timeout(120)
def test_measures_datagrams(tmp_path: Path) -> None:
    """In one of three tries at the latest: on a busy machine a peer may not have had its turn."""
    assert any(measured_datagrams(tmp_path / str(number)) for number in range(3))


def measured_datagrams(folder: Path) -> bool:
    peers = "c-recvmmsg,c-recvfrom,portico-udp,portico-udp-threads,socketserver-udp,asyncio-udp"
    arguments = ["--only", "udp,udp-1200,udp-ingest", "--peers", peers, "--rounds", "1", "--seconds", "0.1"]
    folder.mkdir()
    done = bench(*arguments, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    messages = []
    for name in ("udp", "udp-1200", "udp-ingest"):
        (samples,) = json.loads((folder / f"{name}.json").read_text())["rounds"]
        assert list(samples) == [peer.name for peer in roster.PEERS if peer.name in peers.split(",")]
        for taken in samples.values():
            messages.append(taken["messages"])
            assert taken["errors"] == 0
            if name == "udp-ingest":
                received = taken["warmed"] + taken["messages"]
                assert taken["sent"] == taken["messages"] + taken["lost"]
                assert 0.9 * received <= taken["server"]["handled"] <= received
    assert "Portico UDPServer" in (folder / "benchmarks.md").read_text()
    return all(messages)


def udp_load(port: int, *arguments: str) -> dict[str, Any]:
    build.programs()
    command = [str(build.FOLDER / "udp_load"), "echo", "-p", str(port), "-c", "2", "-n", "4", "-w", "0", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@needs_the_load
def test_what_a_server_loses_or_garbles_is_counted_and_the_load_goes_on() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(20)

        def serve() -> None:
            for number in itertools.count():
                data, address = sock.recvfrom(1024)
                if not data:
                    return
                if number % 3:  # of three, one is lost, one echoed, and one echoed with its last byte changed
                    sock.sendto(data if number % 3 == 1 else data[:-1] + b"!", address)

        serving = threading.Thread(target=serve)
        serving.start()
        said = udp_load(sock.getsockname()[1], "-t", "0.7")
        sock.sendto(b"", sock.getsockname())
        serving.join(20)
    assert said["messages"] > 0
    assert said["lost"] > 0
    assert said["first_error"] == "wrong bytes"


@needs_the_load
def test_a_load_without_a_server_ends_in_time() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = sock.getsockname()[1]
    said = udp_load(nobody, "-t", "0.4")
    assert said["messages"] == 0
    assert said["lost"] > 0


@pytest.mark.timeout(120)
def test_measures_echoes_and_handshakes_over_tls(encrypted: None, tmp_path: Path) -> None:
    names = ("tls", "tls-16k", "tls-handshakes", "tls-resumed")
    peers = ("c-openssl", "portico-green", "portico-async-streams", "socketserver")
    arguments = ["--only", ",".join(names), "--peers", ",".join(peers), "--rounds", "1", "--seconds", "0.2"]
    done = bench(*arguments, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in names:
        (samples,) = json.loads((tmp_path / f"{name}.json").read_text())["rounds"]
        assert list(samples) == list(peers)
        for peer, taken in samples.items():
            assert taken["messages"] > 0
            assert taken["errors"] == 0, taken["first_error"]
            assert (taken["resumed"] > 0) is (name == "tls-resumed")
            if peer != "socketserver":
                assert taken["truncated"] == 0
    assert "the best in Python" in (tmp_path / "benchmarks.md").read_text()


@pytest.mark.parametrize(
    ("peer", "service"),
    [("portico-plain", "handshakes"), ("portico-threads", "handshakes"), ("portico-threads", "proxy")],
)
def test_a_header_or_a_handshake_goes_first(encrypted: None, peer: str, service: str) -> None:
    program = ["tls_load", "full"] if service == "handshakes" else ["load", "connect", "-x", "2"]
    with started(runs.server_command(peer, service)) as server:
        command = [str(build.FOLDER / program[0]), *program[1:], "-p", str(server.port), "-c", "4", "-t", "0.2"]
        said = json.loads(subprocess.run(command, capture_output=True, timeout=30, check=True).stdout)
    assert said["messages"] > 0
    assert said["errors"] == 0, said["first_error"]


def test_a_server_without_tls_is_an_error_for_each_connection_and_the_load_ends(encrypted: None) -> None:
    with started(runs.server_command("portico-threads", "echo")) as server:
        command = [str(build.FOLDER / "tls_load"), "full", "-p", str(server.port), "-c", "4", "-t", "0.2"]
        said = json.loads(subprocess.run(command, capture_output=True, timeout=30, check=True).stdout)
    assert said["messages"] == 0
    assert said["errors"] >= 4
    assert said["first_error"].startswith("handshake: ")


def test_the_command_openssl_makes_the_certificate_if_there_is_no_trustme(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['trustme'] = None; from pathlib import Path;"
        "from bench.peers import build, encryption; build.FOLDER = Path(sys.argv[1]); print(encryption.certificate())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    if "neither trustme nor openssl" in done.stderr:
        pytest.skip("there is no command openssl")
    assert done.stdout.strip() == str(tmp_path / "certificate.pem"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["certificate.pem"]


def test_cases_over_tls_are_left_out_with_a_word_where_openssl_is_not_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tls_load"
    program.write_text("#!/bin/sh\necho libssl.so.3 cannot be loaded >&2\nexit 3\n")
    program.chmod(0o700)
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert [case.name for case in CASES if runs.lacking(case) == "libssl.so.3 cannot be loaded"] == [
        case.name for case in CASES if case.name.startswith("tls")
    ]
