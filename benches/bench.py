#!/usr/bin/env python3
"""Palisade beside nginx and HAProxy: what a request costs each of them.

    make bench                 # builds, measures, prints the table; about a hundred seconds
    make bench INSTALL=1       # the same, and installs from Debian's packages what is missing
    benches/bench.py [--workloads h1,tls] [--rounds 3] [--seconds 1] [--palisade BINARY]

One worker each. Palisade runs with its hardened defaults: guard, limits, whole bodies, shield, metrics, and an access log
that is written to /dev/null (benches/lab.toml.in says what a laboratory on one machine has to raise); nginx and HAProxy
with the settings of benches/stand.py and without a log. nginx takes bodies and answers in whole, as is its default;
HAProxy waits for the first 16 KiB of a body. In every round each proxy has the same load for a second, in turn, and every
other round in reverse order; the figures are medians over the rounds, and ratios to nginx are taken within a round.
"""

import argparse
import statistics
import sys
import time

import stand

PROXIES = ["nginx", "haproxy", "palisade"]
WORKLOADS = {
    "h1": ("HTTP/1, 1 KiB, 64 connections", dict(path="/1024", connections=64)),
    "unix": ("the same, origin on a Unix socket", dict(path="/1024", connections=64)),
    "close": ("HTTP/1, a connection for each request", dict(path="/1024", connections=16, headers=["Connection: close"])),
    "tls": ("HTTP/1 over TLS", dict(path="/1024", connections=64, tls=True)),
    "h2": ("HTTP/2 over TLS, 16 connections of 8 streams", dict(path="/1024", connections=16, streams=8)),
    "handshake": ("full TLS handshake and a GET", dict(path="/1024", connections=16, tls=True, headers=["Connection: close"])),
    "post16k": ("POST 16 KiB", dict(path="/0", connections=32, body=16 << 10)),
    "post1m": ("POST 1 MiB", dict(path="/0", connections=8, body=1 << 20)),
    "get64k": ("GET 64 KiB", dict(path="/65536", connections=32)),
    "get1m": ("GET 1 MiB", dict(path="/1048576", connections=8)),
}
FAST = "h1,unix,close,tls,h2,handshake,post16k,post1m,get64k,get1m"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--workloads", default=FAST)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=int, default=1)
    arguments.add_argument("--palisade")
    arguments.add_argument("--install", action="store_true")
    given = arguments.parse_args()
    unknown = set(given.workloads.split(",")) - set(WORKLOADS)
    if unknown:
        sys.exit(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    stand.need(["nginx", "haproxy", "wrk", "h2load", "openssl"], given.install)
    stand.end_well()
    begin = time.monotonic()
    with stand.Stand(given.palisade) as place:
        print(f"nginx {stand.version('nginx')}, HAProxy {stand.version('haproxy')}, {len(stand.CPUS)} processors, one worker each", flush=True)
        started = {(kind, False): place.proxy(kind) for kind in PROXIES}
        if "unix" in given.workloads.split(","):
            started |= {(kind, True): place.proxy(kind, unix=True) for kind in PROXIES}
        rest = {kind: started[kind, False].memory() for kind in PROXIES}
        print()
        print("| workload | CPU per request, µs: nginx | HAProxy | Palisade | as a ratio to nginx: HAProxy | Palisade | req/s: nginx | HAProxy | Palisade | p50, ms | p99, ms | memory after, MiB |")
        print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
        failed = []
        for name in given.workloads.split(","):
            servers = {kind: started[kind, name == "unix"] for kind in PROXIES}
            rounds = {kind: [] for kind in PROXIES}
            for turn in range(given.rounds):
                for kind in PROXIES if turn % 2 == 0 else reversed(PROXIES):
                    rounds[kind].append(measure(place, servers[kind], given.seconds, **WORKLOADS[name][1]))
            print(row(WORKLOADS[name][0], rounds), flush=True)
            failed += [f"{name}, {kind}: {sum(r['errors'] for r in rounds[kind])}" for kind in PROXIES if any(r["errors"] for r in rounds[kind])]
        print()
        print("Memory at rest, MiB: " + ", ".join(f"{kind} {value:.1f}" for kind, value in rest.items()) + ".")
        print(f"p50, p99 and memory: nginx / HAProxy / Palisade. {time.monotonic() - begin:.0f} s in all.")
        if failed:
            sys.exit("answers that were no success: " + "; ".join(failed))


def measure(place, server, seconds, path, connections, tls=False, streams=0, body=0, headers=()):
    """One round of one proxy."""
    before = server.cpu()
    if streams:
        result = stand.h2load(server.https, path, connections, streams, seconds)
    else:
        script = place.dir / f"post{body}.lua"
        if body:
            script.write_text(f'wrk.method = "POST"\nwrk.body = string.rep("x", {body})\nwrk.headers["Content-Type"] = "application/octet-stream"\n')
        result = stand.wrk(server.https if tls else server.http, path, connections, seconds, tls, headers, script if body else None)
    result["cpu"] = (server.cpu() - before) / result["requests"] * 1e6
    result["memory"] = server.memory()
    return result


def row(title, rounds):
    """A line of the table."""
    median = lambda kind, key: statistics.median(r[key] for r in rounds[kind])
    ratio = lambda kind: statistics.median(a["cpu"] / b["cpu"] for a, b in zip(rounds[kind], rounds["nginx"]))
    cells = [title, *(f"{median(kind, 'cpu'):.1f}" for kind in PROXIES), *(f"{ratio(kind):.2f}" for kind in PROXIES[1:])]
    cells += [f"{median(kind, 'rate'):.0f}" for kind in PROXIES]
    cells += [" / ".join(f"{median(kind, key):.2f}" for kind in PROXIES) for key in ("p50", "p99")]
    cells.append(" / ".join(f"{rounds[kind][-1]['memory']:.0f}" for kind in PROXIES))
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
