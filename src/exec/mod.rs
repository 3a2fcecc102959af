//! `palisade exec -- bin/rails server`: Palisade starts Puma on sockets of its own, serves before it, and ends with it.
//!
//! Threat: exposure. A Puma that also listens on a TCP port can be reached around the proxy. Here it listens on unix sockets in
//! a folder that only its user can enter, one for each worker, and on nothing else, whatever its own configuration says.

mod supervisor;
mod thruster;

use std::{
    ffi::OsString,
    fmt, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

pub use self::supervisor::{Restart, Supervisor};
use crate::{
    config::Inputs,
    log::{Level, event},
};

/// The command to run and where its Puma will listen.
#[derive(Debug)]
pub struct Plan {
    command: Vec<OsString>,
    restart: Restart,
    folder: Folder,
}

/// Why there is no plan.
#[derive(Debug)]
pub enum NoPlan {
    /// No private folder can be made.
    Folder(io::Error),
    /// The path of the folder cannot stand in `RUBYOPT`.
    Blank(PathBuf),
}

impl fmt::Display for NoPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoPlan::Folder(error) => {
                write!(f, "no folder for Puma's sockets: {error}\n  remedy: set TMPDIR to a folder that can be written to")
            }
            NoPlan::Blank(path) => {
                write!(f, "{}: Ruby cannot take this path\n  remedy: set TMPDIR to a short path without blanks", path.display())
            }
        }
    }
}

impl std::error::Error for NoPlan {}

impl Plan {
    /// Prepares the folder, and points `inputs` to it: the sockets are stronger than any other source.
    pub fn prepare(command: Vec<OsString>, restart: Restart, inputs: &mut Inputs) -> Result<Self, NoPlan> {
        let folder = Folder::make(&std::env::temp_dir())?;
        let at = folder.0.display();
        inputs.set.push(format!("upstream.address=unix:{at}/w*.sock"));
        inputs.set.push(format!("upstream.control_url=unix:{at}/control.sock"));
        Ok(Plan { command, restart, folder })
    }

    /// Starts Puma, within the runtime.
    pub fn start(self) -> io::Result<Supervisor> {
        Supervisor::start(self)
    }

    /// The command with Puma's way to the sockets in its environment.
    fn command(&self) -> io::Result<tokio::process::Command> {
        let (program, arguments) = self.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut ruby_options = std::env::var_os("RUBYOPT").unwrap_or_default();
        ruby_options.push(" -r");
        ruby_options.push(self.folder.0.join(EXEC.0));
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).env("RUBYOPT", ruby_options).env("PALISADE_SOCKETS", &self.folder.0);
        // Sockets and notices of systemd are Palisade's own affair.
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        command.kill_on_drop(true);
        Ok(command)
    }
}

/// Takes Thruster's names in the environment for our own, and says where each setting lives now.
pub fn accept_thruster(inputs: &mut Inputs) {
    for found in thruster::translate(&inputs.environment) {
        event(Level::Warn, "a setting of Thruster", &[("name", &found.name), ("now", &found.hint)]);
        inputs.environment.extend(found.setting);
    }
}

/// A folder that only our user can enter; gone with the plan.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn make(parent: &Path) -> Result<Self, NoPlan> {
        let path = parent.join(format!("palisade-{:016x}", fastrand::u64(..)));
        let fits =
            path.to_str().is_some_and(|text| text.len() <= LONGEST && !text.contains(|c: char| c.is_whitespace() || "*?\"'\\".contains(c)));
        if !fits {
            return Err(NoPlan::Blank(path));
        }
        // It fails where the name is there already, whoever made it.
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(NoPlan::Folder)?;
        let folder = Folder(path);
        for (name, text) in [EXEC, LINES] {
            fs::write(folder.0.join(name), text).map_err(NoPlan::Folder)?;
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            event(Level::Warn, "a folder is left behind", &[("path", &self.0.display()), ("error", &error)]);
        }
    }
}

const EXEC: (&str, &str) = ("exec.rb", include_str!("../../deploy/puma/exec.rb"));
const LINES: (&str, &str) = ("palisade.rb", include_str!("../../deploy/puma/palisade.rb"));
/// A unix socket's path may have 107 bytes.
const LONGEST: usize = 90;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_folder_is_private_and_goes_with_its_plan() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::make(parent.path()).unwrap();
        let path = folder.0.clone();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(path.join("exec.rb").exists() && path.join("palisade.rb").exists());
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_that_ruby_would_take_apart_is_refused() {
        let parent = tempfile::Builder::new().prefix("with blank ").tempdir().unwrap();
        assert!(matches!(Folder::make(parent.path()), Err(NoPlan::Blank(_))));
    }

    #[test]
    fn the_sockets_are_stronger_than_the_file() {
        let mut inputs = Inputs { set: vec!["upstream=http://127.0.0.1:3000".into()], ..Inputs::default() };
        let plan = Plan::prepare(vec!["true".into()], Restart::Never, &mut inputs).unwrap();
        let config = crate::config::Config::load(&inputs).unwrap().config;
        let expected = format!("unix:{}/w*.sock", plan.folder.0.display());
        assert_eq!(config.upstream.address.0.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
        assert!(config.upstream.control_url.is_some());
    }
}
