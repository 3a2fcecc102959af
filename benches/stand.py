"""The stand on which proxies are measured: an origin, proxies before it, load, and what it cost them.

What makes figures hold on a small machine that others use, too: proxies are compared within one round and the ratio of the
rounds is taken, not the ratio of sums; cost is the processor time of the proxy's own processes, which moves far less than
throughput does; the proxy has one processor to itself and everything else the others; every process started here weighs
more than a compiler beside it. Loopback only; ends what it starts.
"""

import contextlib
import getpass
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "release"
CPUS = sorted(os.sched_getaffinity(0))
PROXY_CPU, ORIGIN_CPU, LOAD_CPU = CPUS[0], CPUS[1 % len(CPUS)], CPUS[2 % len(CPUS)] if len(CPUS) > 2 else CPUS[-1]
PACKAGES = {"nginx": "nginx", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client", "openssl": "openssl", "valgrind": "valgrind", "curl": "curl", "ip": "iproute2", "tc": "iproute2", "llvm-profdata-19": "llvm-19"}

NGINX = """
daemon off; worker_processes {workers}; worker_rlimit_nofile {files}; user {user}; pid {dir}/nginx.pid; error_log {dir}/nginx.log error;
events {{ worker_connections {connections}; }}
http {{
  access_log off; server_tokens off; tcp_nodelay on; sendfile on;
  keepalive_timeout 65s; keepalive_requests 100000000;
  client_header_timeout 10s; client_body_timeout 10s; send_timeout 10s; reset_timedout_connection on;
  client_max_body_size 16m; client_body_buffer_size 128k;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:10m;
  upstream app {{ server {up}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{http} backlog=4096; listen 127.0.0.1:{https} ssl http2 backlog=4096;
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
"""

HAPROXY = """
global
  nbthread {workers}
  maxconn {connections}
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  timeout connect 5s
  timeout client 65s
  timeout server 30s
  timeout http-request 10s
  timeout http-keep-alive 65s
  option forwardfor
  option http-buffer-request
  http-reuse always
frontend f
  bind 127.0.0.1:{http} backlog 4096
  bind 127.0.0.1:{https} backlog 4096 ssl crt {both} alpn h2,http/1.1
  http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
  default_backend b
backend b
  server s1 {up} pool-max-conn 512
"""


class Server:
    """A process that was started here, and its children."""

    def __init__(self, argv, cpu, folder, name, ports=(), sockets=()):
        self.name, self.ports, self.log = name, ports, folder / f"{name}.out"
        with open(self.log, "ab") as log:
            pinned = ["taskset", "-c", cpu if isinstance(cpu, str) else str(cpu), *map(str, argv)]
            self.process = subprocess.Popen(pinned, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        prefer(self.process.pid)
        deadline = time.monotonic() + 60
        for port in ports:
            self.wait(lambda: reaches(("127.0.0.1", port)), deadline)
        for path in sockets:
            self.wait(lambda: os.path.exists(path), deadline)

    def wait(self, ready, deadline):
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                sys.exit(f"{self.name} does not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def pids(self):
        """The process and all that it started."""
        children = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                parent = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
                children.setdefault(int(parent), []).append(int(pid))
        found, todo = [], [self.process.pid]
        while todo:
            found.append(todo.pop())
            todo += children.get(found[-1], [])
        return found

    def cpu(self):
        """Seconds on a processor, of all threads that live."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(OSError):
                        total += int(pathlib.Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
        return total / 1e9

    def memory(self):
        """MiB that are resident; pages shared by several processes are counted once."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += int(re.search(r"^Pss:\s+(\d+)", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
        return total / 1024

    def stop(self):
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(OSError):
                self.process.send_signal(kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
                return


class Stand(contextlib.AbstractContextManager):
    """A folder, an origin on TCP and on a Unix socket, and the proxies started before it."""

    def __init__(self, palisade=None, workers=1):
        self.palisade_binary = pathlib.Path(palisade or TARGET / "palisade").resolve()
        self.workers, self.servers, self.files = workers, [], open_files()
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="palisade-bench."))
        self.dir.chmod(0o755)
        self.cert, self.key, self.both = self.certificate()
        self.socket, self.port = self.dir / "origin.sock", free_port()
        program = TARGET / "origin"
        if not program.exists() or not self.palisade_binary.exists():
            sys.exit("not built: make bench-build")
        self.origin = self.start([program, f"127.0.0.1:{self.port}", f"unix:{self.socket}"], ORIGIN_CPU, "origin", (self.port,), (self.socket,))

    def __exit__(self, *_):
        for server in reversed(self.servers):
            server.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self, argv, cpu, name, ports=(), sockets=()):
        self.servers.append(Server(argv, cpu, self.dir, name, ports, sockets))
        return self.servers[-1]

    def certificate(self):
        """For P-256, as most have it today."""
        cert, key, both = (self.dir / name for name in ("cert.pem", "key.pem", "both.pem"))
        subject = ["-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,DNS:lab.example"]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", cert]
        subprocess.run(["openssl", "req", "-x509", *curve, *subject], check=True, capture_output=True)
        key.chmod(0o600)
        both.write_bytes(cert.read_bytes() + key.read_bytes())
        both.chmod(0o600)
        return cert, key, both

    def proxy(self, kind, unix=False, name=None, workers=None, cpus=None, visit=True, **more):
        """Starts a proxy and gives it with its ports; with `visit` when a connection to each of them was taken."""
        name = name or kind + ("-unix" if unix else "")
        http, https, folder = free_port(), free_port(), self.dir / name
        folder.mkdir()
        workers = workers or self.workers
        cpus = cpus or (str(PROXY_CPU) if workers == 1 else ",".join(map(str, CPUS)))
        up = f"unix:{self.socket}" if unix else f"127.0.0.1:{self.port}"
        values = dict(http=http, https=https, dir=folder, cert=self.cert, key=self.key, both=self.both, workers=workers)
        values |= dict(files=self.files, connections=(self.files - 300) // 2, user=getpass.getuser())
        argv = getattr(self, kind)(folder, values, up, **more)
        server = self.start(argv, cpus, name, (http, https) if visit else ())
        server.http, server.https = http, https
        return server

    def nginx(self, folder, values, up):
        (folder / "nginx.conf").write_text(NGINX.format(**values, up=up))
        return ["nginx", "-e", folder / "nginx.log", "-c", folder / "nginx.conf"]

    def haproxy(self, folder, values, up):
        (folder / "haproxy.cfg").write_text(HAPROXY.format(**values, up=up.replace("unix:", "unix@")))
        return ["haproxy", "-db", "-f", folder / "haproxy.cfg"]

    def palisade(self, folder, values, up, keys=(), change=lambda text: text, before=()):
        """`keys` as with --set; `change` turns the text of the configuration; `before` is a program that runs it."""
        text = change((HERE / "lab.toml.in").read_text())
        for key, value in (values | dict(up=up)).items():
            text = text.replace("{%s}" % key, str(value))
        (folder / "proxy.toml").write_text(text)
        sets = [word for key in keys for word in ("--set", key)]
        return [*before, self.palisade_binary, "run", "--config", folder / "proxy.toml", *sets]


def wrk(port, path, connections, seconds=1, tls=False, headers=(), script=None, threads=1):
    """A closed loop over HTTP/1."""
    argv = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
    argv += [word for header in headers for word in ("-H", header)] + (["-s", str(script)] if script else [])
    text = load(argv + [f"{'https' if tls else 'http'}://localhost:{port}{path}"], seconds)
    count = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", text)
    if not count:
        sys.exit(f"wrk: {text[-500:]}")
    spent = float(count[2]) * UNITS[count[3]]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    lost = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    errors = (int(failed[1]) if failed else 0) + (sum(map(int, lost.groups())) if lost else 0)
    at = {p: re.search(rf"^\s+{p}%\s+([\d.]+)(us|ms|s|m)\s*$", text, re.M) for p in (50, 99)}
    ms = {p: float(m[1]) * UNITS[m[2]] * 1e3 if m else 0.0 for p, m in at.items()}
    return dict(requests=int(count[1]), rate=int(count[1]) / spent, p50=ms[50], p99=ms[99], errors=errors)


def h2load(port, path, connections, streams=1, seconds=1, tls=True, h1=False, rate=None, count=None, headers=()):
    """A closed loop, or with `rate` an even pace; with `count` exactly so many requests."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        argv = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", f"--log-file={log.name}"]
        argv += [f"-n{count}"] if count else [f"-D{seconds}", "--warm-up-time=0"]
        argv += (["--h1"] if h1 else []) + ([f"--rps={rate / connections}"] if rate else [])
        argv += [word for header in headers for word in ("-H", header)]
        begin = time.monotonic()
        text = load(argv + [f"{'https' if tls else 'http'}://localhost:{port}{path}"], seconds if not count else 300)
        spent = time.monotonic() - begin if count else seconds
        rows = [line.split() for line in open(log.name)]
    times = sorted(int(row[2]) for row in rows if len(row) == 3)
    if not times:
        sys.exit(f"h2load: {text[-500:]}")
    errors = sum(row[1] != "200" for row in rows if len(row) == 3)
    pick = lambda share: times[min(len(times) - 1, int(len(times) * share))] / 1e3
    return dict(requests=len(times), rate=len(times) / spent, p50=pick(0.5), p99=pick(0.99), errors=errors)


def load(argv, seconds):
    """Runs a load generator on the processor of the load."""
    process = subprocess.Popen(["taskset", "-c", str(LOAD_CPU), *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    prefer(process.pid)
    try:
        return process.communicate(timeout=seconds + 60)[0]
    finally:
        process.kill()


def need(programs, install=False):
    """Ends with what to do where a program is missing; installs Debian's packages only where that was asked for."""
    missing = sorted({PACKAGES[program] for program in programs if not shutil.which(program, path=SEARCH)})
    os.environ["PATH"] = SEARCH
    if missing and not install:
        sys.exit(f"missing: {' '.join(missing)}. The same command with INSTALL=1 installs them from Debian's packages, and nothing else does.")
    if missing:
        root = [] if os.getuid() == 0 else ["sudo"]
        subprocess.run([*root, "apt-get", "update", "-qq"], check=True)
        quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends"]
        subprocess.run([*root, *quiet, *missing], check=True)


def version(program):
    """As the program says it."""
    done = subprocess.run([program, "-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return re.search(r"\d+\.\d+(\.\d+)?", done.stdout)[0]


def prefer(pid):
    """More weight than a compiler beside us, where we may."""
    with contextlib.suppress(OSError):
        pathlib.Path(f"/proc/{pid}/autogroup").write_text("-15")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, -15)


def open_files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(hard, 1 << 20)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def reaches(address):
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(address) == 0


def end_well():
    """So that servers end with us when we are told to."""
    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, lambda *_: sys.exit(1))


UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
