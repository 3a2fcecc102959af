//! E07 to E11, R02 to R04: where Puma listens and whom it believes.

use super::application::Application;
use super::checks::Id;
use super::deployment;
use super::yaml;
use crate::puma::puma_rb::RemoteAddress;
use crate::puma::{Bind, Listener};

pub(super) fn check(app: &mut Application<'_>) {
    let mut listeners = app.puma.listeners();
    // Without a file Puma's default holds, unless the command line says otherwise; and not everything is Puma.
    if listeners.iter().any(|listener| listener.line == 0) && (!runs_puma(app) || binds_by_command(app)) {
        listeners.clear();
    }
    for listener in &listeners {
        socket(app, listener);
        tls(app, listener);
    }
    published(app, &listeners);
    believed(app, &listeners);
    limits(app, &listeners);
}

fn runs_puma(app: &Application<'_>) -> bool {
    app.puma.path.is_some() || app.puma_version().is_some() || app.metadata("config.ru").is_some()
}

/// Whether some command names where Puma listens.
fn binds_by_command(app: &Application<'_>) -> bool {
    let names = ["-b", "--bind", "-p", "--port"];
    app.deployed_commands()
        .iter()
        .any(|(_, command)| command.text.contains("puma") && names.iter().any(|name| deployment::argument(&command.text, name).is_some()))
}

/// E07 and E08.
fn socket(app: &mut Application<'_>, listener: &Listener) {
    let file = app.puma_path();
    let line = Some(listener.line);
    let bind = &listener.bind;
    if bind.reachable_from_outside() {
        let detail = if listener.line == 0 { format!("no bind: Puma listens on {bind}") } else { format!("Puma listens on {bind}") };
        app.find(Id::E08, &file, line, detail);
    }
    if is_open(app, bind) {
        let mode = bind.socket_mode().map_or_else(|| "has no permissions".to_owned(), |mode| format!("will have mode {mode:04o}"));
        app.find(Id::E07, &file, line, format!("{bind} {mode}"));
    }
}

/// Whether any local user may connect: the socket's mode counts unless its folder is closed.
fn is_open(app: &Application<'_>, bind: &Bind) -> bool {
    let folder = bind.path(&app.root).and_then(|path| path.parent().and_then(|folder| app.mode(folder)));
    bind.open_to_every_user() && folder.is_none_or(|mode| mode & 0o001 != 0)
}

/// E08 in containers: the port Puma listens on is published past the proxy.
fn published(app: &mut Application<'_>, listeners: &[Listener]) {
    let ports: Vec<u16> = listeners
        .iter()
        .filter(|listener| listener.bind.reachable_from_outside())
        .filter_map(|listener| match &listener.bind {
            Bind::Tcp { port, .. } | Bind::Ssl { port, .. } => Some(*port),
            Bind::Unix { .. } | Bind::Abstract { .. } => None,
        })
        .collect();
    let mut found = Vec::new();
    for (name, file) in &app.dockerfiles {
        for (port, line) in file.exposed.iter().filter(|(port, _)| ports.contains(port)) {
            found.push((name.clone(), *line, format!("EXPOSE {port} is Puma's own port")));
        }
    }
    for (name, file) in &app.compose {
        let services = file.get("services").map(yaml::Node::entries).unwrap_or_default();
        for item in services.iter().filter_map(|(_, service)| service.get("ports")).flat_map(yaml::Node::items) {
            if let Some(port) = item.scalar().and_then(published_port).filter(|port| ports.contains(port)) {
                found.push((name.clone(), item.line, format!("port {port} of Puma is published")));
            }
        }
    }
    for (name, command) in app.deployed_commands() {
        let bind = deployment::argument(&command.text, "-b").or_else(|| deployment::argument(&command.text, "--bind"));
        if !command.text.contains("puma") {
            continue;
        }
        let port = deployment::argument(&command.text, "-p").or_else(|| deployment::argument(&command.text, "--port"));
        if let Some(port) = port {
            let port = port.parse::<u16>().map_or_else(|_| String::new(), |port| format!(" {port}"));
            found.push((name.clone(), command.line, format!("Puma is started with --port{port}: it listens on every address")));
        }
        if let Some(bind) = bind.and_then(|url| Bind::parse(&url)) {
            if bind.reachable_from_outside() {
                found.push((name.clone(), command.line, format!("Puma is started with --bind {bind}")));
            } else if is_open(app, &bind) {
                app.find(Id::E07, &name, Some(command.line), format!("Puma is started with --bind {bind} without umask"));
            }
        }
    }
    for (name, line, detail) in found {
        app.find(Id::E08, name, Some(line), detail);
    }
}

/// The container's port of `[address:]host:container`, unless it is published to this machine only.
fn published_port(mapping: &str) -> Option<u16> {
    let mapping = mapping.split('/').next()?;
    let (outside, inside) = mapping.rsplit_once(':')?;
    if outside.starts_with("127.") || outside.starts_with("[::1]") || outside.starts_with("localhost") {
        return None;
    }
    inside.parse().ok()
}

/// E09.
fn tls(app: &mut Application<'_>, listener: &Listener) {
    let Bind::Ssl { options, .. } = &listener.bind else { return };
    let option = |name: &str| options.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let mut faults = Vec::new();
    if option("verify_mode") == Some("none") && option("ca").is_some() {
        faults.push("verify_mode=none although a CA is named");
    }
    if option("no_tlsv1") == Some("false") {
        faults.push("TLS 1.0 is allowed");
    }
    if option("no_tlsv1_1") == Some("false") {
        faults.push("TLS 1.1 is allowed");
    }
    if !faults.is_empty() {
        app.find(Id::E09, app.puma_path(), Some(listener.line), faults.join(", "));
    }
}

/// E10 and E11.
fn believed(app: &mut Application<'_>, listeners: &[Listener]) {
    let Some(source) = app.puma.set_remote_address.value().cloned() else { return };
    let line = app.puma.set_remote_address.line();
    let file = app.puma_path();
    let direct = listeners.iter().any(|listener| listener.bind.reachable_from_outside() || is_open(app, &listener.bind));
    match source {
        RemoteAddress::Socket | RemoteAddress::Fixed(_) => {}
        RemoteAddress::Header(header) => {
            let ours = ["x-forwarded-for", "x-real-ip"].iter().any(|known| header.eq_ignore_ascii_case(known));
            if direct {
                app.find(Id::E10, file, line, format!("{header} is believed, and Puma can be reached past the proxy"));
            } else if !ours {
                app.find(Id::E10, file, line, format!("{header} is believed, which the proxy does not set"));
            }
        }
        RemoteAddress::ProxyProtocol(version) => {
            if !app.puma_facts().proxy_protocol_sound {
                let puma = app.puma_version().map_or_else(|| "of unknown version".to_owned(), ToString::to_string);
                app.find(Id::E11, file, line, format!("proxy_protocol {version} with Puma {puma}"));
            } else if direct {
                app.find(Id::E11, file, line, format!("proxy_protocol {version}, and Puma can be reached past the proxy"));
            }
        }
    }
}

/// R02 to R04.
fn limits(app: &mut Application<'_>, listeners: &[Listener]) {
    let file = app.puma_path();
    let facts = app.puma_facts();
    let puma = &app.puma;
    if puma.http_content_length_limit.is_default() && facts.content_length_limit && app.options.proxy.body_limit.is_none() {
        app.find(Id::R02, &file, None, "http_content_length_limit is not set, and the proxy's limit is not known here");
    }
    let puma = &app.puma;
    if puma.queue_requests.value() == Some(&false) && listeners.iter().any(|listener| listener.bind.reachable_from_outside()) {
        let line = puma.queue_requests.line();
        app.find(Id::R03, &file, line, "queue_requests false");
    }
    let puma = &app.puma;
    let default = puma.defaults.persistent_timeout.filter(|_| facts.max_keep_alive.is_some()).unwrap_or(facts.persistent_timeout);
    let line = puma.persistent_timeout.line();
    let Some(timeout) = puma.persistent_timeout.or_default(default) else { return };
    let idle = app.options.proxy.upstream_idle.map_or(MARGIN, |idle| idle.as_secs());
    if u64::from(timeout) <= idle {
        app.find(Id::R04, &file, line, format!("persistent_timeout {timeout} s, the proxy needs more than {idle} s"));
    }
}

/// By default the proxy lets go of an idle connection this many seconds before Puma does.
const MARGIN: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_published_to_this_machine_only_is_not_published() {
        assert_eq!(published_port("3000:3000"), Some(3000));
        assert_eq!(published_port("0.0.0.0:80:3000/tcp"), Some(3000));
        assert_eq!(published_port("127.0.0.1:3000:3000"), None);
        assert_eq!(published_port("3000"), None);
    }
}
