#!/usr/bin/env python3
"""How an honest client fares in each second: asks a server on loopback 200 times a second, each time on a new connection.

    benches/beside.py PORT [--seconds 30] [--path /1024] [--cpu 1]

Beside an attack on a proxy, with the origin's own port, it says what the attack costs those who go past the proxy: they share with
the attackers, their own like and the origin the processors that the proxy does not have. Prints p50, p99 and the worst in ms.
"""

import argparse
import os
import socket
import time

EVERY = 0.005


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("port", type=int)
    arguments.add_argument("--seconds", type=float, default=30)
    arguments.add_argument("--path", default="/1024")
    arguments.add_argument("--cpu", type=int, help="the processor to run on")
    given = arguments.parse_args()
    if given.cpu is not None:
        os.sched_setaffinity(0, {given.cpu})
    request = f"GET {given.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    begun, took, failed = time.monotonic(), {}, 0
    while (now := time.monotonic()) - begun < given.seconds:
        try:
            ask(given.port, request)
        except OSError:
            failed += 1
        spent = time.monotonic() - now
        took.setdefault(int(now - begun), []).append(spent * 1000)
        time.sleep(max(0, EVERY - spent))
    for second, times in sorted(took.items()):
        times.sort()
        p50, p99, worst = (times[min(len(times) - 1, int(len(times) * part))] for part in (0.5, 0.99, 1))
        print(f"second {second:3}: {len(times):4} requests, p50 {p50:.2f}, p99 {p99:.2f}, worst {worst:.2f} ms")
    print(f"{failed} of {sum(map(len, took.values()))} failed")
    raise SystemExit(failed > 0)


def ask(port, request):
    """One request and its whole answer; OSError where there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    if not answer.startswith(b"HTTP/1.1 200"):
        raise OSError(answer[:80])


if __name__ == "__main__":
    main()
