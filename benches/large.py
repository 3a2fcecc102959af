#!/usr/bin/env python3
"""5 GiB up and 5 GiB down through Palisade: how fast beside the origin alone, and how much memory it takes.

    make bench-large           # or: benches/large.py [--gib 5] [--palisade BINARY] [--dir FOLDER]

Set as an operator would who takes such uploads: limits.body = "6GiB"; the body waits for its end in FOLDER, on disk, and
needs as much room there, twice that to spare. A request of 64 MiB each way goes first. Judged: every byte counted, and
memory during the transfers at most 4 MiB above what it was before them.
"""

import argparse
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
import time

import stand

PIECE = bytes(1 << 20)
GROWTH = 4.0


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gib", type=float, default=5)
    arguments.add_argument("--palisade")
    arguments.add_argument("--dir", default="/var/tmp")
    arguments.add_argument("--ways", default="upload,download")
    given = arguments.parse_args()
    size = int(given.gib * (1 << 30))
    if shutil.disk_usage(given.dir).free < 2 * size:
        sys.exit(f"{given.dir} has less than {2 * given.gib:.0f} GiB to spare: name another with --dir, or a smaller body with --gib")
    stand.need(["openssl"])
    stand.end_well()
    problems = []
    with stand.Stand(given.palisade) as place, tempfile.TemporaryDirectory(dir=given.dir, prefix="palisade-large.") as spill:
        pathlib.Path(spill).chmod(0o700)
        log = place.dir / "access.log"
        keys = ["limits.body=6GiB", f"buffer.dir={spill}", f"log.access_file={log}"]
        server = place.proxy("palisade", keys=keys)
        for way in (upload, download):
            way(server.http, 64 << 20)
        time.sleep(2)
        ways = dict(upload=upload, download=download)
        for name, way in ((name, ways[name]) for name in given.ways.split(",")):
            direct = way(place.port, size)
            before = server.memory()
            try:
                with Watch(server) as watch:
                    spent = way(server.http, size)
            except OSError as error:
                sys.exit(f"{name}: {error}; the last access line: {log.read_text()[-2000:]}{server.log.read_text()[-2000:]}")
            growth = watch.most - before
            print(f"{name} of {given.gib:g} GiB: {size / spent / 1e6:.0f} MB/s (origin alone {size / direct / 1e6:.0f}), memory {before:.1f} MiB before, at most {watch.most:.1f} during it", flush=True)
            if growth > GROWTH:
                problems.append(f"{name}: memory grew by {growth:.1f} MiB, more than {GROWTH:.0f}")
    if problems:
        sys.exit("\n".join(problems))


class Watch(threading.Thread):
    """Notes the most memory while it is entered."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.most, self.over = server, 0.0, threading.Event()

    def run(self):
        while not self.over.wait(0.1):
            self.most = max(self.most, self.server.memory())

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def upload(port, size):
    """Sends so many bytes, takes the answer; the seconds that it took."""
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 600) as s:
        s.sendall(f"POST /2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n".encode())
        left = size
        while left:
            left -= s.send(PIECE[:left])
        answer = b""
        while not answer.endswith(b"\r\n\r\nxx"):
            more = s.recv(65536)
            if not more:
                sys.exit(f"no whole answer to the upload: {answer[:300]!r}")
            answer += more
    if not answer.startswith(b"HTTP/1.1 200 "):
        sys.exit(f"the upload is refused: {answer[:300]!r}")
    return time.monotonic() - begin


def download(port, size):
    """Takes so many bytes; the seconds that it took."""
    begin, room = time.monotonic(), bytearray(1 << 20)
    with socket.create_connection(("127.0.0.1", port), 600) as s:
        s.sendall(f"GET /{size} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += s.recv(1)
        if not head.startswith(b"HTTP/1.1 200 "):
            sys.exit(f"the download is refused: {head!r}")
        left = size
        while left:
            count = s.recv_into(room, min(left, len(room)))
            if not count:
                sys.exit(f"the download ends {left} bytes too early")
            left -= count
    return time.monotonic() - begin


if __name__ == "__main__":
    main()
