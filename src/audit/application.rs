//! The application under audit: its files, read once, and what they say together.
//!
//! Threat 4, exposure. Nothing of it is executed; a file is read up to a limit, and a folder up to a depth.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Options;
use super::checks::Id;
use super::deployment::{self, Command, Dockerfile, Unit, Variable};
use super::finding::{Finding, Place};
use super::git::{History, Repository};
use super::yaml;
use crate::puma::puma_rb::{self, PumaRb};
use crate::puma::ruby::{self, Expression};
use crate::puma::versions::{Facts, Lockfile, Version};

pub(super) struct Application<'o> {
    pub(super) root: PathBuf,
    pub(super) options: &'o Options,
    pub(super) puma: PumaRb,
    pub(super) lock: Lockfile,
    pub(super) git: Option<Repository>,
    pub(super) history: History,
    pub(super) dockerfiles: Vec<(String, Dockerfile)>,
    pub(super) units: Vec<(String, Unit)>,
    pub(super) procfiles: Vec<(String, Vec<Command>)>,
    /// Compose files, as YAML.
    pub(super) compose: Vec<(String, yaml::Node)>,
    /// Variables that the deployment files set for Puma, and those of the options.
    pub(super) environment: BTreeMap<String, String>,
    /// What could not be read, for the report.
    pub(super) notes: Vec<String>,
    /// Configurations of Puma that were not looked at yet, the first one last.
    configurations: Vec<PumaRb>,
    findings: Vec<Finding>,
}

impl<'o> Application<'o> {
    pub(super) fn read(root: &Path, options: &'o Options) -> Self {
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        let mut app = Self {
            root,
            options,
            puma: PumaRb::default(),
            lock: Lockfile::default(),
            git: None,
            history: History { complete: true, ..History::default() },
            dockerfiles: Vec::new(),
            units: Vec::new(),
            procfiles: Vec::new(),
            compose: Vec::new(),
            environment: BTreeMap::new(),
            notes: Vec::new(),
            configurations: Vec::new(),
            findings: Vec::new(),
        };
        app.lock = app.text("Gemfile.lock").map(|text| Lockfile::parse(&text)).unwrap_or_default();
        app.read_git();
        app.read_deployment();
        app.read_puma();
        app
    }

    /// Turn to the next of Puma's configurations.
    pub(super) fn next_configuration(&mut self) -> bool {
        self.configurations.pop().map(|puma| self.puma = puma).is_some()
    }

    pub(super) fn find(&mut self, id: Id, path: impl AsRef<Path>, line: Option<u32>, detail: impl Into<String>) {
        self.push(Finding::new(id, self.place(path.as_ref(), line), detail));
    }

    /// A finding that a person should confirm.
    pub(super) fn suspect(&mut self, id: Id, path: impl AsRef<Path>, line: Option<u32>, detail: impl Into<String>) {
        let finding = Finding { unsure: true, ..Finding::new(id, self.place(path.as_ref(), line), detail) };
        self.push(finding);
    }

    fn push(&mut self, finding: Finding) {
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// A place with its path relative to the application.
    fn place(&self, path: &Path, line: Option<u32>) -> Place {
        Place { path: path.strip_prefix(&self.root).unwrap_or(path).to_owned(), line: line.filter(|line| *line > 0) }
    }

    pub(super) fn into_findings(self) -> (Vec<Finding>, Vec<String>) {
        (self.findings, self.notes)
    }

    /// `config/puma.rb` as it is called in findings.
    pub(super) fn puma_path(&self) -> PathBuf {
        self.puma.path.clone().unwrap_or_else(|| self.root.join("config/puma.rb"))
    }

    pub(super) fn puma_version(&self) -> Option<&Version> {
        self.lock.version("puma")
    }

    pub(super) fn puma_facts(&self) -> Facts {
        Facts::of(self.puma_version())
    }

    pub(super) fn is_rails(&self) -> bool {
        self.root.join("config/application.rb").is_file()
    }

    /// Whether some file says how this application is started.
    pub(super) fn is_deployed(&self) -> bool {
        !self.dockerfiles.is_empty() || !self.units.is_empty() || self.procfiles.iter().any(|(name, _)| name == "Procfile")
    }

    /// A regular file's text; `None` if it is missing, too large or something else.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let file = File::open(self.root.join(path)).ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.len() > LARGEST {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn ruby(&self, path: &str) -> Option<Expression> {
        let text = self.text(path)?;
        ruby::parse(Path::new(path), text.as_bytes()).ok()
    }

    pub(super) fn yaml(&mut self, path: &str) -> Vec<yaml::Node> {
        let Some(text) = self.text(path) else { return Vec::new() };
        yaml::parse(&text).unwrap_or_else(|| {
            self.notes.push(format!("{path} is not YAML that can be read: its checks were left out"));
            Vec::new()
        })
    }

    /// Names of the files in a folder, sorted.
    pub(super) fn files(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join(folder)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .take(ENTRIES)
            .filter(|entry| entry.path().is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .map(|name| if folder.is_empty() { name } else { format!("{folder}/{name}") })
            .collect();
        names.sort();
        names
    }

    pub(super) fn metadata(&self, path: impl AsRef<Path>) -> Option<Metadata> {
        fs::metadata(self.root.join(path)).ok()
    }

    /// Permission bits; `None` if there is no such file.
    pub(super) fn mode(&self, path: impl AsRef<Path>) -> Option<u32> {
        self.metadata(path).map(|metadata| metadata.permissions().mode() & 0o7777)
    }

    /// All variables of deployment files: file, variable.
    pub(super) fn deployed_variables(&self) -> Vec<(String, Variable)> {
        let docker = self.dockerfiles.iter().flat_map(|(name, file)| file.effective.iter().map(move |v| (name.clone(), v.clone())));
        let units = self.units.iter().flat_map(|(name, unit)| unit.variables.iter().map(move |v| (name.clone(), v.clone())));
        let commands = self.procfiles.iter().flat_map(|(name, commands)| {
            commands.iter().flat_map(deployment::leading_variables).map(move |variable| (name.clone(), variable))
        });
        let compose = self.compose.iter().flat_map(|(name, node)| compose_variables(node).into_iter().map(move |v| (name.clone(), v)));
        docker.chain(units).chain(commands).chain(compose).collect()
    }

    /// All commands that deployment files start: file, command.
    pub(super) fn deployed_commands(&self) -> Vec<(String, Command)> {
        let docker = self.dockerfiles.iter().flat_map(|(name, file)| file.commands.iter().map(move |c| (name.clone(), c.clone())));
        let units = self.units.iter().flat_map(|(name, unit)| unit.commands.iter().map(move |c| (name.clone(), c.clone())));
        let procfiles = self.procfiles.iter().flat_map(|(name, commands)| commands.iter().map(move |c| (name.clone(), c.clone())));
        let compose = self.compose.iter().flat_map(|(name, node)| {
            node.get("services").map(yaml::Node::entries).unwrap_or_default().iter().filter_map(move |(_, service)| {
                let command = service.get("command")?;
                Some((name.clone(), Command { text: command.scalar()?.to_owned(), line: command.line }))
            })
        });
        docker.chain(units).chain(procfiles).chain(compose).collect()
    }

    fn read_git(&mut self) {
        match Repository::around(&self.root) {
            None => {}
            Some(Err(error)) => self.notes.push(format!("the repository cannot be read, its checks were left out: {error}")),
            Some(Ok(repository)) => {
                if self.options.history {
                    self.history = repository.history(&["", "config", "config/credentials", ".kamal"]);
                    if !self.history.complete {
                        self.notes.push("the repository's history is not complete here: older commits were not read".to_owned());
                    }
                }
                self.git = Some(repository);
            }
        }
    }

    fn read_deployment(&mut self) {
        let named = |name: &str, stem: &str| name == stem || name.starts_with(&format!("{stem}."));
        for name in self.files("") {
            let Some(text) = self.text(&name) else { continue };
            if ["dev", "test", "ci"].iter().any(|purpose| name.contains(&format!(".{purpose}"))) {
                continue;
            }
            if named(&name, "Dockerfile") && !name.ends_with(".dockerignore") {
                self.dockerfiles.push((name, Dockerfile::parse(&text)));
            } else if named(&name, "Procfile") {
                self.procfiles.push((name, deployment::procfile(&text)));
            } else if (name.starts_with("docker-compose") || name.starts_with("compose")) && is_yaml(&name) {
                let documents = self.yaml(&name);
                self.compose.extend(documents.into_iter().map(|node| (name.clone(), node)));
            } else if name.ends_with(".service") {
                self.units.push((name, Unit::parse(&text)));
            }
        }
        for folder in ["config", "config/systemd", "config/deploy", "deploy", "deploy/systemd", "systemd", "etc", "lib/systemd"] {
            for name in self.files(folder).into_iter().filter(|name| name.ends_with(".service")) {
                if let Some(text) = self.text(&name) {
                    self.units.push((name, Unit::parse(&text)));
                }
            }
        }
        // Procfile.dev and compose files are for development more often than not: only what surely is production counts.
        let production = |name: &str| name == "Procfile" || name == "Dockerfile" || name.ends_with(".service");
        self.environment = self
            .deployed_variables()
            .into_iter()
            .filter(|(name, _)| production(name))
            .map(|(_, variable)| (variable.name, variable.value))
            .collect();
        self.environment.extend(self.options.environment.clone());
    }

    fn read_puma(&mut self) {
        let environment = self.environment.clone();
        let lookup = |name: &str| environment.get(name).cloned();
        let named = self.deployed_commands().into_iter().find_map(|(_, command)| {
            let starts_puma = command.text.contains("puma");
            let file = deployment::argument(&command.text, "-C").or_else(|| deployment::argument(&command.text, "--config"));
            file.filter(|_| starts_puma).map(|file| self.root.join(file)).filter(|path| path.is_file())
        });
        let mut paths: Vec<PathBuf> = named.into_iter().collect();
        paths.extend(Some(self.root.join("config/puma.rb")).filter(|path| path.is_file()));
        // Puma takes the file of its environment; which one that is, is decided where it is started.
        let others = self.files("config/puma").into_iter().filter(|path| path.ends_with(".rb"));
        let others: Vec<String> = others.filter(|path| !path.ends_with("/development.rb") && !path.ends_with("/test.rb")).collect();
        paths.extend(others.iter().map(|path| self.root.join(path)));
        for path in paths {
            if self.configurations.iter().any(|known| known.path.as_ref() == Some(&path)) {
                continue;
            }
            match puma_rb::read_file(&self.root, &path, &lookup) {
                Ok(puma) => self.configurations.push(puma),
                Err(error) => self.notes.push(format!("{error}: the checks of this file were left out")),
            }
        }
        if self.configurations.is_empty() {
            let unreadable = self.root.join("config/puma.rb").is_file();
            let defaults = puma_rb::Defaults::from_environment(&lookup);
            self.configurations.push(PumaRb { binds_incomplete: unreadable, defaults, ..PumaRb::default() });
        }
        let root = self.root.clone();
        let unknowns = self.configurations.iter().flat_map(|puma| &puma.unknowns);
        self.notes.extend(unknowns.map(|unknown| {
            let file = unknown.file.strip_prefix(&root).unwrap_or(&unknown.file);
            format!("{}:{}: not known without running it: {}", file.display(), unknown.line, unknown.what)
        }));
        self.configurations.reverse();
    }
}

/// The variables that a compose file sets, in both of its forms.
fn compose_variables(file: &yaml::Node) -> Vec<Variable> {
    let mut variables = Vec::new();
    for (_, service) in file.get("services").map(yaml::Node::entries).unwrap_or_default() {
        let Some(environment) = service.get("environment") else { continue };
        for (name, value) in environment.entries() {
            variables.push(Variable { name: name.clone(), value: value.scalar().unwrap_or_default().to_owned(), line: value.line });
        }
        for item in environment.items() {
            if let Some((name, value)) = item.scalar().and_then(|text| text.split_once('=')) {
                variables.push(Variable { name: name.to_owned(), value: value.to_owned(), line: item.line });
            }
        }
    }
    variables
}

pub(super) fn is_yaml(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "yml" || extension == "yaml")
}

/// Largest file that is read whole.
const LARGEST: u64 = 1024 * 1024;

/// Entries of one folder that are looked at.
const ENTRIES: usize = 20_000;
