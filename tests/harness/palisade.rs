//! The binary under test, started with a configuration of the test's own.

use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tempfile::TempDir;
use toml_edit::{DocumentMut, Item, Table};

use super::{PATIENCE, answer::Answer, client::Client, eventually, free_port, process::Process, within};

/// A configuration in the making. It starts from an open port, an upstream, logs and an admin port; everything else is at
/// its default until a test says otherwise.
#[derive(Debug)]
pub struct Setup {
    document: DocumentMut,
    dir: TempDir,
    ports: Ports,
    tls: bool,
    awaits: &'static str,
    environment: Vec<(&'static str, String)>,
    /// What `palisade exec` gets, instead of `palisade run`.
    exec: Option<Vec<OsString>>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    http: u16,
    https: u16,
    admin: u16,
}

/// The running proxy.
#[derive(Debug)]
pub struct Palisade {
    process: Process,
    dir: TempDir,
    ports: Ports,
    root: Option<CertificateDer<'static>>,
}

impl Setup {
    pub fn before(upstream: impl AsRef<str>) -> Setup {
        let dir = TempDir::new().unwrap();
        let ports = Ports { http: free_port(), https: free_port(), admin: free_port() };
        let mut setup =
            Setup { document: DocumentMut::new(), dir, ports, tls: false, awaits: "/ready", environment: Vec::new(), exec: None };
        fs::create_dir(setup.spool()).unwrap();
        setup.merge(&format!(
            "domains = [\"localhost\", \"127.0.0.1\"]\n\
             [[listener]]\naddress = \"127.0.0.1:{}\"\nprotocol = \"http\"\n\
             [upstream]\naddress = {:?}\n\
             [buffer]\ndir = {:?}\n\
             [log]\naccess = \"json\"\naccess_file = {:?}\n\
             [admin]\nlisten = \"127.0.0.1:{}\"\n",
            ports.http,
            upstream.as_ref(),
            setup.spool().display().to_string(),
            setup.log().display().to_string(),
            ports.admin,
        ));
        setup
    }

    /// Adds an HTTPS listener with a certificate for `localhost`, made for this test.
    pub fn tls(mut self) -> Setup {
        self.tls = true;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let (cert, key) = (self.cert(), self.dir.path().join("key.pem"));
        fs::write(&cert, made.cert.pem()).unwrap();
        write_private(&key, &made.signing_key.serialize_pem());
        fs::write(self.dir.path().join("cert.der"), made.cert.der()).unwrap();
        let port = self.ports.https;
        self.merge(&format!(
            "[[listener]]\naddress = \"127.0.0.1:{port}\"\nprotocol = \"https\"\n[tls]\ncert_file = {:?}\nkey_file = {:?}\n",
            cert.display().to_string(),
            key.display().to_string()
        ));
        self
    }

    /// Adds to or replaces in the configuration: TOML as an operator would write it.
    pub fn with(mut self, toml: &str) -> Setup {
        self.merge(toml);
        self
    }

    /// Waits for `/live` instead of `/ready`, where Puma is meant to be away.
    pub fn without_upstream(mut self) -> Setup {
        self.awaits = "/live";
        self
    }

    /// Sets a variable of the process.
    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Setup {
        self.environment.push((name, value.into()));
        self
    }

    /// Has Palisade start `command` itself, with options of `exec` before it.
    pub fn exec(mut self, options: &[&str], command: &Command) -> Setup {
        let mut words: Vec<OsString> = options.iter().map(OsString::from).collect();
        words.push("--".into());
        words.push(command.get_program().into());
        words.extend(command.get_args().map(OsString::from));
        self.exec = Some(words);
        self
    }

    pub fn start(self) -> Palisade {
        let file = self.file();
        fs::write(&file, self.document.to_string()).unwrap();
        let mut command = binary();
        command.arg(if self.exec.is_some() { "exec" } else { "run" }).arg("--config").arg(&file);
        // Whatever it leaves behind is left here, and seen.
        command.args(self.exec.iter().flatten()).env("TMPDIR", self.dir.path()).envs(self.environment.iter().cloned());
        let process = Process::start("palisade", command, self.dir.path());
        let root = self.tls.then(|| CertificateDer::from(fs::read(self.dir.path().join("cert.der")).unwrap()));
        let mut palisade = Palisade { process, dir: self.dir, ports: self.ports, root };
        let awaits = self.awaits;
        eventually(&format!("palisade answers 200 on {awaits}"), || {
            let ended = palisade.process.ended();
            assert!(ended.is_none(), "palisade ended with {ended:?}:\n{}", palisade.process.output());
            palisade.admin(awaits).filter(|answer| answer.status == 200)
        });
        palisade
    }

    /// Runs it where it is expected to end by itself.
    pub fn fails(self) -> Output {
        let file = self.file();
        fs::write(&file, self.document.to_string()).unwrap();
        finish(binary().args(["run", "--config"]).arg(&file), self.dir.path())
    }

    pub fn spool(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    pub fn cert(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("proxy.toml")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("access.log")
    }

    fn merge(&mut self, toml: &str) {
        let more: DocumentMut = toml.parse().unwrap_or_else(|e| panic!("{e} in {toml}"));
        merge(self.document.as_table_mut(), more.as_table());
    }
}

impl Palisade {
    pub fn http(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.http).into()
    }

    pub fn https(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.https).into()
    }

    pub fn connect(&self) -> Client {
        Client::tcp(self.http())
    }

    pub fn connect_tls(&self) -> Client {
        Client::tls(self.https(), "localhost", self.root())
    }

    pub fn root(&self) -> &CertificateDer<'static> {
        self.root.as_ref().expect("set up with tls()")
    }

    pub fn cert_file(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    /// Where it may leave files.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("proxy.toml")
    }

    pub fn spool(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// An answer of the admin listener; none while it does not listen.
    pub fn admin(&self, path: &str) -> Option<Answer> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.admin));
        std::net::TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        let mut client = Client::tcp(address);
        client.try_send(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")).ok()?;
        client.try_answer("GET")
    }

    /// The sum of every series of `name` that has all these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.admin("/metrics").expect("metrics").text();
        let series = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        series
            .filter(|line| labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\""))))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Waits until requests were refused for this reason, and fails if the metric and the log do not agree on it.
    pub fn refused(&self, label: &str) -> Value {
        let line = self.logged(&format!("a line with end={label}"), |line| line["end"] == label);
        within(PATIENCE, &format!("the metric of {label}"), || {
            (self.metric("palisade_requests_rejected_total", &[("reason", label)]) >= 1.0).then_some(())
        });
        line
    }

    /// All access log lines so far.
    pub fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("not JSON ({e}): {line}"))).collect()
    }

    /// Waits for an access log line that satisfies `wanted`.
    pub fn logged(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        within(PATIENCE, &format!("{what}, in {:?}", self.dir.path()), || self.log().into_iter().find(|line| wanted(line)))
    }

    /// Waits until no more descriptors are open than `before`.
    pub fn descriptors_return_to(&self, before: usize) {
        eventually(&format!("descriptors return to {before}"), || (self.process.descriptors() <= before).then_some(()));
    }

    /// Fails unless a new client gets the start page.
    pub fn serves(&self) {
        let answer = self.connect().get("/");
        assert_eq!(answer.status, 200, "an honest client is not served: {answer:?}");
    }
}

/// The binary of this build, without the environment of whoever runs the tests.
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    for (name, _) in std::env::vars_os() {
        let taken = ["PORT", "WEB_CONCURRENCY", "RAILS_MAX_THREADS", "RAILS_ENV"].iter().any(|n| name == *n);
        if taken || name.to_string_lossy().starts_with("PALISADE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command that ends by itself, with a deadline.
pub fn finish(command: &mut Command, dir: &Path) -> Output {
    let (out, err) = (dir.join("stdout"), dir.join("stderr"));
    command.stdin(std::process::Stdio::null());
    command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
    let mut child = command.spawn().unwrap();
    let start = std::time::Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("did not end by itself:\n{}", String::from_utf8_lossy(&fs::read(&err).unwrap()));
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    Output { status, stdout: fs::read(&out).unwrap(), stderr: fs::read(&err).unwrap() }
}

/// A file that only its owner can read: the proxy refuses a key that others can.
pub fn write_private(path: &Path, text: &str) {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn merge(into: &mut Table, more: &Table) {
    for (key, item) in more {
        match (into.get_mut(key), item) {
            (Some(Item::Table(old)), Item::Table(new)) => merge(old, new),
            (Some(Item::ArrayOfTables(old)), Item::ArrayOfTables(new)) => new.iter().for_each(|table| old.push(unplaced(table))),
            (_, Item::Table(new)) => drop(into.insert(key, Item::Table(unplaced(new)))),
            (_, Item::ArrayOfTables(new)) => drop(into.insert(key, Item::ArrayOfTables(new.iter().map(unplaced).collect()))),
            (_, value) => drop(into.insert(key, value.clone())),
        }
    }
}

/// A copy that has forgotten where it stood in the text it came from; otherwise the tables of two texts mix when printed.
fn unplaced(table: &Table) -> Table {
    let mut copy = Table::new();
    merge(&mut copy, table);
    copy
}

#[test]
fn configurations_merge_as_an_operator_would_expect() {
    let setup = Setup::before("127.0.0.1:1").with("[upstream]\nslots = 3\n[limits]\nbody = \"1MiB\"\n").with("[limits]\nbody = \"2MiB\"\n");
    let again: DocumentMut = setup.document.to_string().parse().unwrap();
    assert_eq!(again["upstream"]["slots"].as_integer(), Some(3));
    assert_eq!(again["upstream"]["address"].as_str(), Some("127.0.0.1:1"));
    assert_eq!(again["limits"]["body"].as_str(), Some("2MiB"));
    assert_eq!(again["domains"].as_array().unwrap().len(), 2);
}
