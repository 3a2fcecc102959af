//! The part of the audit that looks at what runs, when the proxy starts.
//!
//! Threat 4, exposure: puma.rb may be fine and the socket on disk still be open to everyone. The facts are observed by
//! the caller, who knows the addresses; what they mean is decided here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::checks::Id;
use super::finding::{Finding, Place};
use super::waiver::{Date, Waiver};

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct RuntimeFacts {
    /// Unix sockets that Puma serves requests on.
    pub app_sockets: Vec<FileFacts>,
    /// Addresses that Puma listens on by TCP.
    pub puma_listens: Vec<SocketAddr>,
    pub control: Option<ControlFacts>,
    /// Files of keys and secrets that the proxy or Puma uses.
    pub key_files: Vec<FileFacts>,
}

/// A file or socket on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Permission bits of its folder; without those of others where a folder around it is closed to them.
    pub folder_mode: u32,
}

/// Puma's control server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFacts {
    pub address: ControlAddress,
    /// Whether `/stats` answered a request without a token; `None` if it was not asked.
    pub answers_without_token: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    Tcp(SocketAddr),
    Unix(FileFacts),
}

impl FileFacts {
    /// Look at a file.
    ///
    /// # Errors
    /// When it does not exist or cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let bits = |path: &Path| path.metadata().map(|metadata| metadata.mode() & 0o7777);
        let mut folder_mode = bits(folder)?;
        // A folder around it that is closed to others closes what is in it.
        if folder.canonicalize()?.ancestors().any(|around| bits(around).is_ok_and(|mode| mode & 0o001 == 0)) {
            folder_mode &= !0o007;
        }
        Ok(Self { path: path.to_owned(), mode: bits(path)?, folder_mode })
    }

    /// Whether any local user may connect to a socket with these permissions.
    fn open_to_every_user(&self) -> bool {
        self.mode & 0o002 != 0 && self.folder_mode & 0o001 != 0
    }
}

impl RuntimeFacts {
    /// Take a path among the sockets if it is one.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn add_socket(&mut self, path: &Path) -> io::Result<()> {
        if path.metadata()?.file_type().is_socket() {
            self.app_sockets.push(FileFacts::of(path)?);
        }
        Ok(())
    }
}

/// What the facts mean.
#[must_use]
pub fn at_start(facts: &RuntimeFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |id: Id, path: &Path, detail: String| {
        findings.push(Finding::new(id, Place { path: path.to_owned(), line: None }, detail));
    };
    for socket in facts.app_sockets.iter().filter(|socket| socket.open_to_every_user()) {
        find(Id::E07, &socket.path, format!("Puma's socket has mode {:04o}", socket.mode & 0o777));
    }
    for address in facts.puma_listens.iter().filter(|address| !address.ip().to_canonical().is_loopback()) {
        find(Id::E08, Path::new(&address.to_string()), "Puma listens there, past the proxy".to_owned());
    }
    if let Some(control) = &facts.control {
        let name = match &control.address {
            ControlAddress::Tcp(address) => PathBuf::from(address.to_string()),
            ControlAddress::Unix(file) => file.path.clone(),
        };
        match &control.address {
            ControlAddress::Tcp(address) if !address.ip().to_canonical().is_loopback() => {
                find(Id::E01, &name, "the control server listens there".to_owned());
            }
            ControlAddress::Unix(file) if file.open_to_every_user() => {
                find(Id::E05, &name, format!("the control socket has mode {:04o}", file.mode & 0o777));
            }
            ControlAddress::Tcp(_) | ControlAddress::Unix(_) => {}
        }
        if control.answers_without_token == Some(true) {
            find(Id::E02, &name, "the control server answered without a token".to_owned());
        }
    }
    for file in &facts.key_files {
        if file.mode & 0o077 != 0 {
            find(Id::S02, &file.path, format!("its mode is {:04o}", file.mode & 0o777));
        } else if file.folder_mode & 0o002 != 0 && file.folder_mode & 0o1000 == 0 {
            find(Id::S02, &file.path, format!("its folder can be written by everyone, mode {:04o}", file.folder_mode & 0o777));
        }
    }
    findings
}

/// What is left when waivers are taken off.
#[must_use]
pub fn unwaived(findings: Vec<Finding>, waivers: &[Waiver], today: Date) -> Vec<Finding> {
    let waived = |finding: &Finding| waivers.iter().any(|waiver| waiver.covers(finding.id, &finding.place.path, today));
    findings.into_iter().filter(|finding| !waived(finding)).collect()
}

/// The listening sockets in the text of `/proc/<pid>/net/tcp` or `tcp6`, with their inodes.
#[must_use]
pub fn listening(table: &str) -> Vec<(SocketAddr, u64)> {
    table.lines().skip(1).filter_map(listening_line).collect()
}

fn listening_line(line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    if state != LISTEN {
        return None;
    }
    Some((SocketAddr::new(hexadecimal_address(address)?, u16::from_str_radix(port, 16).ok()?), inode))
}

/// The kernel prints each 32-bit word in the byte order of the machine.
fn hexadecimal_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = text.get(at..at.checked_add(8)?)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    match text.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

/// `TCP_LISTEN`.
const LISTEN: &str = "0A";

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, mode: u32, folder_mode: u32) -> FileFacts {
        FileFacts { path: path.into(), mode, folder_mode }
    }

    #[test]
    fn what_is_open_is_found_and_what_is_closed_is_not() {
        let bad = RuntimeFacts {
            app_sockets: vec![file("/run/app/puma.sock", 0o777, 0o755)],
            puma_listens: vec!["0.0.0.0:3000".parse().unwrap(), "[::]:3001".parse().unwrap()],
            control: Some(ControlFacts {
                address: ControlAddress::Tcp("10.0.0.7:9293".parse().unwrap()),
                answers_without_token: Some(true),
            }),
            key_files: vec![file("/srv/tls.key", 0o640, 0o755), file("/srv/open/tls.key", 0o600, 0o777)],
        };
        let ids: Vec<Id> = at_start(&bad).into_iter().map(|finding| finding.id).collect();
        assert_eq!(ids, [Id::E07, Id::E08, Id::E08, Id::E01, Id::E02, Id::S02, Id::S02]);
        let good = RuntimeFacts {
            app_sockets: vec![file("/run/app/puma.sock", 0o660, 0o755), file("/run/closed/puma.sock", 0o777, 0o750)],
            puma_listens: vec!["127.0.0.1:3000".parse().unwrap(), "[::ffff:127.0.0.1]:3000".parse().unwrap()],
            control: Some(ControlFacts {
                address: ControlAddress::Unix(file("/run/app/control.sock", 0o700, 0o755)),
                answers_without_token: Some(false),
            }),
            key_files: vec![file("/srv/tls.key", 0o600, 0o755), file("/tmp/tls.key", 0o600, 0o1777)],
        };
        assert_eq!(at_start(&good), []);
    }

    #[test]
    fn a_waived_finding_does_not_hold_up_the_start() {
        let facts = RuntimeFacts { app_sockets: vec![file("/run/app/puma.sock", 0o777, 0o755)], ..RuntimeFacts::default() };
        let until = Date::parse("2026-12-31").unwrap();
        let waiver = Waiver { id: "E07".into(), path: Some("/run/app".into()), reason: "one user".into(), until };
        assert_eq!(unwaived(at_start(&facts), std::slice::from_ref(&waiver), until), []);
        assert_eq!(unwaived(at_start(&facts), &[waiver], Date::parse("2027-01-01").unwrap()).len(), 1);
    }

    #[test]
    fn a_socket_of_puma_s_default_mode_is_seen_on_disk() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("puma.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut facts = RuntimeFacts::default();
        facts.add_socket(&path).unwrap();
        assert_eq!(at_start(&facts).len(), 1);
        drop(listener);
    }

    #[test]
    fn our_own_listener_is_in_the_kernel_s_table() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(listening(&table).iter().any(|(found, _)| *found == address));
    }
}
