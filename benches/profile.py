#!/usr/bin/env python3
"""What the compiler should know of a request's way: a profile of the release binary under load.

    make profile               # builds with counters, runs the load, writes benches/palisade.profdata, to be committed

`make build` compiles with that file: what is taken often comes together, what is not is laid aside. A profile that is older than
the code does no harm, and helps less. Needs wrk, h2load, openssl and llvm-profdata-19; `make profile INSTALL=1` installs what is missing from Debian's packages.

The load is of successes, as HTTP/1, over TLS, as HTTP/2, with the fields of a browser, with small and large bodies both ways,
and with a connection for each request; never a Puma that sleeps or a client that is slow: neither is what a processor is short for.
"""

import argparse
import pathlib
import signal
import subprocess
import sys

import bench
import instructions
import stand

PROFILE = stand.HERE / "palisade.profdata"
# Reads what a newer LLVM's counters wrote: tried with that of rustc 1.95.
MERGER = "llvm-profdata-19"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--raw", required=True, type=pathlib.Path, help="the folder that the binary was built to write its counters to")
    arguments.add_argument("--install", action="store_true")
    given = arguments.parse_args()
    stand.need(["wrk", "h2load", "openssl", MERGER], given.install)
    stand.end_well()
    for old in given.raw.glob("*.profraw"):
        old.unlink()
    with stand.Stand() as place:
        # The sandbox would forbid the file that is written at the end.
        servers = [place.proxy("palisade", unix=unix, keys=["server.sandbox=off"]) for unix in (False, True)]
        for server, name in [(servers[0], name) for name in bench.WORKLOADS if name != "unix"] + [(servers[1], "unix")]:
            done = bench.measure(place, server, 2, **bench.WORKLOADS[name][1])
            if done["errors"] or not done["requests"]:
                sys.exit(f"{name}: {done['errors']} answers of {done['requests']} were no success")
        browser = instructions.WORKLOADS["h1_browser"]["headers"]
        for streams, tls, h1 in ((1, False, True), (8, True, False)):
            stand.h2load(servers[0].https if tls else servers[0].http, "/1024?page=2", 16, streams, tls=tls, h1=h1, count=20000, headers=browser)
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)
    raw = sorted(given.raw.glob("*.profraw"))
    if not raw:
        sys.exit(f"nothing in {given.raw}: {stand.TARGET / 'palisade'} has no counters")
    subprocess.run([MERGER, "merge", "--sparse", "-o", PROFILE, *raw], check=True)
    print(f"{PROFILE.relative_to(stand.HERE.parent)}, {PROFILE.stat().st_size >> 10} KiB, is written")


if __name__ == "__main__":
    main()
