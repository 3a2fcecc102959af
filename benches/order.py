#!/usr/bin/env python3
"""Which functions lie together in the binary: what runs when a process starts, then what runs for a request.

    make order                 # runs what make build and make static build, writes benches/palisade.order, to be committed
    benches/order.py --check   # fails where too many of its names are no longer in target/release/palisade

The kernel maps at least 64 KiB around each page of a file that is touched, so functions that are strewn over the file make most of it
resident. `make build` gives the list to the linker, which lays the functions in that order and the others behind them. A name that is
no longer there is passed over. Names hold the versions and features of all that a crate depends on, and not where it was built: the list
is made anew when a dependency changes, and after `make profile`. Needs valgrind, h2load and openssl; `make order INSTALL=1` installs what
is missing.
"""

import argparse
import collections
import platform
import signal
import subprocess
import sys
import time

import instructions
import stand

ORDER = stand.HERE / "palisade.order"
# In seconds, under valgrind: longer than a start, and than what a process does by the clock takes to come round.
AT_REST = 10
# Part of the names that still has to be there.
ENOUGH = 0.8
# What the first line says; to the linker it is a comment, as is the other.
MADE_WITH = "# made with "
STATIC = "# of `make static`, whose names are others"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--install", action="store_true")
    arguments.add_argument("--check", action="store_true")
    given = arguments.parse_args()
    dynamic = stand.TARGET / "palisade"
    if given.check:
        return check(dynamic)
    stand.need(["valgrind", "h2load", "openssl"], given.install)
    stand.end_well()
    static = stand.TARGET.parent / f"{platform.machine()}-unknown-linux-gnu" / "release" / "palisade"
    first, second = order(dynamic), order(static)
    both = [f"{MADE_WITH}{compiler()}", *first, STATIC, *(name for name in second if name not in set(first))]
    ORDER.write_text("\n".join(both) + "\n")
    print(f"{ORDER.relative_to(stand.HERE.parent)} is written")


def order(binary):
    """The functions of a binary that run, as they should lie."""
    with stand.Stand(binary) as place:
        # Nobody visits the first one, so that it runs nothing of what a request meets.
        rest = run(place, "rest", visit=False, load=lambda server: time.sleep(AT_REST))
        busy = run(place, "busy", visit=True, load=lambda server: [instructions.load(place, server, instructions.WARM, **load) for load in instructions.WORKLOADS.values()])
    both = [name for name, _ in reversed(busy.most_common()) if name in rest]
    print(f"{binary}: {len(rest)} functions of a process at rest, {len(busy)} of requests, {len(both)} of both", flush=True)
    return [name for name in rest if name not in busy] + both + [name for name, _ in busy.most_common() if name not in rest]


def check(binary):
    """Whether the list is of this binary, more or less."""
    made_with, *wanted = ORDER.read_text().splitlines()
    wanted = wanted[: wanted.index(STATIC)]
    if made_with != f"{MADE_WITH}{compiler()}":
        print(f"not checked: the list was made with {made_with.removeprefix(MADE_WITH)}, this is {compiler()}, and names hold the compiler's version")
        return
    symbols = subprocess.run(["nm", "--defined-only", "--format=posix", binary], capture_output=True, text=True, check=True).stdout
    known = {line.split()[0] for line in symbols.splitlines()}
    found = sum(name in known for name in wanted)
    print(f"{found} of the {len(wanted)} functions of {ORDER.relative_to(stand.HERE.parent)} are in {binary}")
    if found < ENOUGH * len(wanted):
        sys.exit("the others have other names now, as with each change of a dependency: make order, and commit the file with it")


def compiler():
    """As it names itself."""
    return subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True, cwd=stand.HERE.parent).stdout.strip()


def run(place, name, visit, load):
    """Instructions of a process under this load, by function of the binary as the linker names it."""
    out = place.dir / f"{name}.callgrind"
    valgrind = ["valgrind", "-q", "--tool=callgrind", "--demangle=no", f"--callgrind-out-file={out}"]
    server = place.proxy("palisade", name=name, before=valgrind, visit=visit, cpus=",".join(map(str, stand.CPUS)))
    if visit:
        subprocess.run(["callgrind_control", "-z", str(server.process.pid)], check=True, capture_output=True, timeout=60)
    load(server)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    counts = collections.Counter()
    for (within, function), count in instructions.spent(out)[0].items():
        if within == str(place.palisade_binary) and function[:1].isidentifier():
            counts[function.split("'")[0]] += count
    return counts


if __name__ == "__main__":
    main()
