#!/usr/bin/env python3
"""What is left of Puma when ten times as many requests come as it can serve?

Real Puma with 2 workers of 2 threads; a request takes it 20 ms, so it can serve about 200 a second. First a closed loop
with as many clients as threads measures what it really serves: the capacity. Then requests come in an open loop, at ten
times that rate, for a minute, each on a connection of its own, from many addresses, and none waits for another's answer.

    benches/overload.py PALISADE [--puma COMMAND] [--seconds 60] [--times 10] [--deadline 1] [--by-network] [--also nginx] [--also haproxy]

Prints and judges: goodput (answers 200 within the deadline and a second) against the capacity, at least 95 %; p99 of what
was answered 200, at most the deadline and the p99 of a Puma with as many clients as threads; p99 of the refusals, at most
5 ms, the delays of this generator included. `--also` puts another proxy that is installed in Palisade's place, with its
usual settings, for comparison. The clients are of 250 networks in turn; with `--by-network` 250 of one come after 250 of
another, each time as newcomers in a full queue, for whom others give way that have waited already. Run it alone on the machine.
Loopback only; ends what it starts.
"""

import argparse
import getpass
import multiprocessing
import os
import pathlib
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

WORKERS, THREADS, SERVICE = 2, 2, 20
HERE = pathlib.Path(__file__).resolve().parent
REQUEST = b"GET /work HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

APP = """
run lambda { |env|
  sleep(%d / 1000.0)
  [200, { "content-type" => "text/plain", "content-length" => "3" }, ["ok\\n"]]
}
""" % SERVICE

PUMA = """
workers %d
threads %d, %d
environment "production"
activate_control_app "unix://{dir}/control.sock", {{ no_token: true }}
lines = "{lines}"
instance_eval File.read(lines), lines
""" % (WORKERS, THREADS, THREADS)

PALISADE = """
domains = ["localhost"]
rate_limit = []
ban = []
[[listener]]
address = "127.0.0.1:{port}"
protocol = "http"
[upstream]
address = "unix:{dir}/w*.sock"
control_url = "unix:{dir}/control.sock"
[queue]
deadline = "{deadline}s"
[limits]
accept_rate = "100000/s"
[buffer]
dir = "{dir}"
[log]
access_file = "{dir}/access.log"
[admin]
listen = "off"
"""

NGINX = """
user {user}; worker_processes 2; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  upstream puma {{ {servers} }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://puma; proxy_read_timeout {deadline}s; }} }}
}}
"""

HAPROXY = """
global
  maxconn 8192
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 5s
  timeout queue {deadline}s
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  balance leastconn
  option http-server-close
{servers}
"""


def address(source, one_after_another):
    """One for each of many clients: a client alone would be held to its share."""
    low, high = 1 + source % 250, 1 + source // 250 % 250
    return f"127.0.{high}.{low}" if one_after_another else f"127.0.{low}.{high}"


def ask(port, client):
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((client, 0))
    sock.connect_ex(("127.0.0.1", port))
    return sock


def closed(port, seconds):
    """Requests a second and their p99 in seconds, with as many clients as threads and nobody waiting."""
    times, wrong = [], []
    end = time.monotonic() + seconds

    def client(number):
        while time.monotonic() < end:
            begin = time.perf_counter()
            with socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(f"127.0.0.{number + 2}", 0)) as sock:
                sock.sendall(REQUEST)
                answer = b""
                while piece := sock.recv(65536):
                    answer += piece
            if not answer.startswith(b"HTTP/1.1 200 "):
                wrong.append(answer[:60])
                return
            times.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(WORKERS * THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        sys.exit(f"not the answer that was asked for: {wrong[0]!r}")
    return len(times) / seconds, p99(times)


def p99(times):
    return sorted(times)[int(len(times) * 0.99)] if times else float("nan")


def open_loop(port, rate, seconds, patience, one_after_another, results):
    """Sends `rate` requests a second whatever becomes of them; the status (0: none) and the seconds of each."""
    chosen = selectors.DefaultSelector()
    done, pending = [], {}
    begin = time.perf_counter()
    sent, total = 0, int(rate * seconds)
    while sent < total or pending:
        now = time.perf_counter()
        while sent < total and begin + sent / rate <= now:
            sock = ask(port, address(sent, one_after_another))
            pending[sock] = [now, b"", False]  # since when, what has come, whether it was asked
            chosen.register(sock, selectors.EVENT_WRITE)
            sent += 1
            now = time.perf_counter()
        for key, events in chosen.select(max(0.0, min(0.01, begin + sent / rate - now)) if sent < total else 0.05):
            sock, state = key.fileobj, pending[key.fileobj]
            try:
                if not state[2]:
                    sock.send(REQUEST)
                    state[2] = True
                    chosen.modify(sock, selectors.EVENT_READ)
                    continue
                piece = sock.recv(65536)
                state[1] += piece
                # The answer is here when its body is: the client does not wait for the connection to end.
                ended = not piece or state[1].endswith(b"ok\n") or (b"\r\n\r\n" in state[1] and not state[1].startswith(b"HTTP/1.1 200"))
            except OSError:
                ended = True
            if ended:
                word = state[1].split(b" ", 2)[1:2]
                done.append((int(word[0]) if word else 0, time.perf_counter() - state[0]))
                chosen.unregister(sock)
                sock.close()
                del pending[sock]
        now = time.perf_counter()
        if sent >= total:
            for sock in [sock for sock, state in pending.items() if now - state[0] > patience]:
                done.append((0, now - pending[sock][0]))
                chosen.unregister(sock)
                sock.close()
                del pending[sock]
    results.put((done, time.perf_counter() - begin))


def until(what, probe, process):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"ended by itself while waiting: {what}")
        if probe():
            return
        time.sleep(0.05)
    sys.exit(f"did not happen: {what}")


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def stop(process):
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def front(name, arguments, folder, port):
    sockets = [f"{folder}/w{index}.sock" for index in range(WORKERS)]
    values = {"dir": folder, "port": port, "deadline": arguments.deadline, "user": getpass.getuser()}
    if name == "palisade":
        (folder / "proxy.toml").write_text(PALISADE.format(**values))
        return [arguments.palisade, "run", "--config", str(folder / "proxy.toml")]
    if name == "nginx":
        servers = " ".join(f"server unix:{path};" for path in sockets)
        (folder / "nginx.conf").write_text(NGINX.format(servers=servers, **values))
        return ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    servers = "\n".join(f"  server w{n} unix@{path} maxconn {THREADS}" for n, path in enumerate(sockets))
    (folder / "haproxy.cfg").write_text(HAPROXY.format(servers=servers, **values))
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


def bench(name, arguments):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="palisade-overload."))
    started = []
    try:
        (folder / "config.ru").write_text(APP)
        lines = HERE.parent / "deploy/puma/palisade.rb"
        (folder / "puma.rb").write_text(PUMA.format(dir=folder, lines=lines))
        log = (folder / "puma.log").open("w")
        puma = subprocess.Popen(
            arguments.puma.split() + ["-C", str(folder / "puma.rb"), str(folder / "config.ru")],
            env={"PATH": "/usr/bin:/bin", "PALISADE_SOCKETS": str(folder)}, stdout=log, stderr=log, cwd=folder, start_new_session=True,
        )
        started.append(puma)
        until("Puma's workers boot", lambda: (folder / "puma.log").read_text().count(" booted ") >= WORKERS, puma)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        proxy = subprocess.Popen(front(name, arguments, folder, port), stderr=(folder / "proxy.log").open("w"))
        started.append(proxy)
        until(f"{name} listens", lambda: listens(port), proxy)
        time.sleep(2.5)
        closed(port, 1)
        capacity, service = closed(port, 5)
        rate = capacity * arguments.times
        results = multiprocessing.Queue()
        generator = multiprocessing.Process(target=open_loop, args=(port, rate, arguments.seconds, arguments.deadline + 5, arguments.by_network, results))
        generator.start()
        done, took = results.get(timeout=arguments.seconds + 120)
        generator.join()
        limit = arguments.deadline + service
        good = [after for status, after in done if status == 200]
        in_time = [after for after in good if after <= arguments.deadline + 1]
        refused = sorted(after for status, after in done if status == 503)
        other = len(done) - len(good) - len(refused)
        # What was admitted is still answered when the last request has been sent: the time until then counts.
        goodput = len(in_time) / took
        at = lambda part: refused[int(len(refused) * part)] * 1000 if refused else float("nan")
        print(f"{name:9} capacity {capacity:5.0f}/s, idle p99 {service * 1000:.0f} ms; {rate:.0f}/s for {arguments.seconds} s: goodput {goodput:5.0f}/s "
              f"({goodput / capacity:.1%}), admitted p99 {p99(good) * 1000:.0f} ms (at most {limit * 1000:.0f}); refused {len(refused)}: "
              f"p50 {at(0.5):.1f}, p90 {at(0.9):.1f}, p99 {at(0.99):.1f} ms; neither {other}", flush=True)
        return goodput / capacity, p99(good), limit, at(0.99)
    finally:
        for process in reversed(started):
            stop(process)
        if os.environ.get("KEEP") is None:
            shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("palisade")
    parser.add_argument("--puma", default="puma")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--deadline", type=int, default=1)
    parser.add_argument("--by-network", action="store_true")
    parser.add_argument("--also", action="append", choices=["nginx", "haproxy"], default=[])
    arguments = parser.parse_args()
    share, admitted, limit, refusal = bench("palisade", arguments)
    for other in arguments.also:
        bench(other, arguments)
    missed = [what for what, holds in [("goodput", share >= 0.95), ("p99 of the admitted", admitted <= limit), ("refusals", refusal <= 5)] if not holds]
    print(f"missed: {', '.join(missed)}" if missed else "all three hold")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
