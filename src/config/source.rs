//! Where settings come from, weakest first: built-in, profile, file, `conf.d/*.toml` beside it, environment, `--set`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use figment::{
    Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};

use super::{
    document::{self, Span, join},
    problem::{Place, Problem},
    schema,
};

/// What a configuration is loaded from. Loading it again after a change is a reload.
#[derive(Clone, Default)]
pub struct Inputs {
    /// The file; `None` where there is none.
    pub file: Option<PathBuf>,
    /// The environment: settings in names that begin with `PALISADE_`, and whatever `config/puma.rb` asks for.
    pub environment: Vec<(OsString, OsString)>,
    /// `--set key=value`, in order.
    pub set: Vec<String>,
}

/// The settings of one source.
#[derive(Debug)]
pub(super) struct Layer {
    pub dict: Dict,
    /// Where each key stands: of the key, and of its value.
    pub places: BTreeMap<String, (Place, Place)>,
}

impl Inputs {
    /// What this process was started with: `file`, else `$PALISADE_CONFIG`, else `proxy.toml` in the working directory,
    /// else `/etc/palisade/proxy.toml`; the last two only where they exist.
    pub fn of_process(file: Option<PathBuf>, set: Vec<String>) -> Self {
        let named = file.or_else(|| std::env::var_os("PALISADE_CONFIG").filter(|name| !name.is_empty()).map(PathBuf::from));
        let usual = || USUAL.iter().map(PathBuf::from).find(|path| path.exists());
        Inputs { file: named.or_else(usual), environment: std::env::vars_os().collect(), set }
    }

    /// Reads every source; a source that cannot be read is a problem, and the others are read all the same.
    pub(super) fn read(&self, problems: &mut Vec<Problem>) -> Vec<Layer> {
        let mut layers = Vec::new();
        for path in self.files(problems) {
            layers.extend(read_file(&path, problems));
        }
        layers.push(self.environment(problems));
        layers.push(self.flags(problems));
        layers.iter_mut().for_each(Layer::expand);
        layers
    }

    /// A variable, as `config/puma.rb` would read it.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let found = self.environment.iter().find(|(known, _)| known == name);
        found.and_then(|(_, value)| value.to_str()).map(str::to_owned)
    }

    /// The file, and those that variables name (`PALISADE_…_FILE`).
    pub(super) fn named_files(&self) -> Vec<PathBuf> {
        let is_file = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with("_FILE"));
        let of_variables = self.environment.iter().filter(|(name, _)| is_file(name)).map(|(_, value)| PathBuf::from(value));
        self.file.iter().cloned().chain(of_variables).collect()
    }

    fn files(&self, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
        let Some(file) = &self.file else { return Vec::new() };
        let mut files = vec![file.clone()];
        let beside = file.parent().unwrap_or(Path::new("")).join("conf.d");
        match std::fs::read_dir(&beside) {
            Ok(entries) => {
                let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
                files.extend(paths.filter(|path| path.extension().is_some_and(|end| end == "toml")));
                if let Some(more) = files.get_mut(1..) {
                    more.sort();
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let what = format!("cannot be listed: {}", error.kind());
                problems.push(Problem::new(Place::File(beside.into(), None), "", what, "let Palisade's user read the directory"));
            }
        }
        files
    }

    fn environment(&self, problems: &mut Vec<Problem>) -> Layer {
        let mut layer = Layer::empty();
        for (name, value) in &self.environment {
            let Some(name) = name.to_str() else { continue };
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            if rest == "CONFIG" || is_service_link(rest) {
                continue;
            }
            let place = Place::Environment(name.into());
            let key = rest.to_ascii_lowercase().replace("__", ".");
            let Some(value) = value.to_str() else {
                problems.push(Problem::new(place, key, "is not valid UTF-8", ""));
                continue;
            };
            match from_file(&key) {
                Some(key) => match read_text(Path::new(value)) {
                    Ok(text) => layer.insert(key, place, text.trim_end_matches(['\r', '\n'])),
                    Err((what, remedy)) => problems.push(Problem::new(place, key, what, remedy)),
                },
                None => layer.insert(&key, place, value),
            }
        }
        layer
    }

    fn flags(&self, problems: &mut Vec<Problem>) -> Layer {
        let mut layer = Layer::empty();
        for flag in &self.set {
            match flag.split_once('=') {
                Some((key, value)) if !key.trim().is_empty() => layer.insert(key.trim(), Place::Flag, value.trim()),
                Some(_) | None => problems.push(Problem::new(Place::Flag, "", "expected key=value", "write --set limits.body=5GiB")),
            }
        }
        layer
    }
}

impl fmt::Debug for Inputs {
    /// The environment holds other programs' secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inputs").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Layer {
    pub(super) fn empty() -> Self {
        Layer { dict: Dict::new(), places: BTreeMap::new() }
    }

    /// A layer that stands as a whole in one place.
    pub(super) fn of_text(text: &str, place: &Place) -> Result<Self, document::Malformed> {
        let tree = document::read(text)?;
        let places = tree.spans.into_keys().map(|key| (key, (place.clone(), place.clone())));
        Ok(Layer { dict: tree.dict, places: places.collect() })
    }

    fn insert(&mut self, path: &str, place: Place, text: &str) {
        let value = typed(schema::node(path), text);
        let mut table = &mut self.dict;
        let mut walked = String::new();
        let mut keys = path.split('.').peekable();
        while let Some(key) = keys.next() {
            walked = join(&walked, key);
            self.places.insert(walked.clone(), (place.clone(), place.clone()));
            if keys.peek().is_none() {
                table.insert(key.to_owned(), value);
                return;
            }
            let inner = table.entry(key.to_owned()).or_insert_with(|| Dict::new().into());
            if inner.as_dict().is_none() {
                *inner = Dict::new().into();
            }
            let Value::Dict(_, next) = inner else { return };
            table = next;
        }
    }

    /// Writes out what may be written shorter, so that layers merge as tables.
    fn expand(&mut self) {
        for (short, key) in SHORTHANDS {
            let Some(value) = self.dict.get(short).filter(|value| value.as_dict().is_none()).cloned() else { continue };
            self.dict.insert(short.to_owned(), Dict::from([(key.to_owned(), value)]).into());
            if let Some(place) = self.places.get(short).cloned() {
                self.places.insert(join(short, key), place);
            }
        }
    }
}

impl Provider for &Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named("palisade")
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

/// Gives text from the environment or the command line the type that its key asks for, so that `00123` and `true` stay text
/// where text is meant. A value in double quotes, brackets or braces is read as TOML.
fn typed(node: Option<&serde_json::Value>, text: &str) -> Value {
    let as_text = || Value::from(text);
    if text.starts_with('"') && text.ends_with('"') {
        return document::literal(text).unwrap_or_else(as_text);
    }
    let Some(node) = node else { return as_text() };
    let allows = |name| schema::allows(node, name);
    if text.starts_with('[') && allows("array") || text.starts_with('{') && allows("object") {
        return document::literal(text).unwrap_or_else(as_text);
    }
    if allows("array") && (text.contains(',') || !allows("string")) {
        let items = schema::items(node);
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        return Value::Array(figment::value::Tag::Default, parts.map(|part| typed(items, part)).collect());
    }
    if allows("integer")
        && let Ok(number) = text.parse::<i64>()
    {
        return number.into();
    }
    if allows("number")
        && let Ok(number) = text.parse::<f64>()
    {
        return number.into();
    }
    match text {
        "true" if allows("boolean") => true.into(),
        "false" if allows("boolean") => false.into(),
        _ => as_text(),
    }
}

/// `x_file` reads `x` from a file, where `x` is a key and `x_file` is none of its own.
fn from_file(key: &str) -> Option<&str> {
    let plain = key.strip_suffix("_file")?;
    (schema::node(key).is_none() && schema::node(plain).is_some()).then_some(plain)
}

/// Kubernetes and Docker set `PALISADE_PORT`, `PALISADE_SERVICE_HOST`, `PALISADE_PORT_443_TCP_ADDR` and the like in every
/// container beside a service of our name.
fn is_service_link(rest: &str) -> bool {
    rest == "PORT" || rest == "NAME" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_") || rest.starts_with("ENV_")
}

fn read_file(path: &Path, problems: &mut Vec<Problem>) -> Option<Layer> {
    let shared: Arc<Path> = path.into();
    let whole = Place::File(Arc::clone(&shared), None);
    let text = match read_text(path) {
        Ok(text) => text,
        Err((what, remedy)) => {
            problems.push(Problem::new(whole, "", what, remedy));
            return None;
        }
    };
    match document::read(&text) {
        Ok(tree) => {
            let at = |position| Place::File(Arc::clone(&shared), Some(position));
            let places = tree.spans.into_iter().map(|(key, Span { key: name, value })| (key, (at(name), at(value))));
            Some(Layer { dict: tree.dict, places: places.collect() })
        }
        Err(bad) => {
            let what = format!("not TOML: {}", bad.why);
            problems.push(Problem::new(Place::File(shared, Some(bad.at)), "", what, "nothing after this place could be read"));
            None
        }
    }
}

/// Reads a file that nobody but its owner may write: who writes the configuration owns the machine's front door. The group
/// may where it is the owner's private one (same number), as umask 002 makes it on Debian and Ubuntu.
fn read_text(path: &Path) -> Result<String, (String, String)> {
    let cannot =
        |error: std::io::Error| (format!("cannot be read: {}", error.kind()), "name a file that Palisade's user may read".to_owned());
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(("is not a regular file".to_owned(), "name a file".to_owned()));
    }
    let file = File::open(path).map_err(cannot)?;
    let found = file.metadata().map_err(cannot)?;
    let shut = if found.uid() == found.gid() { 0o002 } else { 0o022 };
    if found.mode() & shut != 0 {
        let what = format!("has mode {:04o}: others than its owner may change it", found.mode() & 0o777);
        return Err((what, format!("chmod go-w {}", path.display())));
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 == LARGEST { Err(("is too large".to_owned(), "keep it below 4 MiB".to_owned())) } else { Ok(text) }
}

/// Tables that may be written as one value, and the key that the value is for.
pub(super) const SHORTHANDS: [(&str, &str); 1] = [("upstream", "address")];

const PREFIX: &str = "PALISADE_";
const USUAL: [&str; 2] = ["proxy.toml", "/etc/palisade/proxy.toml"];
const LARGEST: u64 = 4 << 20;
