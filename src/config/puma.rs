//! `upstream = "puma"`: Puma's addresses as `config/puma.rb` binds them, and its control server, read without running it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use figment::value::{Dict, Tag, Value};

use super::{
    problem::{Place, Problem},
    source::{Inputs, Layer},
};
use crate::puma::{self, Bind, PumaRb, puma_rb::ControlUrl};

/// Writes the addresses in place of the word, wherever a source has it.
pub(super) fn resolve(layers: &mut [Layer], inputs: &Inputs, problems: &mut Vec<Problem>) {
    let app = layers.iter().rev().find_map(|layer| layer.dict.get("app").and_then(Value::as_str)).unwrap_or(".").to_owned();
    for layer in layers {
        let place = layer.places.get(KEY).map_or(Place::BuiltIn, |(_, value)| value.clone());
        let Some(Value::Dict(_, upstream)) = layer.dict.get_mut("upstream") else { continue };
        if !upstream.get("address").is_some_and(is_word) {
            continue;
        }
        upstream.remove("address");
        match read(Path::new(&app), inputs) {
            Ok(puma) => puma.write(upstream),
            Err((what, remedy)) => problems.push(Problem::new(place, KEY, what, remedy)),
        }
    }
}

fn is_word(address: &Value) -> bool {
    match address.as_array() {
        Some([one]) => one.as_str() == Some("puma"),
        Some(_) => false,
        None => address.as_str() == Some("puma"),
    }
}

/// What `config/puma.rb` says about the ways to Puma.
struct Found {
    file: PathBuf,
    addresses: Vec<String>,
    control: Option<String>,
    state: Option<PathBuf>,
}

impl Found {
    /// Writes it down where the source itself says nothing.
    fn write(self, upstream: &mut Dict) {
        let list = self.addresses.into_iter().map(Value::from).collect();
        upstream.insert("address".to_owned(), Value::Array(Tag::Default, list));
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let more = [("puma_config", Some(text(self.file))), ("control_url", self.control), ("control_state_file", self.state.map(text))];
        for (key, value) in more {
            if let Some(value) = value {
                upstream.entry(key.to_owned()).or_insert_with(|| value.into());
            }
        }
    }
}

/// The file that Puma would read, and where it makes Puma listen; or what is wrong, and what to do.
fn read(app: &Path, inputs: &Inputs) -> Result<Found, (String, String)> {
    let instead = "write Puma's address, such as upstream = \"unix:/run/shop/puma.sock\"";
    // The sentence of a file that is not Ruby names the line and quotes nothing.
    let found = puma::read(app, &|name| inputs.variable(name)).map_err(|error| (error.to_string(), instead.to_owned()))?;
    let Some(file) = found.path.clone() else {
        let what = format!("there is no config/puma.rb in {}", app.display());
        return Err((what, format!("set app to the application's root, or {instead}")));
    };
    let unknown = |what: String| (format!("{}: {what}", file.display()), instead.to_owned());
    if found.binds_incomplete {
        return Err(unknown("not every bind can be known without running it".to_owned()));
    }
    let addresses = listeners(&found, app).map_err(unknown)?;
    let control = found.control.value().and_then(|control| match &control.url {
        ControlUrl::At(Bind::Unix { path, .. }) => Some(format!("unix:{}", absolute(app, path).display())),
        ControlUrl::At(Bind::Tcp { host, port }) => reachable(host, *port).map(|address| format!("http://{address}")),
        // TLS would need its certificate; the others cannot be known, or are in a folder that is made up at each start.
        ControlUrl::At(Bind::Ssl { .. } | Bind::Abstract { .. }) | ControlUrl::Auto | ControlUrl::Invalid | ControlUrl::Unknown => None,
    });
    let state = found.state_path.value().filter(|_| control.is_some()).map(|path| absolute(app, Path::new(path)));
    Ok(Found { file, addresses, control, state })
}

fn absolute(app: &Path, path: &Path) -> PathBuf {
    std::path::absolute(app.join(path)).unwrap_or_else(|_| app.join(path))
}

fn listeners(found: &PumaRb, app: &Path) -> Result<Vec<String>, String> {
    let mut addresses = Vec::new();
    for listener in found.listeners() {
        let address = match &listener.bind {
            Bind::Unix { path, .. } => format!("unix:{}", absolute(app, path).display()),
            Bind::Tcp { host, port } => {
                format!("http://{}", reachable(host, *port).ok_or_else(|| format!("line {} binds a host name", listener.line))?)
            }
            Bind::Abstract { .. } => {
                return Err(format!("line {} binds an abstract socket, which every user may connect to", listener.line));
            }
            Bind::Ssl { .. } => return Err(format!("line {} binds TLS, which has no use on one machine", listener.line)),
        };
        addresses.push(address);
    }
    // A unix socket saves a copy and has permissions: where Puma has one, TCP beside it is for others.
    if addresses.iter().any(|address| address.starts_with("unix:")) {
        addresses.retain(|address| address.starts_with("unix:"));
    }
    Ok(addresses)
}

/// Where Puma can be reached from this machine.
fn reachable(host: &str, port: u16) -> Option<SocketAddr> {
    let ip = match host {
        "localhost" | "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ => match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok()? {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
        },
    };
    Some(SocketAddr::new(ip, port))
}

const KEY: &str = "upstream.address";
