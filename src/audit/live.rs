//! `palisade audit --live`: what runs on this machine, asked and looked at from outside.
//!
//! Threat 4, exposure: files say what was meant, the running Puma what came of it. Read are the kernel's tables of sockets
//! and processes; asked are the addresses that puma.rb names, on loopback or by socket only, with requests that change
//! nothing. What answers is bounded in bytes and time, and never printed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::application::Application;
use super::checks::Id;
use super::runtime::{ControlAddress, ControlFacts, FileFacts, RuntimeFacts, at_start, listening};
use crate::puma::Bind;
use crate::puma::puma_rb::ControlUrl;

/// Where something can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Door {
    /// Whether a control server behind it hands out its figures to anybody.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn tells_without_token(&self) -> io::Result<bool> {
        Ok(is_ok(&self.ask("GET /stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?))
    }

    /// The beginning of the answer to a request.
    fn ask(&self, request: &str) -> io::Result<Vec<u8>> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                exchange(stream, request)
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                exchange(stream, request)
            }
        }
    }

    /// The doors of a bind on this machine. An address of another network is not knocked at.
    fn of(bind: &Bind, root: &Path) -> Option<Self> {
        match bind {
            Bind::Unix { .. } => bind.path(root).map(Self::Unix),
            Bind::Tcp { host, port } => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let here = match host.parse::<IpAddr>() {
                    Ok(address) if address.is_loopback() => address,
                    Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
                    Err(_) if host.eq_ignore_ascii_case("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    Ok(_) | Err(_) => return None,
                };
                Some(Self::Tcp(SocketAddr::new(here, *port)))
            }
            Bind::Abstract { .. } | Bind::Ssl { .. } => None,
        }
    }
}

/// Looks at what runs for one configuration of Puma.
pub(super) fn check(app: &mut Application<'_>) {
    let binds: Vec<Bind> = app.puma.listeners().into_iter().map(|listener| listener.bind).collect();
    let doors: Vec<Door> = binds.iter().filter_map(|bind| Door::of(bind, &app.root)).collect();
    for finding in at_start(&facts(app, &doors)) {
        app.find(finding.id, &finding.place.path, None, finding.detail);
    }
    for door in &doors {
        if is_debugging(door) {
            app.find(Id::E12, app.puma_path(), None, "the running Puma answers a malformed request with a backtrace");
        }
        for path in SENSITIVE.iter().filter(|path| is_served(door, path)) {
            app.find(Id::E16, format!("public{path}"), None, format!("the running application serves {path}"));
        }
    }
    for process in processes(&doors) {
        who(app, &process);
    }
}

fn facts(app: &Application<'_>, doors: &[Door]) -> RuntimeFacts {
    let mut facts = RuntimeFacts::default();
    let open = open_sockets();
    for door in doors {
        match door {
            Door::Tcp(asked) => facts.puma_listens.extend(open.iter().map(|(address, _)| *address).filter(|a| a.port() == asked.port())),
            // A socket that is not there is not open to anybody.
            Door::Unix(path) => facts.add_socket(path).unwrap_or_default(),
        }
    }
    if let Some(ControlUrl::At(bind)) = app.puma.control.value().map(|control| &control.url)
        && let Some(door) = Door::of(bind, &app.root)
        && let Ok(answers) = door.tells_without_token()
    {
        facts.control = control_address(&door, &open).map(|address| ControlFacts { address, answers_without_token: Some(answers) });
    }
    facts
}

fn control_address(door: &Door, open: &[(SocketAddr, u64)]) -> Option<ControlAddress> {
    match door {
        Door::Tcp(asked) => {
            let everywhere = open.iter().map(|(address, _)| *address).find(|a| a.port() == asked.port() && a.ip().is_unspecified());
            Some(ControlAddress::Tcp(everywhere.unwrap_or(*asked)))
        }
        Door::Unix(path) => FileFacts::of(path).ok().map(ControlAddress::Unix),
    }
}

/// Puma answers a request without a method with 400, from 6.0 on with its own backtrace in development.
fn is_debugging(door: &Door) -> bool {
    door.ask("\u{1} / HTTP/1.1\r\n\r\n").is_ok_and(|answer| {
        let text = String::from_utf8_lossy(&answer);
        text.contains("Puma caught this error") && text.lines().any(|line| line.contains(".rb:"))
    })
}

/// An application that answers 200 to every path serves no file: what is there must differ from what is not.
fn is_served(door: &Door, path: &str) -> bool {
    let get = |path: &str| door.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).ok();
    let Some(answer) = get(path).filter(|answer| is_ok(answer)) else { return false };
    let is_page = body(&answer).trim_ascii_start().first() == Some(&b'<');
    !is_page && !get(&format!("{path}-7f3a9c51")).is_some_and(|other| is_ok(&other))
}

fn is_ok(answer: &[u8]) -> bool {
    answer.get(8..12) == Some(b" 200")
}

fn body(answer: &[u8]) -> &[u8] {
    memchr::memmem::find(answer, b"\r\n\r\n").and_then(|end| answer.get(end.saturating_add(4)..)).unwrap_or_default()
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // A peer that keeps the connection ends the read by its timeout: what came until then is the answer.
    match stream.take(LARGEST).read_to_end(&mut answer) {
        Err(error) if answer.is_empty() => Err(error),
        Ok(_) | Err(_) => Ok(answer),
    }
}

/// Every listening TCP socket of this machine with its inode.
fn open_sockets() -> Vec<(SocketAddr, u64)> {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().flat_map(|table| listening(&fs::read_to_string(table).unwrap_or_default())).collect()
}

/// The inodes of unix sockets by path, from `/proc/net/unix`.
fn unix_inode(path: &Path) -> Option<u64> {
    let table = fs::read_to_string("/proc/net/unix").ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let inode = fields.nth(6)?.parse().ok()?;
        (Path::new(fields.next()?) == path).then_some(inode)
    })
}

/// The processes that listen behind the doors.
fn processes(doors: &[Door]) -> BTreeSet<PathBuf> {
    let open = open_sockets();
    let inodes: BTreeSet<String> = doors
        .iter()
        .flat_map(|door| match door {
            Door::Tcp(asked) => open.iter().filter(|(address, _)| address.port() == asked.port()).map(|(_, inode)| *inode).collect(),
            Door::Unix(path) => unix_inode(path).into_iter().collect::<Vec<_>>(),
        })
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return BTreeSet::new();
    }
    let numbered = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    let listens = |process: &PathBuf| {
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|link| inodes.contains(&*link.to_string_lossy()))
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()).filter(numbered).filter(listens).collect()
}

/// E17 of a process that serves. Its environment cannot be read: Ruby writes Puma's title over it.
fn who(app: &mut Application<'_>, process: &Path) {
    let name = process.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if fs::metadata(process).is_ok_and(|metadata| metadata.uid() == 0) {
        app.find(Id::E17, app.puma_path(), None, format!("the running Puma (process {name}) is root's"));
    }
}

/// Paths that no application serves on purpose.
const SENSITIVE: &[&str] = &[
    "/.env",
    "/.git/HEAD",
    "/config/master.key",
    "/config/database.yml",
    "/config/secrets.yml",
    "/log/production.log",
    "/tmp/pids/server.pid",
    "/db/production.sqlite3",
    "/storage/production.sqlite3",
];

/// For a Puma that is busy, or is none.
const PATIENCE: Duration = Duration::from_millis(500);

/// Bytes of an answer that are read.
const LARGEST: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_doors_on_this_machine_are_knocked_at() {
        let door = |url: &str| Door::of(&Bind::parse(url).unwrap(), Path::new("/srv/app"));
        for (url, address) in [("tcp://0.0.0.0:1", "127.0.0.1:1"), ("tcp://[::]:1", "[::1]:1"), ("tcp://localhost:1", "127.0.0.1:1")] {
            assert_eq!(door(url), Some(Door::Tcp(address.parse().unwrap())));
        }
        assert_eq!(door("unix://tmp/a.sock"), Some(Door::Unix("/srv/app/tmp/a.sock".into())));
        for url in ["tcp://10.0.0.7:1", "tcp://db.internal:1", "ssl://127.0.0.1:1", "unix://@a"] {
            assert_eq!(door(url), None, "{url}");
        }
    }

    #[test]
    fn a_page_for_every_path_is_no_file() {
        assert!(is_ok(b"HTTP/1.1 200 OK\r\n\r\nx") && !is_ok(b"HTTP/1.1 404 Not Found\r\n") && !is_ok(b""));
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nref: x"), b"ref: x");
        assert_eq!(body(b"HTTP/1.1 200 OK"), b"");
    }

    #[test]
    fn our_own_socket_has_our_process_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let found = processes(&[Door::Unix(path)]);
        assert_eq!(found, BTreeSet::from([PathBuf::from(format!("/proc/{}", std::process::id()))]));
        drop(listener);
    }
}
