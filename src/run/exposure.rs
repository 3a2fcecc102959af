//! The part of the audit that looks at a running Puma when the proxy starts: `[audit] on_start`.
//!
//! Threat: exposure. A socket that every user may open, a control server without a token, a Puma that also answers the network
//! make the proxy something to walk around. Place: before privileges are given up, while all of it can be seen.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use super::StartError;
use crate::{
    accept::listener,
    audit::{self, ControlAddress, ControlFacts, Date, Door, FileFacts, Finding, RuntimeFacts},
    config::{Config, server::OnStart},
    log::{Level, event},
    upstream::connect::Address,
};

/// Looks; where findings block, they are the error.
pub fn look(config: &Config) -> Result<Vec<Finding>, StartError> {
    if config.audit.on_start == OnStart::Off {
        return Ok(Vec::new());
    }
    let findings = audit::unwaived(audit::at_start(&facts(config)), &config.audit.ignore, Date::today());
    if config.audit.on_start == OnStart::Block && findings.iter().any(|finding| finding.severity >= config.audit.fail_on) {
        return Err(StartError::Audit(findings));
    }
    Ok(findings)
}

/// Says what was found, once there is a log.
pub fn report(findings: &[Finding]) {
    for finding in findings {
        event(Level::Warn, "audit", &[("id", &finding.id.name()), ("severity", &finding.severity), ("finding", finding)]);
    }
}

/// What can be seen. What cannot be looked at is not there yet, or is not ours to judge.
fn facts(config: &Config) -> RuntimeFacts {
    let mut facts = RuntimeFacts::default();
    let addresses: Vec<Address> = config.upstream.address.0.iter().flat_map(Address::expand).collect();
    for address in &addresses {
        if let Address::Unix(path) = address {
            facts.add_socket(path).unwrap_or_default();
        }
    }
    facts.puma_listens = listening_beside(&addresses, config);
    facts.control = config.upstream.control_url.as_ref().and_then(control);
    facts.key_files = keys(config).iter().filter_map(|path| FileFacts::of(path).ok()).collect();
    facts
}

/// Where something listens on a port of Puma's, on this machine. Only of a Puma that is reached on loopback is it known that it
/// is the one on this machine.
fn listening_beside(addresses: &[Address], config: &Config) -> Vec<SocketAddr> {
    let local = addresses.iter().filter_map(|address| match address {
        Address::Tcp(address) if address.ip().to_canonical().is_loopback() => Some(address.port()),
        Address::Tcp(_) | Address::Unix(_) => None,
    });
    let ours: BTreeSet<u16> = config.listeners().iter().filter_map(|listener| port(&listener.address)).collect();
    let ports: BTreeSet<u16> = local.filter(|port| !ours.contains(port)).collect();
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let open = tables.iter().flat_map(|table| audit::listening(table)).map(|(address, _)| address);
    open.filter(|address| ports.contains(&address.port())).collect()
}

fn port(address: &listener::Address) -> Option<u16> {
    match address {
        listener::Address::Any(port) => Some(*port),
        listener::Address::Ip(address) => Some(address.port()),
        listener::Address::Unix(_) | listener::Address::Inherited(_) => None,
    }
}

fn control(address: &Address) -> Option<ControlFacts> {
    let door = match address {
        Address::Tcp(address) => Door::Tcp(*address),
        Address::Unix(path) => Door::Unix(path.clone()),
    };
    let address = match address {
        Address::Tcp(address) => ControlAddress::Tcp(listens_at(*address)),
        Address::Unix(path) => ControlAddress::Unix(FileFacts::of(path).ok()?),
    };
    Some(ControlFacts { address, answers_without_token: door.tells_without_token().ok() })
}

/// A control server that is asked on loopback may listen on every address.
fn listens_at(asked: SocketAddr) -> SocketAddr {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let mut open = tables.iter().flat_map(|table| audit::listening(table)).map(|(address, _)| address);
    let everywhere = |address: &SocketAddr| address.port() == asked.port() && address.ip().is_unspecified();
    let is_here = |ip: IpAddr| ip.to_canonical().is_loopback();
    open.find(|address| is_here(asked.ip()) && everywhere(address)).unwrap_or(asked)
}

fn keys(config: &Config) -> Vec<PathBuf> {
    let listed = config.tls.certificate.iter().map(|certificate| &certificate.key_file);
    let single = [&config.tls.key_file, &config.upstream.control_token_file].into_iter().flatten();
    let application = ["config/master.key", "config/credentials/production.key"].map(|file| config.app.join(file));
    let ours = listed.chain(single).filter(|path| !is_root_s(path)).cloned();
    ours.chain(application).collect()
}

/// Root's own file may be for a group to read, as `ssl-cert` is on Debian: the certificates' own check has the rule.
fn is_root_s(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    path.metadata().is_ok_and(|metadata| metadata.uid() == 0 && metadata.mode() & 0o037 == 0)
}
