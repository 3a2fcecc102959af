#!/usr/bin/env python3
"""Honest clients on slow links: do they get their answers whole?

Each case has a network namespace of its own, with a link of so many kbit/s (tc's tbf, MTU 1500), between the client and the proxy;
the origin is on a Unix socket. Without HTTP/2 one answer, by curl; with it several at once on one connection, by h2load.

    benches/links.py [PALISADE] [--peer nginx] [--seconds 300]

Fails where Palisade does not deliver an answer. Needs root, for the namespaces; takes three to four minutes, as all cases run at once.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import time

import stand

CASES = [("plain", 80, 1, 1_000_000), ("tls", 80, 1, 1_000_000), ("tls", 24, 1, 300_000), ("h2", 80, 4, 262_144), ("h2", 80, 16, 65_536), ("h2", 400, 100, 65_536), ("h2", 24, 4, 131_072)]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("palisade", nargs="?")
    arguments.add_argument("--peer", default="palisade")
    arguments.add_argument("--seconds", type=int, default=300)
    arguments.add_argument("--case", type=int, help="one of them, on the link that is here")
    given = arguments.parse_args()
    if given.case is not None:
        return run(given, *CASES[given.case])
    stand.need(["curl", "h2load", "ip", "tc"])
    stand.end_well()
    with contextlib.ExitStack() as spaces:
        running = [begin(given, spaces, number, rate) for number, (_, rate, _, _) in enumerate(CASES)]
        failed = sum([process.wait() != 0 for process in running])
    sys.exit(failed)


def begin(given, spaces, number, rate):
    space = f"link{os.getpid()}-{number}"
    inside = ["ip", "netns", "exec", space]
    subprocess.run(["ip", "netns", "add", space], check=True)
    spaces.callback(subprocess.run, ["ip", "netns", "del", space], check=True)
    subprocess.run([*inside, "ip", "link", "set", "lo", "mtu", "1500", "up"], check=True)
    subprocess.run([*inside, *f"tc qdisc add dev lo root tbf rate {rate}kbit burst 3200 latency 500ms".split()], check=True)
    argv = [sys.executable, __file__, *([given.palisade] if given.palisade else []), "--peer", given.peer, "--seconds", str(given.seconds), "--case", str(number)]
    return spaces.enter_context(subprocess.Popen([*inside, *argv]))


def run(given, kind, rate, streams, size):
    stand.end_well()
    with stand.Stand(given.palisade) as place:
        server = place.proxy(given.peer, unix=True)
        start = time.monotonic()
        if kind == "h2":
            # Windows as large as a browser's.
            argv = ["h2load", f"-n{streams}", "-c1", f"-m{streams}", "-w24", "-W26", f"https://localhost:{server.https}/{size}"]
        else:
            url = f"https://localhost:{server.https}/{size}" if kind == "tls" else f"http://localhost:{server.http}/{size}"
            argv = ["curl", "-sk", "--http1.1", "-o", os.devnull, "-w", "%{size_download}", url]
        said = subprocess.run(["timeout", str(given.seconds), *argv], capture_output=True, text=True).stdout
        if kind == "h2":
            whole = int((re.search(r"(\d+) succeeded", said) or [0, 0])[1])
        else:
            whole = int(said.strip() == str(size))
        print(f"{given.peer}: {kind}, {rate} kbit/s: {whole} of {streams} answers of {size} bytes whole, {time.monotonic() - start:.0f} s", flush=True)
    sys.exit(whole != streams)


if __name__ == "__main__":
    main()
