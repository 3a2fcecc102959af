#!/usr/bin/env python3
"""Attackers of every kind against Palisade before real Puma, with honest clients beside them: who is still there, and when?

    benches/siege.py PALISADE --puma COMMAND [--attackers 5000] [--kinds head,body,read,idle,silent] [--tls]
    benches/siege.py PALISADE --puma COMMAND --soak 3600 [--attackers 400]

Without --soak, each kind comes once, all within a few seconds, and is not renewed; the kernel is asked how many of their connections
are left one second after the deadline of the last one (what has been closed and only waits, TIME-WAIT, is none). With
--soak all kinds come at the same time and again and again, with floods of connections, resets and HTTP/2 streams that are taken back,
for so many seconds.

It fails where an attacker outlives its deadline, an honest request is not answered, or the process does not come back to the
descriptors, disk and memory of its start. Loopback only; ends what it starts. Defaults of Palisade hold, but for limits that count
addresses and connections: everything here comes from 127.0.0.0/8.
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import random
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
APP = HERE.parent / "tests/app"

PROXY = """
domains = ["localhost", "127.0.0.1"]
[[listener]]
address = "127.0.0.1:{http}"
protocol = "http"
[[listener]]
address = "127.0.0.1:{https}"
protocol = "https"
[tls]
cert_file = "{dir}/cert.pem"
key_file = "{dir}/key.pem"
strict_sni = false
[upstream]
address = "127.0.0.1:{puma}"
slots = 10
[limits]
connections = 15000
connections_per_ip = 10000
connections_per_prefix = {{ v4_24 = 10000, v6_64 = 10000, v6_48 = 10000 }}
accept_rate = "100000/s"
tls_rate = "100000/s"
handshakes_per_ip = 10000
[overload]
lag = "5s"
[buffer]
dir = "{dir}/spool"
[log]
access_file = "{dir}/access.log"
[admin]
listen = "127.0.0.1:{admin}"
"""

# Seconds after which the last byte of hope is gone, by the defaults of [timeouts] and [rates]. A slow reader waits up to 5 s for one
# of Puma's threads, and goes 15 s after the kernel took its last bytes; where the queue is full it has its 503 and is idle for 30 s.
DEADLINES = {"head": 10, "body": 10, "read": 35, "idle": 30, "silent": 10}
GRACE = 1.0
# What slow readers ask for: more than the kernel takes.
LARGE = 2 << 20
HELD = b"GET /bytes/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % LARGE
FIRST = {
    "head": b"GET /attack HTTP/1.1\r\nHost: localhost\r\n",
    "body": b"POST /attack HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nx",
    "read": HELD,
    "idle": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "silent": b"",
}
DRIP = {"head": b"X-A: b\r\n", "body": b"x"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class House:
    """Puma and Palisade, and what the system says of the latter."""

    def __init__(self, palisade, puma):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="palisade-siege."))
        self.ports = {name: free_port() for name in ("http", "https", "admin", "puma")}
        (self.dir / "spool").mkdir()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-keyout", str(self.dir / "key.pem"), "-out", str(self.dir / "cert.pem")], check=True, capture_output=True)
        os.chmod(self.dir / "key.pem", 0o600)
        environment = dict(os.environ, APP_WORKERS="2", APP_THREADS="5", APP_PORT=str(self.ports["puma"]))
        environment["APP_LOG"] = str(self.dir / "app.log")
        self.log = open(self.dir / "output", "ab")
        self.puma = subprocess.Popen(
            puma.split() + ["-C", str(APP / "puma.rb"), str(APP / "config.ru")], env=environment, stdout=self.log, stderr=self.log)
        (self.dir / "proxy.toml").write_text(PROXY.format(dir=self.dir, **self.ports))
        self.wait("puma")
        self.palisade = subprocess.Popen(
            [palisade, "run", "--config", str(self.dir / "proxy.toml")], stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        self.wait("http")

    def wait(self, name):
        end = time.time() + 60
        while time.time() < end:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.ports[name])) == 0:
                    return
            time.sleep(0.05)
        raise SystemExit(f"{name} does not listen:\n{(self.dir / 'output').read_text()[-2000:]}")

    def memory(self):
        """Resident KiB in all, and without the pages of the executable."""
        text = pathlib.Path(f"/proc/{self.palisade.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return tuple(int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon"))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.palisade.pid}/fd"))

    def spooled(self):
        """KiB that bodies take on the disk, in files without a name; one with a name is an error."""
        folder, blocks = f"/proc/{self.palisade.pid}/fd", 0
        for fd in os.listdir(folder):
            try:
                if str(self.dir / "spool") in os.readlink(f"{folder}/{fd}"):
                    blocks += os.stat(f"{folder}/{fd}").st_blocks
            except OSError:
                pass
        if named := os.listdir(self.dir / "spool"):
            sys.exit(f"files of bodies have names: {named}")
        return blocks // 2

    def left(self):
        """Connections of attackers that the kernel still holds for Palisade: their addresses are 127.20.0.0 and above."""
        ports = {f"{self.ports[name]:04X}" for name in ("http", "https")}
        held = set()  # the table may show a connection twice while others come and go
        with open("/proc/net/tcp") as table:
            next(table)
            for line in table:
                _, local, remote, state = line.split()[:4]
                # Second byte of the address in the order of the machine; 06 is TIME-WAIT.
                if local.split(":")[1] in ports and state not in ("06", "0A") and 20 <= int(remote[4:6], 16) < 128:
                    held.add(remote)
        return len(held)

    def refusals(self):
        """How the log ends the requests of honest clients (127.0.0.1) that were not answered in full."""
        ends = collections.Counter()
        for line in open(self.dir / "access.log"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line may be half written
            if entry.get("ip") == "127.0.0.1" and entry.get("end") != "ok":
                ends[f"{entry.get('status')} {entry.get('end')}"] += 1
        return dict(ends)

    def reached(self):
        return sum("/attack" in line for line in open(self.dir / "app.log"))

    def end(self):
        for process in (self.palisade, self.puma):
            process.terminate()
        for process in (self.palisade, self.puma):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def trusting():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def source(number):
    return f"127.{20 + number // 60000 % 100}.{number // 250 % 240}.{1 + number % 250}"


async def reach(house, number, tls, narrow=False):
    """A connection of an attacker."""
    loop = asyncio.get_running_loop()
    s = socket.socket()
    s.setblocking(False)
    s.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    if narrow:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    s.bind((source(number), 0))
    await loop.sock_connect(s, ("127.0.0.1", house.ports["https" if tls else "http"]))
    extra = dict(ssl=tls, server_hostname="localhost") if tls else {}
    return await asyncio.open_connection(sock=s, limit=1024, **extra)


async def attacker(house, kind, number, tls, seconds):
    """One slow client, until it is thrown out or gives up. Whether it was thrown out."""
    writer, end = None, time.monotonic() + seconds
    try:
        reader, writer = await asyncio.wait_for(reach(house, number, tls, kind == "read"), 20)
        writer.write(FIRST[kind])
        while time.monotonic() < end:
            if kind == "read":
                await asyncio.sleep(1)
                if not await reader.read(64):
                    return True
                continue
            try:
                if not await asyncio.wait_for(reader.read(4096), 3):
                    return True
            except asyncio.TimeoutError:
                writer.write(DRIP.get(kind, b""))
        return False
    except (OSError, asyncio.TimeoutError, ssl.SSLError):
        return True
    finally:
        if writer:
            writer.transport.abort()


async def flood(house, number, until):
    """Connections that are opened and reset at once, requests that nobody waits for, and bytes that are no HTTP."""
    while time.monotonic() < until:
        try:
            _, writer = await asyncio.wait_for(reach(house, number, None), 10)
            writer.write(random.choice([b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x00\xff" * 50, HELD]))
            await asyncio.sleep(random.random() / 50)
            sock = writer.get_extra_info("socket")
            if random.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        except (OSError, asyncio.TimeoutError):
            pass
        await asyncio.sleep(0.05)


async def taken_back(house, number, until, tls):
    """HTTP/2 streams that are opened and reset in the same breath (CVE-2023-44487)."""
    def frame(kind, flags, stream, payload):
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    head = b"\x82\x87\x04\x07/attack\x41\x09localhost"
    while time.monotonic() < until:
        try:
            _, writer = await asyncio.wait_for(reach(house, number, tls), 10)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
            for stream in range(1, 2001, 2):
                writer.write(frame(1, 5, stream, head) + frame(3, 0, stream, struct.pack(">I", 8)))
                if stream % 100 == 1:
                    await writer.drain()
            await asyncio.sleep(0.5)
            writer.transport.abort()
        except (OSError, asyncio.TimeoutError):
            pass
        await asyncio.sleep(1)


class Honest:
    """New connections at a steady pace, one request each, plain and over TLS; and uploads and downloads at 1 MB/s."""

    def __init__(self, house, tls):
        self.house, self.tls, self.times, self.failures, self.transfers = house, tls, [], [], 0

    async def request(self, tls):
        start = time.monotonic()
        try:
            extra = dict(ssl=self.tls, server_hostname="localhost") if tls else {}
            port = self.house.ports["https" if tls else "http"]
            reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, **extra), 10)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            if not answer.startswith(b"HTTP/1.1 200 "):
                self.failures.append(answer[:60].decode("latin-1") or "no answer")
        except (OSError, asyncio.TimeoutError, ssl.SSLError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        self.times.append(time.monotonic() - start)

    async def transfer(self):
        """3 MB there and 3 MB back, neither fast nor slow."""
        size, start = 3_000_000, time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.house.ports["http"])
            writer.write(b"POST /mirror HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(30):
                writer.write(b"m" * (size // 30))
                await writer.drain()
                await asyncio.sleep(0.1)
            got = 0
            while piece := await asyncio.wait_for(reader.read(100_000), 20):
                got += len(piece)
                await asyncio.sleep(len(piece) / 1_000_000)
            writer.close()
            if got < size:
                self.failures.append(f"{got} of {size} bytes came back")
            self.transfers += 1
        except (OSError, asyncio.TimeoutError) as error:
            self.failures.append(f"transfer: {type(error).__name__}: {error} after {time.monotonic() - start:.0f} s")

    async def run(self, until, rate):
        tasks, number, transfer = set(), 0, None
        while time.monotonic() < until:
            number += 1
            tasks.add(asyncio.create_task(self.request(number % 4 == 0)))
            if transfer is None or transfer.done():
                transfer = asyncio.create_task(self.transfer())
            tasks = {task for task in tasks if not task.done()}
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*tasks, transfer)

    def told(self):
        times = sorted(self.times) or [0.0]
        p99 = times[min(len(times) - 1, int(len(times) * 0.99))] * 1000
        return f"honest {len(self.times) - len(self.failures)} of {len(self.times)}, p99 {p99:.0f} ms, worst {times[-1] * 1000:.0f} ms"


async def come_back(house, before, failures, what):
    """Waits for descriptors, disk and memory to be where they were."""
    start = time.monotonic()
    while True:
        now = (house.descriptors(), house.spooled(), house.memory())
        back = now[0] <= before[0] + SPARE and now[1] == 0 and now[2][0] <= before[2][0] + MEMORY
        waited = time.monotonic() - start
        if back or waited > 60:
            if not back:
                failures.append(f"{what}: descriptors, KiB on disk, (resident, anonymous) KiB {before} became {now}")
            return waited, now
        await asyncio.sleep(0.5)


async def once(house, arguments, failures):
    tls = trusting()
    for kind in arguments.kinds.split(","):
        count = arguments.attackers
        before = (house.descriptors(), house.spooled(), house.memory())
        honest = Honest(house, tls)
        ramp, deadline = max(1.0, count / 2500), DEADLINES[kind]
        begun = time.monotonic()
        until = begun + ramp + deadline + 8
        steady = asyncio.create_task(honest.run(until, 20))
        attackers = []
        for number in range(count):
            attackers.append(asyncio.create_task(attacker(house, kind, number, tls if arguments.tls else None, 120)))
            if number % 25 == 24:
                await asyncio.sleep(max(0.0, begun + ramp * number / count - time.monotonic()))
        came, peak, held = time.monotonic(), 0, (0, 0)
        last = came
        while True:
            left = house.left()
            now = time.monotonic()
            peak = max(peak, left)
            held = max(held, house.memory())
            last = now if left else last
            if now >= came + deadline + 20 or left == 0 and now > came + 2:
                break
            await asyncio.sleep(0.2)
        gone = last - came
        verdict = "" if gone <= deadline + GRACE else "  TOO LATE"
        thrown = [task for task in attackers if not task.done()]
        for task in attackers:
            task.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)
        await steady
        waited, now = await come_back(house, before, failures, kind)
        print(f"{kind:7} {count} attackers in {came - begun:.1f} s, most held {peak}, the last gone {gone:.1f} s after it came (deadline "
              f"{deadline} s){verdict}; {honest.told()}; memory {before[2][0] >> 10} / {held[0] >> 10} / {now[2][0] >> 10} MiB, back "
              f"after {waited:.0f} s; at Puma {house.reached()}; {len(thrown)} had not noticed; refused, of all kinds: {house.refusals()}",
              flush=True)
        if verdict:
            failures.append(f"{kind}: attackers were there {gone:.1f} s after the last came")
        failures.extend(f"{kind}: {failure}" for failure in honest.failures[:5])


async def soak(house, arguments, failures):
    tls, honest = trusting(), None
    before = (house.descriptors(), house.spooled(), house.memory())
    honest = Honest(house, tls)
    until = time.monotonic() + arguments.soak
    steady = asyncio.create_task(honest.run(until, 10))
    kinds = list(DEADLINES)

    async def again(number):
        while time.monotonic() < until:
            await asyncio.sleep(random.random() * 3)
            kind = random.choice(kinds)
            await attacker(house, kind, number, tls if random.random() < 0.3 else None, min(60, max(1, until - time.monotonic())))

    tasks = [asyncio.create_task(again(number)) for number in range(arguments.attackers)]
    tasks += [asyncio.create_task(flood(house, 100_000 + number, until)) for number in range(10)]
    tasks += [asyncio.create_task(taken_back(house, 200_000 + number, until, tls)) for number in range(3)]
    start, said, peak = time.monotonic(), 0, (0, 0, (0, 0), 0)
    while time.monotonic() < until:
        await asyncio.sleep(1)
        peak = tuple(map(max, peak, (house.descriptors(), house.spooled(), house.memory(), house.left())))
        if time.monotonic() - said >= max(10, arguments.soak / 60):
            said = time.monotonic()
            resident, anonymous = house.memory()
            print(f"{said - start:6.0f} s: {house.left()} attackers, {house.descriptors()} descriptors, {house.spooled() >> 10} MiB on disk, "
                  f"{resident >> 10} MiB ({anonymous >> 10} anonymous); {honest.told()}", flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await steady
    waited, now = await come_back(house, before, failures, "soak")
    print(f"after {arguments.soak} s: {honest.told()}")
    print(f"honest requests: {len(honest.times)} and transfers of 3 MB there and back: {honest.transfers}; failed "
          f"{len(honest.failures)}: {dict(collections.Counter(honest.failures).most_common(10))}; as the log has it: {house.refusals()}")
    print(f"attackers at a time: most {peak[3]}; attacks that reached Puma: {house.reached()}")
    print(f"{'':14}{'start':>10}{'peak':>10}{'end':>10}   (the end {waited:.0f} s after the last attack)")
    for name, row in (("descriptors", [x[0] for x in (before, peak, now)]), ("disk KiB", [x[1] for x in (before, peak, now)]),
                      ("resident KiB", [x[2][0] for x in (before, peak, now)]), ("anonymous KiB", [x[2][1] for x in (before, peak, now)])):
        print(f"{name:14}" + "".join(f"{value:10}" for value in row), flush=True)
    failures.extend(honest.failures[:10])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("palisade")
    parser.add_argument("--puma", required=True, help="the command that starts Puma")
    parser.add_argument("--attackers", type=int, default=5000)
    parser.add_argument("--kinds", default="head,body,silent,idle,read")
    parser.add_argument("--tls", action="store_true", help="the attackers speak TLS")
    parser.add_argument("--soak", type=int, default=0, help="seconds")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    house, failures = House(arguments.palisade, arguments.puma), []
    try:
        # What is made once is there before anything is counted.
        asyncio.run(Honest(house, trusting()).run(time.monotonic() + 3, 50))
        time.sleep(3)
        asyncio.run((soak if arguments.soak else once)(house, arguments, failures))
        if house.palisade.poll() is not None:
            failures.append("Palisade has ended")
    finally:
        house.end()
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


# Descriptors that the pool of connections to Puma may keep, and KiB that caches and the allocator may.
SPARE = 32
MEMORY = 4096

if __name__ == "__main__":
    sys.exit(main())
