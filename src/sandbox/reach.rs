//! Which files, ports and processes can be reached from now on (Landlock).
//!
//! Threat: exposure and request forgery. Readable are the folders of what a reload or a rotation opens again, writable the folder
//! for bodies and that of the access log. TCP connects to Puma's ports only, whatever an attacker makes of an address, and binds
//! nothing. Folders are granted and not files: certbot, kubelet and deployments replace files, and a grant is for the file that
//! was there. What Landlock cannot restrict on today's kernels: connecting to a unix socket that has a path. There the modes of
//! the sockets decide; those without a path (abstract) and signals to other processes are shut off.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

use crate::{
    config::{Config, Loaded},
    log::sink::Target,
    upstream::connect::Address,
};

/// What stays open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Folders and files that may be read.
    read: BTreeSet<PathBuf>,
    /// Folders of which the names may be listed, for Puma's sockets.
    list: BTreeSet<PathBuf>,
    /// Folders in which files may be made and read back.
    spool: BTreeSet<PathBuf>,
    /// Folders in which files may be made and appended to.
    append: BTreeSet<PathBuf>,
    /// TCP ports that may be connected to.
    ports: BTreeSet<u16>,
    /// Whether systemd's socket for notifications has no path.
    notifies_abstract: bool,
}

/// The version of Landlock whose rules are in force; nothing where the kernel has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Enforced {
    pub version: u8,
}

impl Reach {
    /// What this configuration needs while it serves.
    pub(super) fn of(loaded: &Loaded) -> Self {
        let config = &loaded.config;
        let mut reach = Reach { spool: BTreeSet::from([config.buffer.dir.clone()]), ..Reach::default() };
        // The figures of the process, and the memory that it may use.
        reach.read.extend(["/proc", "/sys/fs/cgroup"].map(PathBuf::from));
        for file in loaded.files() {
            reach.read_again(&file);
            reach.read.insert(folder(&file).join("conf.d"));
        }
        secrets(config).iter().for_each(|file| reach.read_again(file));
        reach.read.extend(config.errors.dir.clone());
        if let Some(file) = &config.upstream.puma_config {
            reach.read_again(file);
            reach.read_again(&config.app.join("config/puma.rb"));
            reach.deployments(&config.app);
        }
        if let Some(file) = &config.upstream.control_state_file {
            reach.read_again(file);
        }
        if let Target::File(path) = Target::parse(&config.log.access_file) {
            reach.append.insert(folder(&path));
        }
        let control = config.upstream.control_url.iter();
        for address in config.upstream.address.0.iter().chain(control) {
            match address {
                Address::Tcp(address) => drop(reach.ports.insert(address.port())),
                Address::Unix(path) => drop(reach.list.insert(existing(&folder(path)))),
            }
        }
        reach.notifies_abstract = std::env::var("NOTIFY_SOCKET").is_ok_and(|name| name.starts_with('@'));
        reach
    }

    /// Gives everything else up, for this thread and all that it starts.
    pub(super) fn enforce(&self) -> Result<Option<Enforced>, RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let append = AccessFs::WriteFile | AccessFs::MakeReg;
        let spool = append | AccessFs::ReadFile | AccessFs::RemoveFile | AccessFs::Truncate;
        let ports = self.ports.iter().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp)));
        let status = Ruleset::default()
            .handle_access(AccessFs::from_all(TESTED))?
            .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
            .scope(self.scope())?
            .create()?
            .add_rules(path_beneath_rules(&self.read, read))?
            .add_rules(path_beneath_rules(&self.list, AccessFs::ReadDir))?
            .add_rules(path_beneath_rules(&self.append, append))?
            .add_rules(path_beneath_rules(&self.spool, spool))?
            .add_rules(ports)?
            .restrict_self()?;
        let version = match status.landlock {
            LandlockStatus::Available { effective_abi, .. } => effective_abi as u8,
            LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
        };
        Ok((status.ruleset != RulesetStatus::NotEnforced).then_some(Enforced { version }))
    }

    fn scope(&self) -> BitFlags<Scope> {
        if self.notifies_abstract { Scope::Signal.into() } else { Scope::Signal | Scope::AbstractUnixSocket }
    }

    /// The folder of a file as it is named, and that in which it really lies: certbot's and kubelet's names are links.
    fn read_again(&mut self, file: &Path) {
        for file in [Some(file.to_owned()), file.canonicalize().ok()].into_iter().flatten() {
            let folder = folder(&file);
            // The root is the folder of everything.
            self.read.insert(if folder == Path::new("/") { file } else { folder });
        }
    }

    /// Capistrano's `current` is a link: the next deployment lies beside the one that it names now.
    fn deployments(&mut self, app: &Path) {
        if app.is_symlink()
            && let Some(beside) = app.canonicalize().ok().as_deref().and_then(Path::parent).filter(|beside| *beside != Path::new("/"))
        {
            self.read.insert(beside.to_owned());
        }
    }
}

impl Enforced {
    /// Whether TCP ports are restricted.
    pub(super) fn ports(self) -> bool {
        self.version >= ABI::V4 as u8
    }

    /// Whether signals and abstract sockets are.
    pub(super) fn scope(self) -> bool {
        self.version >= ABI::V6 as u8
    }
}

/// Everything that is a certificate, a key or a token.
fn secrets(config: &Config) -> Vec<PathBuf> {
    let tls = &config.tls;
    let listed = tls.certificate.iter().flat_map(|certificate| [&certificate.cert_file, &certificate.key_file]);
    let auth = [&tls.client_auth.ca_file, &tls.client_auth.crl_file, &tls.cert_file, &tls.key_file, &config.upstream.control_token_file];
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(|folder| PathBuf::from(folder).join("any"));
    listed.chain(auth.into_iter().flatten()).cloned().chain(credentials).collect()
}

fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

/// The folder, or the nearest around it that is there: Puma may make its own later. Only names can be listed in it.
fn existing(folder: &Path) -> PathBuf {
    folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(folder).to_owned()
}

/// Rights that a later version knows are not taken away by it before a test has seen that.
const TESTED: ABI = ABI::V7;
