//! Where Puma listens: the URLs of `bind`, read as Puma's binder reads them.
//!
//! Threat 4, exposure: Puma creates a unix socket with umask 0, so without `umask` or `mode` in the URL every local
//! user can connect and pass the proxy by (measured: 0777 on 5.6.5).

use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// One address that Puma listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    Unix {
        /// As Puma would open it: absolute, or relative to the application.
        path: PathBuf,
        umask: Option<u32>,
        mode: Option<u32>,
    },
    /// `unix://@name`: no file, no permissions at all.
    Abstract {
        name: String,
    },
    Tcp {
        host: String,
        port: u16,
    },
    Ssl {
        host: String,
        port: u16,
        options: Vec<(String, String)>,
    },
}

/// A `bind` and the line that makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub bind: Bind,
    pub line: u32,
}

impl Bind {
    /// Read a bind URL; `None` if Puma would refuse it or it is of no kind we know.
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let options: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let option = |name: &str| options.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        match scheme {
            "unix" if rest.starts_with('@') => Some(Self::Abstract { name: rest.to_owned() }),
            "unix" if rest.is_empty() => None,
            "unix" => Some(Self::Unix {
                path: PathBuf::from(rest.replace("%20", " ")),
                umask: option("umask").and_then(ruby_integer),
                // Puma writes a 0 in front: `mode=660` and `mode=0660` are both octal.
                mode: option("mode").and_then(|mode| u32::from_str_radix(mode, 8).ok()),
            }),
            "tcp" | "ssl" => {
                let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
                let (host, port) = host_and_port(authority)?;
                if scheme == "tcp" { Some(Self::Tcp { host, port }) } else { Some(Self::Ssl { host, port, options }) }
            }
            _ => None,
        }
    }

    /// Permissions of the socket file that Puma will create: 0777 unless the URL says otherwise.
    #[must_use]
    pub fn socket_mode(&self) -> Option<u32> {
        match self {
            Self::Unix { umask, mode, .. } => Some(mode.unwrap_or(0o777 & !umask.unwrap_or(0))),
            Self::Abstract { .. } | Self::Tcp { .. } | Self::Ssl { .. } => None,
        }
    }

    /// Whether any local user may connect.
    #[must_use]
    pub fn open_to_every_user(&self) -> bool {
        match self {
            Self::Unix { .. } => self.socket_mode().is_some_and(|mode| mode & 0o002 != 0),
            Self::Abstract { .. } => true,
            Self::Tcp { .. } | Self::Ssl { .. } => false,
        }
    }

    /// Whether other machines may connect.
    #[must_use]
    pub fn reachable_from_outside(&self) -> bool {
        match self {
            Self::Unix { .. } | Self::Abstract { .. } => false,
            Self::Tcp { host, .. } | Self::Ssl { host, .. } => !is_loopback(host),
        }
    }

    /// The socket's path, absolute.
    #[must_use]
    pub fn path(&self, app: &Path) -> Option<PathBuf> {
        match self {
            Self::Unix { path, .. } => Some(app.join(path)),
            Self::Abstract { .. } | Self::Tcp { .. } | Self::Ssl { .. } => None,
        }
    }
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix { path, .. } => write!(f, "unix://{}", path.display()),
            Self::Abstract { name } => write!(f, "unix://{name}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ssl { host, port, .. } => write!(f, "ssl://{host}:{port}"),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn host_and_port(authority: &str) -> Option<(String, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    if host.is_empty() || host.contains('@') || (host.contains(':') && !host.starts_with('[')) {
        return None;
    }
    Some((host.to_owned(), port.parse().ok()?))
}

/// Ruby's `Integer(text)`: a leading 0 is octal.
fn ruby_integer(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => u32::from_str_radix(text.trim_start_matches("0o"), 8).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_is_open_to_everyone_unless_umask_or_mode_close_it() {
        for (url, mode, open) in [
            ("unix:///run/app.sock", 0o777, true),
            ("unix:///run/app.sock?umask=0117", 0o660, false),
            ("unix:///run/app.sock?umask=0002", 0o775, false),
            ("unix:///run/app.sock?mode=666", 0o666, true),
            ("unix:///run/app.sock?umask=0077&mode=0660", 0o660, false),
        ] {
            let bind = Bind::parse(url).unwrap();
            assert_eq!((bind.socket_mode(), bind.open_to_every_user()), (Some(mode), open), "{url}");
        }
        assert!(Bind::parse("unix://@app").unwrap().open_to_every_user());
    }

    #[test]
    fn a_relative_socket_lies_in_the_application() {
        let bind = Bind::parse("unix://tmp/sockets/puma.sock").unwrap();
        assert_eq!(bind.path(Path::new("/srv/app")), Some(PathBuf::from("/srv/app/tmp/sockets/puma.sock")));
    }

    #[test]
    fn only_loopback_is_not_reachable_from_outside() {
        for (url, outside) in [
            ("tcp://127.0.0.1:3000", false),
            ("tcp://localhost:3000", false),
            ("tcp://[::1]:3000", false),
            ("tcp://0.0.0.0:3000", true),
            ("tcp://[::]:3000", true),
            ("ssl://10.0.0.7:3000?key=a&cert=b", true),
        ] {
            assert_eq!(Bind::parse(url).unwrap().reachable_from_outside(), outside, "{url}");
        }
    }

    #[test]
    fn nonsense_is_no_bind() {
        for url in ["", "unix://", "tcp://nohost", "tcp://:80", "http://x:1", "tcp://::1:80", "tcp://h:99999", "tcp://x@h:80"] {
            assert_eq!(Bind::parse(url), None, "{url}");
        }
    }
}
