#!/usr/bin/env python3
"""Does a fast request ever wait behind a slow one while another worker of Puma is idle?

Real Puma with 4 workers of 1 thread, a unix socket each; 4 clients in closed loop, each request on a connection of its
own; 10 % of them take 400 ms, the others 10 ms. With as many clients as threads nobody ever needs to wait: every fast
request that takes much longer than 10 ms was sent to the wrong worker, or was held up on its way.

    benches/dispatch.py PALISADE [--puma COMMAND]... [--runs 5] [--seconds 10] [--ways direct,palisade,haproxy]

Each round measures three ways to the same Puma, one after the other: `direct` is Puma without a proxy, each client on a worker's
socket of its own, which is the noise of Puma and of the machine; `palisade` is Palisade; `haproxy`, where it is installed, is an
HAProxy that was configured by hand for this: a server for each worker's socket, one request each, least connections, closed
each time up to Puma 6.6 and kept alive from 7 on. Before the first round each way is used for 2 s that do not count: code gets
warm, and Puma's version and threads become known.

Prints p50, p99 and worst of the fast requests, and fails where Palisade's p99 > 1.15 x p50 or worst > 2.5 x p50 in the median of
the rounds; the other ways are not judged. Loopback only; ends what it starts.
"""

import argparse
import multiprocessing
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

WORKERS = 4
FAST, SLOW, SHARE = 10, 400, 0.1
P99, WORST = 1.15, 2.5
WAYS = ["direct", "palisade", "haproxy"]
WARM_UP = 2
HERE = pathlib.Path(__file__).resolve().parent

APP = """
run lambda { |env|
  sleep(Integer(env["PATH_INFO"].delete_prefix("/")) / 1000.0)
  [200, { "content-type" => "text/plain", "content-length" => "3" }, ["ok\\n"]]
}
"""

PUMA = """
workers %d
threads 1, 1
environment "production"
activate_control_app "unix://{dir}/control.sock", { no_token: true }
lines = "{lines}"
instance_eval File.read(lines), lines
""" % WORKERS

PROXY = """
domains = ["localhost"]
[[listener]]
address = "127.0.0.1:{port}"
protocol = "http"
[upstream]
address = "unix:{dir}/w*.sock"
control_url = "unix:{dir}/control.sock"
[buffer]
dir = "{dir}"
[log]
access_file = "{dir}/access.log"
[admin]
listen = "off"
"""

HAPROXY = """
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 5s
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  balance leastconn
  option {reuse}
{servers}
"""


def client(number, address, seconds, seed, results):
    """One client in closed loop: sends the durations of its fast requests in milliseconds."""
    dice = random.Random(seed)
    fast = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        duration = SLOW if dice.random() < SHARE else FAST
        begin = time.perf_counter()
        with connect(address, number) as sock:
            sock.sendall(b"GET /%d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % duration)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"ok\n"):
            raise SystemExit(f"not the answer that was asked for: {answer!r}")
        if duration == FAST:
            fast.append((time.perf_counter() - begin) * 1000)
    results.put(fast)


def connect(address, number):
    if isinstance(address, tuple):
        sock = socket.create_connection(address, timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(address.format(number))
    return sock


def measure(address, seconds, seed):
    results = multiprocessing.Queue()
    clients = [multiprocessing.Process(target=client, args=(n, address, seconds, seed * 100 + n, results)) for n in range(WORKERS)]
    for process in clients:
        process.start()
    fast = sorted(duration for _ in clients for duration in results.get(timeout=seconds + 30))
    for process in clients:
        process.join()
    return statistics.median(fast), fast[int(len(fast) * 0.99)], fast[-1], len(fast)


def until(what, probe, process):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"ended by itself while waiting: {what}")
        if probe():
            return
        time.sleep(0.05)
    sys.exit(f"did not happen: {what}")


def listens(address):
    try:
        connect(address, 0).close()
        return True
    except OSError:
        return False


def stop(process):
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def palisade(arguments, folder, port, _version):
    (folder / "proxy.toml").write_text(PROXY.format(dir=folder, port=port))
    return [arguments.palisade, "run", "--config", str(folder / "proxy.toml")]


def haproxy(_arguments, folder, port, version):
    servers = "\n".join(f"  server w{n} unix@{folder}/w{n}.sock maxconn 1" for n in range(WORKERS))
    reuse = "http-keep-alive" if int(version.split()[-1].split(".")[0]) >= 7 else "http-server-close"
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, reuse=reuse, servers=servers))
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


def bench(command, arguments, report):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="palisade-dispatch."))
    started = []
    try:
        (folder / "config.ru").write_text(APP)
        lines = HERE.parent / "deploy/puma/palisade.rb"
        (folder / "puma.rb").write_text(PUMA.replace("{dir}", str(folder)).replace("{lines}", str(lines)))
        log = (folder / "puma.log").open("w")
        environment = {"PATH": "/usr/bin:/bin", "PALISADE_SOCKETS": str(folder)}
        puma = subprocess.Popen(
            command.split() + ["-C", str(folder / "puma.rb"), str(folder / "config.ru")],
            env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True,
        )
        started.append(puma)
        until("Puma's workers boot", lambda: (folder / "puma.log").read_text().count(" booted ") >= WORKERS, puma)
        version = subprocess.run(command.split() + ["--version"], capture_output=True, text=True).stdout.strip()
        addresses = {"direct": str(folder / "w{}.sock")}
        for way, front in ("palisade", palisade), ("haproxy", haproxy):
            if way in arguments.ways:
                addresses[way] = launch(way, front, arguments, folder, version, started)
        for way in arguments.ways:
            measure(addresses[way], WARM_UP, 0)
        runs = {way: [] for way in arguments.ways}
        for number in range(1, arguments.runs + 1):
            for way in arguments.ways:
                run = measure(addresses[way], arguments.seconds, number)
                runs[way].append(run)
                p50, p99, worst, count = run
                print(
                    f"{version:22} {number} {way:9} p50 {p50:6.1f}  p99 {p99:6.1f} ({p99 / p50:.2f})  "
                    f"worst {worst:6.1f} ({worst / p50:.2f})  of {count}",
                    flush=True,
                )
        for way in arguments.ways:
            p99 = statistics.median(p99 / p50 for p50, p99, _, _ in runs[way])
            worst = statistics.median(worst / p50 for p50, _, worst, _ in runs[way])
            report.append((version, way, p99, worst))
    finally:
        for process in reversed(started):
            stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def launch(way, front, arguments, folder, version, started):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    proxy = subprocess.Popen(front(arguments, folder, address[1], version), stderr=(folder / f"{way}.log").open("w"))
    started.append(proxy)
    until(f"{way} listens", lambda: listens(address), proxy)
    return address


def ways(text):
    chosen = text.split(",")
    if unknown := [way for way in chosen if way not in WAYS]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(WAYS)}, not {', '.join(unknown)}")
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("palisade")
    parser.add_argument("--puma", action="append")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--ways", type=ways, default=WAYS)
    arguments = parser.parse_args()
    if "haproxy" in arguments.ways and shutil.which("haproxy") is None:
        print("haproxy is not installed: left out")
        arguments.ways = [way for way in arguments.ways if way != "haproxy"]
    report = []
    for command in arguments.puma or ["puma"]:
        bench(command, arguments, report)
    failed = False
    for version, way, p99, worst in report:
        missed = way == "palisade" and (p99 > P99 or worst > WORST)
        failed = failed or missed
        bars = f" (at most {P99} and {WORST})" if way == "palisade" else ""
        print(f"{version:22} {way:9} median: p99 {p99:.2f} x p50, worst {worst:.2f} x p50{bars}{'  MISSED' if missed else ''}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
