#!/usr/bin/env python3
"""Instructions and allocations per request: exact where time is not, so a regression shows on any machine.

    make bench-instructions    # measures and judges against benches/instructions.json
    make bench-accept          # measures and writes what was found as the new baseline, to be committed with its reason

The release binary runs under callgrind (valgrind), without its sandbox, which would end valgrind, and otherwise as in
benches/bench.py. One connection sends an exact number of requests one after the other, first some to warm up; what is
counted is user mode only: nearly the same from run to run, whatever else the machine does. What the process does by the
clock adds a little on a machine that is slow, so the lowest of up to three runs counts. System calls and the work of the
kernel do not show here. More than 5 % above the baseline is a failure that names the parts that grew; more than 5 %
below asks for a new baseline, so that a later regression cannot hide in the gain.

Allocations are the calls to jemalloc that begin a piece of memory: malloc, calloc, mallocx, and realloc, which may move one.
"""

import argparse
import collections
import json
import re
import signal
import subprocess
import sys

import stand

BASELINE = stand.HERE / "instructions.json"
TOLERANCE = 0.05
WARM, COUNT, RUNS = 200, 1000, 3
WORKLOADS = {
    "h1": dict(path="/1024", h1=True, tls=False),
    "h1_browser": dict(path="/1024", h1=True, tls=False, headers=["accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "accept-language: en-GB,en;q=0.5", "accept-encoding: gzip, deflate, br", "cookie: _session=0123456789abcdef0123456789abcdef; theme=dark; consent=all", "referer: http://localhost/articles?page=2", "sec-fetch-dest: document", "sec-fetch-mode: navigate", "sec-fetch-site: same-origin", "upgrade-insecure-requests: 1"]),
    "fields50": dict(path="/1024", h1=True, tls=False, headers=[f"x-field-{n}: value-{n}" for n in range(50)]),
    "fields90": dict(path="/1024", h1=True, tls=False, headers=[f"x-field-{n}: value-{n}" for n in range(90)]),
    "tls": dict(path="/1024", h1=True, tls=True),
    "h2": dict(path="/1024", h1=False, tls=True),
    "post16k": dict(path="/0", h1=True, tls=False, body=16384),
    "get64k": dict(path="/65536", h1=True, tls=False),
}
# jemalloc is the process's own malloc, under the names of C.
ALLOCATING = re.compile(r"^(malloc|calloc|mallocx|realloc|rallocx|aligned_alloc|posix_memalign)$")
GIVING = re.compile(r"^(free|s?dallocx|_rjem_.*)$")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--accept", action="store_true", help="write the baseline")
    arguments.add_argument("--workloads", default=",".join(WORKLOADS))
    arguments.add_argument("--palisade")
    arguments.add_argument("--install", action="store_true")
    arguments.add_argument("--top", type=int, default=0, help="also print so many functions of each workload, and of those that allocate")
    given = arguments.parse_args()
    stand.need(["valgrind", "h2load", "openssl"], given.install)
    stand.end_well()
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else dict(compiler="", workloads={})
    if not given.accept and not baseline["workloads"]:
        sys.exit("no baseline: make bench-accept writes one")
    found = {}
    for name in given.workloads.split(","):
        known = None if given.accept else baseline["workloads"].get(name)
        runs = []
        while len(runs) < RUNS and not (runs and known and fits(min(runs, key=instructions), known)):
            runs.append(measure(given, **WORKLOADS[name]))
        found[name] = min(runs, key=instructions)
    compiler = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True, cwd=stand.HERE.parent).stdout.split()[1]
    if given.accept:
        parts = {name: {key: found[name][key] for key in ("instructions", "allocations", "parts")} for name in found}
        BASELINE.write_text(json.dumps(dict(compiler=compiler, workloads=baseline["workloads"] | parts), indent=1) + "\n")
        print(f"{BASELINE.relative_to(stand.HERE.parent)} is written; commit it and say in the message why it changed")
        return
    problems = [problem for name in found for problem in judge(name, found[name], baseline["workloads"].get(name))]
    if not problems:
        return
    if baseline["compiler"] != compiler:
        problems.append(f"the baseline is of rustc {baseline['compiler']}, this is {compiler}: the compiler may be the reason")
    problems.append("if it is meant to be so: make bench-accept, and commit benches/instructions.json with the reason")
    sys.exit("\n" + "\n".join(problems))


def measure(given, **workload):
    """Instructions and allocations of one request."""
    with stand.Stand(given.palisade) as place:
        out = place.dir / "callgrind.out"
        valgrind = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-systime=no"]
        keys = ["server.sandbox=off"]
        server = place.proxy("palisade", keys=keys, before=valgrind, cpus=",".join(map(str, stand.CPUS)))
        send = lambda count: load(place, server, count, **workload)
        send(WARM)
        control = lambda *words: subprocess.run(["callgrind_control", *words, str(server.process.pid)], check=True, capture_output=True, timeout=60)
        control("-z")
        send(COUNT)
        control("-d")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        dumps = sorted(place.dir.glob("callgrind.out.*"), key=lambda file: int(file.suffix[1:]))
        return read(dumps[0], given.top)


def load(place, server, count, path, h1, tls, body=0, headers=()):
    """So many requests, one after the other on one connection."""
    argv = ["h2load", "-c1", "-m1", f"-n{count}", *(["--h1"] if h1 else [])]
    argv += [word for header in headers for word in ("-H", header)]
    if body:
        (place.dir / "body").write_bytes(b"x" * body)
        argv += [f"--data={place.dir / 'body'}", "-H", "content-type: application/octet-stream"]
    url = f"https://localhost:{server.https}{path}" if tls else f"http://localhost:{server.http}{path}"
    done = subprocess.run([*argv, url], capture_output=True, text=True, timeout=300)
    if f"{count} succeeded" not in done.stdout:
        sys.exit(f"h2load: {done.stdout[-800:]}")


def spent(dump):
    """Of a callgrind file: instructions by object and function, calls by caller and called."""
    names, functions, calls = {}, collections.Counter(), collections.Counter()
    lines = iter(dump.read_text().splitlines())
    for line in lines:
        kind, _, rest = line.partition("=")
        if kind in ("ob", "cob", "fn", "cfn"):
            key, _, name = rest.partition(" ")
            name = names.setdefault((kind[-2:], key), name)
            if kind == "ob":
                within = name
            elif kind == "fn":
                function = name
            elif kind == "cfn":
                called = name
        elif kind == "calls":
            calls[function, called.split("'")[0]] += int(rest.split()[0])
            next(lines)  # what the call cost is counted where it was spent
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            functions[within, function] += int((line.split() + ["0"])[1])
    return functions, calls


def read(dump, top):
    """Of a callgrind file, for a request: instructions in all and by part, allocations."""
    found, calls = spent(dump)
    functions = collections.Counter()
    for (_, function), count in found.items():
        functions[function] += count
    parts = collections.Counter()
    for function, count in functions.items():
        parts[part(function)] += count
    for function, count in functions.most_common(top):
        print(f"{count / COUNT:9.0f}  {function[:150]}")
    per = lambda value: round(value / COUNT, 1)
    begun = {caller: count for (caller, called), count in calls.items() if ALLOCATING.match(called)}
    for caller, count in sorted(begun.items(), key=lambda item: -item[1])[:top]:
        print(f"{count / COUNT:9.2f}  allocations in {caller[:150]}")
    allocations = sum(count for (_, called), count in calls.items() if ALLOCATING.match(called))
    return dict(instructions=per(sum(parts.values())), allocations=per(allocations), parts={name: per(value) for name, value in parts.most_common() if value >= COUNT * 10})


def part(function):
    """The module of ours or the crate that a function belongs to."""
    crate = re.search(r"(?:^|[<& ])([a-z_0-9]+)::", function)
    ours = re.search(r"palisade::(\w+)(::\w+)?", function)
    if ours:
        return ours[0]
    if ALLOCATING.match(function) or GIVING.match(function) or function.startswith(("je_", "tcache", "arena")) or "jemalloc" in function:
        return "jemalloc"
    return crate[1] if crate else "C and system"


def instructions(run):
    return run["instructions"]


def fits(found, known):
    """Within the tolerance."""
    return abs(found["instructions"] / known["instructions"] - 1) <= TOLERANCE and found["allocations"] <= known["allocations"] + 0.5


def judge(name, found, known):
    """What is wrong with it, in words; prints the figures."""
    if known is None:
        return [f"{name}: not in the baseline"]
    change = found["instructions"] / known["instructions"] - 1
    print(f"{name}: {found['instructions']:.0f} instructions a request (baseline {known['instructions']:.0f}, {change:+.1%}), {found['allocations']:.1f} allocations (baseline {known['allocations']:.1f})", flush=True)
    problems = []
    if found["allocations"] > known["allocations"] + 0.5:
        problems.append(f"{name}: {found['allocations'] - known['allocations']:.1f} more allocations for each request")
    if not -TOLERANCE <= change <= TOLERANCE:
        grown = {part: found["parts"].get(part, 0) - known["parts"].get(part, 0) for part in found["parts"].keys() | known["parts"].keys()}
        order = sorted(grown, key=grown.get, reverse=change > 0)[:8]
        list_ = ", ".join(f"{part} {grown[part]:+.0f}" for part in order if grown[part] * change >= abs(change))
        word = "more" if change > 0 else "fewer, which the baseline should keep"
        problems.append(f"{name}: {abs(found['instructions'] - known['instructions']):.0f} instructions {word} ({change:+.1%}): {list_}")
    return problems


if __name__ == "__main__":
    main()
