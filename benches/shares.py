#!/usr/bin/env python3
"""What a greedy client costs the others, and what Palisade adds to the first event of a stream.

Real Puma with 5 threads. An honest client asks for pages of 10 ms, one after the other: alone, and while a client of another
address has 50 requests of 1.5 s open all the time. Then the time to the first event of an event stream, by Puma itself and
through Palisade.

    benches/shares.py PALISADE [--puma COMMAND] [--seconds 15]

Fails where the honest client's p99 grows by more than 20 %, or the median first event comes 5 ms later. Run it alone on the
machine. Loopback only; ends what it starts.
"""

import argparse
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from overload import PALISADE, listens, p99, stop, until

APP = """
run lambda { |env|
  case env["PATH_INFO"]
  when %r{\\A/(\\d+)\\z}
    sleep(Integer($1) / 1000.0)
    [200, { "content-type" => "text/plain", "content-length" => "3" }, ["ok\\n"]]
  else
    [200, { "content-type" => "text/event-stream" }, Enumerator.new { |out| out << "data: 0\\n\\n"; sleep 0.05; out << "data: 1\\n\\n" }]
  end
}
"""

PUMA = """
workers 0
threads 5, 5
environment "production"
activate_control_app "unix://{dir}/control.sock", {{ no_token: true }}
bind "unix://{dir}/w0.sock?umask=0077"
"""


def connect(address, source):
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(address)
        return sock
    return socket.create_connection(("127.0.0.1", address), timeout=30, source_address=(source, 0))


def first(address, target, source, until_closed):
    """Seconds to the first byte of the body, or to the end."""
    begin = time.perf_counter()
    with connect(address, source) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
            if b"data: 0" in answer and not until_closed:
                break
        took = time.perf_counter() - begin
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"not the answer that was asked for: {answer[:60]!r}")
    return took


def honest(port, seconds):
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        times.append(first(port, "/10", "127.0.0.2", True))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("palisade")
    parser.add_argument("--puma", default="puma")
    parser.add_argument("--seconds", type=int, default=15)
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="palisade-shares."))
    started, over = [], threading.Event()
    greedy = []
    try:
        (folder / "config.ru").write_text(APP)
        (folder / "puma.rb").write_text(PUMA.format(dir=folder))
        log = (folder / "puma.log").open("w")
        command = arguments.puma.split() + ["-C", str(folder / "puma.rb"), str(folder / "config.ru")]
        puma = subprocess.Popen(command, env={"PATH": "/usr/bin:/bin"}, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        started.append(puma)
        until("Puma listens", lambda: (folder / "w0.sock").exists(), puma)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (folder / "proxy.toml").write_text(PALISADE.format(dir=folder, port=port, deadline=30))
        palisade = subprocess.Popen([arguments.palisade, "run", "--config", str(folder / "proxy.toml")], stderr=(folder / "proxy.log").open("w"))
        started.append(palisade)
        until("Palisade listens", lambda: listens(port), palisade)
        time.sleep(2.5)
        honest(port, 2)
        alone = honest(port, arguments.seconds)

        def take():
            while not over.is_set():
                try:
                    first(port, "/1500", "127.0.0.3", True)
                except (OSError, RuntimeError):
                    time.sleep(0.1)  # refused, or not in time: what becomes of him is not judged

        greedy = [threading.Thread(target=take, daemon=True) for _ in range(50)]
        for thread in greedy:
            thread.start()
        # The first three of his begin while he is alone; from then on he has his share.
        time.sleep(4)
        beside = honest(port, arguments.seconds)
        growth = p99(beside) / p99(alone) - 1
        print(f"honest client: alone p50 {statistics.median(alone) * 1000:.1f} ms, p99 {p99(alone) * 1000:.1f} ms; beside 50 slow requests "
              f"p50 {statistics.median(beside) * 1000:.1f} ms, p99 {p99(beside) * 1000:.1f} ms ({growth:+.0%}), worst {max(beside) * 1000:.1f} ms")
        over.set()
        for thread in greedy:
            thread.join(timeout=60)
        direct, through = [], []
        for _ in range(60):
            direct.append(first(str(folder / "w0.sock"), "/events", None, False))
            through.append(first(port, "/events", "127.0.0.2", False))
            time.sleep(0.06)
        added = (statistics.median(through) - statistics.median(direct)) * 1000
        print(f"first event: {statistics.median(direct) * 1000:.2f} ms by Puma, {statistics.median(through) * 1000:.2f} ms through Palisade ({added:+.2f} ms)")
        sys.exit(1 if growth > 0.2 or added > 5 else 0)
    finally:
        over.set()
        for process in reversed(started):
            stop(process)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
