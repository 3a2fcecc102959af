#!/usr/bin/env python3
"""Does the price of a request stay what it is when there is more of something else?

    make bench-flat                     # all questions, some minutes
    benches/flat.py idle limits ...     # some of them

idle      CPU per request with 0, 1,000 and 10,000 idle connections held beside it
rules     with 1, 10, 100 and 1,000 rate-limit rules, all but one for other paths
keys      one client address against a new one with each request, out of a million
fields    with 1, 25, 50 and 100 fields in the head
limits    rate limits and bans on against off
workers   two workers against one: throughput and CPU per request (needs processors that are free)
latency   p50 and p99 at half of nginx's throughput: the origin alone, nginx, HAProxy, Palisade

What is compared runs side by side and is measured in turn, as in benches/bench.py.
"""

import argparse
import socket
import statistics
import sys

import stand

H1 = dict(path="/1024", connections=64)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("questions", nargs="*")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--palisade")
    given = arguments.parse_args()
    unknown = set(given.questions) - set(QUESTIONS)
    if unknown:
        sys.exit(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    stand.need(["wrk", "h2load", "openssl"] + (["nginx", "haproxy"] if not given.questions or "latency" in given.questions else []))
    stand.end_well()
    for question in given.questions or QUESTIONS:
        with stand.Stand(given.palisade) as place:
            print(f"\n## {question}", flush=True)
            QUESTIONS[question](place, given.rounds)


def idle(place, rounds):
    most = min(10_000, place.files - 3000)
    servers = {count: place.proxy("palisade", name=f"idle{count}") for count in (0, 1000, most)}
    held = [hold(server.http) for count, server in servers.items() for _ in range(count)]
    compare(rounds, {f"{count} idle": (lambda server=server: cost(server)) for count, server in servers.items()})
    for s in held:
        s.close()


def hold(port):
    """A connection that has had one answer."""
    s = socket.create_connection(("127.0.0.1", port), 10)
    s.sendall(b"GET /0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    if not s.recv(4096).startswith(b"HTTP/1.1 200 "):
        sys.exit("a connection that should be held is refused")
    return s


def rules(place, rounds):
    def more(count):
        rule = '\n[[rate_limit]]\nname = "r{0}"\nkey = ["ip"]\nrate = "1000000/s"\nallow = []\nfields = false\nmatch.path = "/other/{0}/*"\n'
        return lambda text: text + "".join(rule.format(n) for n in range(count - 1))
    servers = {count: place.proxy("palisade", name=f"rules{count}", change=more(count)) for count in (1, 10, 100, 1000)}
    compare(rounds, {f"{count} rules": (lambda server=server: cost(server)) for count, server in servers.items()})


def keys(place, rounds):
    trusted = ['trusted_proxies=["127.0.0.0/8"]']
    server = place.proxy("palisade", keys=trusted)
    text = 'request = function() return wrk.format("GET", "/1024", {["X-Forwarded-For"] = %s}) end\n'
    one, many = place.dir / "one.lua", place.dir / "many.lua"
    one.write_text(text % '"198.51.100.7"')
    many.write_text(text % 'string.format("10.%d.%d.%d", math.random(0, 15), math.random(0, 255), math.random(0, 255))')
    before = server.memory()
    compare(rounds, {name: (lambda script=script: cost(server, script=script)) for name, script in (("one address", one), ("a million addresses", many))})
    print(f"memory before {before:.1f} MiB, after {server.memory():.1f} MiB")


def fields(place, rounds):
    server = place.proxy("palisade")
    head = lambda count: [f"x-field-{n}: value-{n}" for n in range(count - 1)]  # Host is the first
    found = compare(rounds, {f"{count} fields": (lambda count=count: cost(server, headers=head(count))) for count in (1, 25, 50, 100)})
    at = dict(zip((1, 25, 50, 100), found.values()))
    slopes = [(at[b] - at[a]) / (b - a) * 1000 for a, b in ((1, 25), (25, 50), (50, 100))]
    print("ns for each further field: " + ", ".join(f"{slope:.0f}" for slope in slopes) + " (1 to 25, 25 to 50, 50 to 100)")


def limits(place, rounds):
    def off(text):
        parts = text.split("\n\n")
        return "rate_limit = []\nban = []\n" + "\n\n".join(part for part in parts if "[[rate_limit]]" not in part and "[[ban]]" not in part)
    servers = {"off": place.proxy("palisade", name="off", change=off), "on": place.proxy("palisade", name="on")}
    compare(rounds * 2, {name: (lambda server=server: cost(server)) for name, server in servers.items()})


def workers(place, rounds):
    spread = ",".join(map(str, stand.CPUS))
    servers = {count: place.proxy("palisade", name=f"workers{count}", workers=count, cpus=spread) for count in (1, 2)}
    rates = {count: [] for count in servers}
    def run(count):
        result = stand.wrk(servers[count].http, "/1024", 64)
        rates[count].append(result["rate"])
        return result
    compare(rounds, {f"{count} workers": (lambda count=count: cost(servers[count], run=lambda: run(count))) for count in servers})
    print("req/s: " + ", ".join(f"{count} workers {statistics.median(rate):.0f}" for count, rate in rates.items()) + f"; {len(stand.CPUS)} processors for the proxy, the origin and the load")


def latency(place, rounds):
    servers = {kind: place.proxy(kind) for kind in ("nginx", "haproxy", "palisade")}
    ports = {"origin alone": place.port} | {kind: server.http for kind, server in servers.items()}
    half = stand.wrk(servers["nginx"].http, "/1024", 32)["rate"] / 2
    found = {name: [] for name in ports}
    for turn in range(rounds):
        for name in list(ports) if turn % 2 == 0 else reversed(list(ports)):
            found[name].append(stand.h2load(ports[name], "/1024", 32, seconds=2, tls=False, h1=True, rate=half))
    print(f"{half:.0f} requests a second on 32 connections\n\n| | p50, ms | p99, ms | added p50 | added p99 | answered, req/s |\n|---|---|---|---|---|---|")
    median = lambda name, key: statistics.median(r[key] for r in found[name])
    for name in ports:
        added = [statistics.median(a[key] - b[key] for a, b in zip(found[name], found["origin alone"])) for key in ("p50", "p99")]
        print(f"| {name} | {median(name, 'p50'):.3f} | {median(name, 'p99'):.3f} | {added[0]:.3f} | {added[1]:.3f} | {median(name, 'rate'):.0f} |", flush=True)


def cost(server, headers=(), script=None, run=None):
    """Microseconds of processor for a request."""
    before = server.cpu()
    result = run() if run else stand.wrk(server.http, headers=headers, script=script, **H1)
    if result["errors"]:
        sys.exit(f"{result['errors']} answers were no success")
    return (server.cpu() - before) / result["requests"] * 1e6


def compare(rounds, cases):
    """Measures the cases in turn, prints and gives the medians; the first is what the others are compared with."""
    first = next(iter(cases))
    found = {name: [] for name in cases}
    for turn in range(rounds):
        for name in list(cases) if turn % 2 == 0 else reversed(list(cases)):
            found[name].append(cases[name]())
    print("| | CPU per request, µs | ratio |\n|---|---|---|")
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, values in found.items():
        print(f"| {name} | {medians[name]:.1f} | {statistics.median(a / b for a, b in zip(values, found[first])):.2f} |", flush=True)
    return medians


QUESTIONS = dict(idle=idle, rules=rules, keys=keys, fields=fields, limits=limits, workers=workers, latency=latency)

if __name__ == "__main__":
    main()
