//! Secrets: read from files only, never shown, wiped when dropped.
//!
//! Threat: exposure. A value in a configuration file or in the environment ends up in version control, in `ps e`, in a
//! crash report; a file with mode 0600 does not. So each secret is named by a `…_file` key. `credential:NAME` names a
//! systemd credential. The rule for modes is PostgreSQL's: nobody but the owner may read the file, except that the group
//! may where root owns it, as Kubernetes (`fsGroup`) and Debian's `ssl-cert` group arrange it.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Bytes that nothing prints: there is no `Debug`, no `Display` and no copy.
///
/// ```compile_fail
/// fn print(secret: &palisade::config::secret::Secret) -> String {
///     format!("{secret:?}")
/// }
/// ```
///
/// ```compile_fail
/// fn print(secret: &palisade::config::secret::Secret) -> String {
///     format!("{secret}")
/// }
/// ```
#[expect(missing_debug_implementations, reason = "that is what it is for")]
pub struct Secret(Zeroizing<Vec<u8>>);

/// Why a secret cannot be had. Names the file, never a byte of it.
#[derive(Debug)]
pub enum Unreadable {
    /// The file cannot be opened or read.
    Io(PathBuf, io::ErrorKind),
    /// It is a directory, a device or a pipe.
    NotAFile(PathBuf),
    /// Others may read or change it.
    Exposed(PathBuf, u32),
    /// It is larger than any secret should be.
    TooLarge(PathBuf),
    /// There is nothing in it.
    Empty(PathBuf),
    /// `credential:NAME` without `$CREDENTIALS_DIRECTORY`, or with a path for a name.
    NoCredential,
}

impl Secret {
    /// Reads the secret that `from` names: a path, or `credential:NAME`. One newline at the end is not part of it.
    pub fn read(from: &Path) -> Result<Self, Unreadable> {
        let path = file(from)?;
        let mut bytes = read_private(&path)?;
        if bytes.ends_with(b"\n") {
            bytes.pop();
        }
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
        if bytes.is_empty() { Err(Unreadable::Empty(path)) } else { Ok(Secret(bytes)) }
    }

    /// The bytes, to use at once and keep nowhere.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Reads a file that only its owner may read, such as a private key. The buffer is wiped when dropped.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    let io = |error: io::Error| Unreadable::Io(path.to_owned(), error.kind());
    // Before it is opened: to open a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Unreadable::NotAFile(path.to_owned()));
    }
    let file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?;
    if is_exposed(found.permissions().mode(), found.uid()) {
        return Err(Unreadable::Exposed(path.to_owned(), found.permissions().mode() & 0o777));
    }
    // Full capacity from the start: a buffer that grows leaves copies behind that nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LARGEST.saturating_add(1)));
    file.take(LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() > LARGEST { Err(Unreadable::TooLarge(path.to_owned())) } else { Ok(bytes) }
}

/// Whether others than the owner may read or change a secret of this mode and owner.
pub fn is_exposed(mode: u32, owner: u32) -> bool {
    let allowed = if owner == 0 { 0o740 } else { 0o700 };
    mode & 0o777 & !allowed != 0
}

/// The file that a `…_file` key names: the path, or that of the systemd credential `credential:NAME`.
pub fn file(from: &Path) -> Result<PathBuf, Unreadable> {
    locate(from, std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from))
}

fn locate(from: &Path, directory: Option<PathBuf>) -> Result<PathBuf, Unreadable> {
    let Some(name) = from.to_str().and_then(|text| text.strip_prefix("credential:")) else {
        return Ok(from.to_owned());
    };
    let is_plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    match directory {
        Some(directory) if is_plain => Ok(directory.join(name)),
        Some(_) | None => Err(Unreadable::NoCredential),
    }
}

impl Unreadable {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Unreadable::Io(path, _) => format!("check that {} exists and that Palisade's user may read it", path.display()),
            Unreadable::NotAFile(_) => "name a regular file".to_owned(),
            Unreadable::Exposed(path, _) => {
                format!("chmod 600 {0}, owned by the user who starts Palisade (or chmod 640 {0}, owned by root)", path.display())
            }
            Unreadable::TooLarge(_) => format!("name a file of at most {} KiB", LARGEST >> 10),
            Unreadable::Empty(path) => format!("write the secret into {}", path.display()),
            Unreadable::NoCredential => "name it in the unit, as in LoadCredential=NAME:/path, and write credential:NAME here".to_owned(),
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Io(path, kind) => write!(f, "{} cannot be read: {kind}", path.display()),
            Unreadable::NotAFile(path) => write!(f, "{} is not a regular file", path.display()),
            Unreadable::Exposed(path, mode) => {
                write!(f, "{} has mode {mode:04o}: others than its owner may read or change it", path.display())
            }
            Unreadable::TooLarge(path) => write!(f, "{} is too large for a secret", path.display()),
            Unreadable::Empty(path) => write!(f, "{} is empty", path.display()),
            Unreadable::NoCredential => f.write_str("there is no such systemd credential"),
        }
    }
}

impl std::error::Error for Unreadable {}

/// Certificate chains with their key fit well.
const LARGEST: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mode: u32, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_secret_is_read_without_its_newline_and_never_printed() {
        let (_dir, path) = file(0o600, b"planted\r\n");
        let secret = Secret::read(&path).unwrap();
        assert_eq!(secret.expose(), b"planted");
    }

    #[test]
    fn a_secret_that_others_can_read_or_write_is_refused_with_the_remedy() {
        for mode in [0o604, 0o602, 0o620, 0o666, 0o777, 0o660] {
            let (_dir, path) = file(mode, b"planted");
            let error = Secret::read(&path).err().unwrap();
            assert!(matches!(error, Unreadable::Exposed(_, m) if m == mode), "{mode:o}");
            assert!(error.remedy().contains("chmod 600"));
            assert!(!format!("{error} {error:?}").contains("planted"));
        }
    }

    #[test]
    fn a_group_may_read_only_what_root_owns() {
        assert!(!is_exposed(0o100_640, 0));
        assert!(is_exposed(0o100_640, 1000));
        assert!(is_exposed(0o100_660, 0));
        assert!(!is_exposed(0o100_400, 1000));
    }

    #[test]
    fn an_empty_or_endless_secret_is_refused() {
        let (_dir, path) = file(0o600, b"\n");
        assert!(matches!(Secret::read(&path), Err(Unreadable::Empty(_))));
        let (_dir, path) = file(0o600, &vec![b'x'; LARGEST + 1]);
        assert!(matches!(Secret::read(&path), Err(Unreadable::TooLarge(_))));
        assert!(matches!(Secret::read(Path::new("/dev/zero")), Err(Unreadable::NotAFile(_))));
    }

    #[test]
    fn a_credential_is_a_plain_name_in_systemds_directory() {
        let directory = Some(PathBuf::from("/run/credentials/palisade"));
        let found = locate(Path::new("credential:token"), directory.clone()).unwrap();
        assert_eq!(found, Path::new("/run/credentials/palisade/token"));
        for bad in ["credential:", "credential:../x", "credential:a/b"] {
            assert!(locate(Path::new(bad), directory.clone()).is_err(), "{bad}");
        }
        assert!(locate(Path::new("credential:token"), None).is_err());
    }
}
