//! S03, S04, S05, S08 to S12, S15, S16: secrets written where everybody reads them.

use std::path::PathBuf;

use super::application::{Application, is_yaml};
use super::checks::Id;
use super::deployment::{self, Variable};
use super::secret::{self, Name, fingerprint, shown};
use super::yaml::Leaf;
use crate::puma::puma_rb::Token;
use crate::puma::ruby::{Call, Expression, Kind};

pub(super) fn check(app: &mut Application<'_>) {
    control_token(app);
    puma_rb(app);
    secret_key_base(app);
    rails_yaml(app);
    deployment_files(app);
    images(app);
    units(app);
    placeholders(app);
}

fn control_token(app: &mut Application<'_>) {
    if let Some(control) = app.puma.control.value()
        && control.token == Token::Literal
    {
        let line = app.puma.control.line();
        app.find(Id::S03, app.puma_path(), line, "auth_token of activate_control_app is a literal");
    }
    for (name, command) in app.deployed_commands() {
        if let Some(token) = deployment::argument(&command.text, "--control-token")
            && !secret::is_reference(&token)
            && token != "none"
        {
            app.find(Id::S03, name, Some(command.line), format!("--control-token with a value, fingerprint {}", fingerprint(&token)));
        }
    }
}

/// S04 and S05: literals in puma.rb and what it loads.
fn puma_rb(app: &mut Application<'_>) {
    let mut found = Vec::new();
    for (path, program) in &app.puma.programs {
        program.walk(&mut |expression| literals_of(expression, path, &mut found));
    }
    for (id, path, line, detail) in found {
        app.find(id, path, Some(line), detail);
    }
}

type Found = Vec<(Id, PathBuf, u32, String)>;

fn literals_of(expression: &Expression, path: &std::path::Path, found: &mut Found) {
    let mut report = |id: Id, line: u32, name: &str, kind: &str, value: &str| {
        found.push((id, path.to_owned(), line, format!("{} is {kind}, fingerprint {}", shown(name), fingerprint(value))));
    };
    match &expression.kind {
        Kind::AssignLocal(name, value) | Kind::AssignConstant(name, value) => {
            if let Some(text) = value.literal()
                && let Some(kind) = secret::kind(name, text)
            {
                report(if is_private_key(text) { Id::S05 } else { Id::S04 }, value.line, name, kind, text);
            }
        }
        Kind::Call(call) if call.name == "[]=" => {
            if let [key, value] = call.arguments.as_slice()
                && let (Some(name), Some(text)) = (key.literal(), value.literal())
                && let Some(kind) = secret::kind(name, text)
            {
                report(Id::S04, value.line, name, kind, text);
            }
        }
        Kind::OrAssign(target, value) => {
            if let (Some(name), Some(text)) = (target_name(target), value.literal())
                && let Some(kind) = secret::kind(name, text)
            {
                report(Id::S04, value.line, name, kind, text);
            }
        }
        Kind::Call(call) => {
            for argument in &call.arguments {
                call_argument(call, argument, &mut report);
            }
        }
        Kind::Nil
        | Kind::True
        | Kind::False
        | Kind::Int(_)
        | Kind::Float(_)
        | Kind::Str(_)
        | Kind::Sym(_)
        | Kind::Interpolated(_)
        | Kind::Array(_)
        | Kind::Hash(_)
        | Kind::File
        | Kind::Local(_)
        | Kind::Constant(_)
        | Kind::If { .. }
        | Kind::And(..)
        | Kind::Or(..)
        | Kind::Sequence(_)
        | Kind::Opaque(..) => {}
    }
}

fn call_argument(call: &Call, argument: &Expression, report: &mut dyn FnMut(Id, u32, &str, &str, &str)) {
    if let Kind::Hash(pairs) = &argument.kind {
        for (key, value) in pairs {
            let (Some(name), Some(text)) = (key.literal(), value.literal()) else { continue };
            // The control token has a check of its own.
            if call.name == "activate_control_app" {
                continue;
            }
            if matches!(name, "key_pem" | "keystore_pass" | "truststore_pass" | "key_password") && !secret::is_reference(text) {
                report(Id::S05, value.line, name, "written into the file", text);
            } else if let Some(kind) = secret::kind(name, text) {
                report(if is_private_key(text) { Id::S05 } else { Id::S04 }, value.line, name, kind, text);
            }
        }
    } else if let Some(text) = argument.literal()
        && let Some(kind) = secret::known_form(text)
    {
        report(if is_private_key(text) { Id::S05 } else { Id::S04 }, argument.line, &call.name, kind, text);
    }
}

fn is_private_key(text: &str) -> bool {
    text.contains("PRIVATE KEY-----")
}

fn target_name(target: &Expression) -> Option<&str> {
    if let Kind::Call(call) = &target.kind {
        return call.arguments.first().and_then(Expression::literal);
    }
    target.name()
}

fn secret_key_base(app: &mut Application<'_>) {
    for document in app.yaml("config/secrets.yml") {
        let Some(node) = document.get("production").and_then(|production| production.get("secret_key_base")) else { continue };
        if let Some(value) = node.scalar().filter(|value| is_long_hex(value)) {
            let detail = format!("secret_key_base of production, fingerprint {}", fingerprint(value));
            app.find(Id::S08, "config/secrets.yml", Some(node.line), detail);
        }
    }
    let path = "config/initializers/secret_token.rb";
    let Some(program) = app.ruby(path) else { return };
    for (line, call) in program.calls() {
        if !matches!(call.name.as_str(), "secret_key_base=" | "secret_token=") {
            continue;
        }
        if let Some(value) = call.arguments.first().and_then(Expression::literal).filter(|value| value.len() >= 30) {
            app.find(Id::S08, path, Some(line), format!("{} a literal, fingerprint {}", call.name, fingerprint(value)));
        }
    }
}

fn is_long_hex(value: &str) -> bool {
    value.len() >= 30 && value.chars().all(|c| c.is_ascii_hexdigit())
}

fn rails_yaml(app: &mut Application<'_>) {
    for name in ["database", "cable", "storage", "cache", "queue"] {
        let path = format!("config/{name}.yml");
        for document in app.yaml(&path) {
            for leaf in document.leaves() {
                // Passwords of a developer's own machine are no secret.
                if leaf.path.first().is_some_and(|section| matches!(*section, "development" | "test" | "local")) {
                    continue;
                }
                if let Some(detail) = leaf_secret(&leaf) {
                    app.find(Id::S09, &path, Some(leaf.line), detail);
                }
            }
        }
    }
}

fn leaf_secret(leaf: &Leaf<'_>) -> Option<String> {
    let name = leaf.path.last()?;
    let kind = secret::kind(name, leaf.value)?;
    let path: Vec<&str> = leaf.path.iter().map(|name| shown(name)).collect();
    Some(format!("{} is {kind}, fingerprint {}", path.join("."), fingerprint(leaf.value)))
}

fn deployment_files(app: &mut Application<'_>) {
    let mut paths: Vec<String> = app.files("");
    paths.retain(|name| {
        matches!(name.as_str(), "app.json" | "fly.toml" | "render.yaml" | "Procfile" | "values.yaml" | "values.yml")
            || ((name.starts_with("docker-compose") || name.starts_with("compose") || name.starts_with("values")) && is_yaml(name))
    });
    for folder in ["config", "chart", "charts", "helm", "deploy"] {
        let files = app.files(folder).into_iter();
        paths.extend(files.filter(|name| {
            let file = name.rsplit_once('/').map_or(name.as_str(), |(_, file)| file);
            is_yaml(file) && (file.starts_with("values") || file.starts_with("deploy."))
        }));
    }
    for path in paths {
        let found = if is_yaml(&path) || path == "app.json" {
            let documents = app.yaml(&path);
            documents.iter().flat_map(|document| document.leaves()).filter_map(|leaf| Some((leaf.line, item_secret(&leaf)?))).collect()
        } else if path == "Procfile" {
            let commands = app.text(&path).map(|text| deployment::procfile(&text)).unwrap_or_default();
            commands.iter().flat_map(deployment::leading_variables).filter_map(|v| Some((v.line, variable_secret(&v)?))).collect()
        } else {
            toml_secrets(&app.text(&path).unwrap_or_default())
        };
        let found: Vec<(u32, String)> = found;
        for (line, detail) in found {
            app.find(Id::S11, &path, Some(line), detail);
        }
    }
}

/// A leaf, or an item `NAME=value` of a list.
fn item_secret(leaf: &Leaf<'_>) -> Option<String> {
    leaf_secret(leaf).or_else(|| {
        let (name, value) = leaf.value.split_once('=')?;
        variable_secret(&Variable { name: name.to_owned(), value: value.to_owned(), line: leaf.line })
    })
}

fn variable_secret(variable: &Variable) -> Option<String> {
    let kind = secret::kind(&variable.name, &variable.value)?;
    Some(format!("{} is {kind}, fingerprint {}", shown(&variable.name), fingerprint(&variable.value)))
}

/// `name = "value"` lines of a TOML file.
fn toml_secrets(text: &str) -> Vec<(u32, String)> {
    let mut within = false;
    text.lines()
        .zip(1_u32..)
        .filter(|(line, _)| {
            // The lines of a text in three quotes have no names.
            let was_within = within;
            let quotes = line.matches("\"\"\"").count().max(line.matches("\'\'\'").count());
            within ^= quotes % 2 == 1;
            !was_within && !line.trim_start().starts_with('#')
        })
        .filter_map(|(line, number)| {
            let (name, value) = line.split_once('=')?;
            let value = value.trim().trim_matches(['"', '\'']).to_owned();
            Some((number, variable_secret(&Variable { name: name.trim().to_owned(), value, line: number })?))
        })
        .collect()
}

fn images(app: &mut Application<'_>) {
    let mut found = Vec::new();
    for (path, file) in &app.dockerfiles {
        for variable in &file.variables {
            if let Some(detail) = variable_secret(variable) {
                found.push((path.clone(), variable.line, format!("ENV {detail}")));
            }
        }
        for argument in &file.arguments {
            // An ARG needs no value to be kept: what is given at build time is in the history as well.
            if secret::name(&argument.name) == Name::Secret {
                found.push((path.clone(), argument.line, format!("ARG {}", shown(&argument.name))));
            }
        }
    }
    for (path, line, detail) in found {
        app.find(Id::S12, path, Some(line), detail);
    }
}

fn units(app: &mut Application<'_>) {
    let found: Vec<_> = app
        .units
        .iter()
        .flat_map(|(path, unit)| unit.variables.iter().map(move |variable| (path.clone(), variable)))
        .filter_map(|(path, variable)| Some((path, variable.line, variable_secret(variable)?)))
        .collect();
    for (path, line, detail) in found {
        app.find(Id::S15, path, Some(line), detail);
    }
}

fn placeholders(app: &mut Application<'_>) {
    let development: Vec<String> = app
        .files("tmp")
        .into_iter()
        .filter(|name| name.ends_with("_secret.txt"))
        .filter_map(|name| app.text(name))
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
        .collect();
    for (path, variable) in app.deployed_variables() {
        let line = Some(variable.line);
        let value = variable.value.trim();
        match variable.name.as_str() {
            "SECRET_KEY_BASE_DUMMY" if !matches!(value, "" | "0" | "false") => {
                app.find(Id::S16, path, line, "SECRET_KEY_BASE_DUMMY is set where Puma runs, not only for a build step");
            }
            "SECRET_KEY_BASE" if development.iter().any(|known| known == value) => {
                app.find(Id::S16, path, line, "SECRET_KEY_BASE is the one made for development in tmp/");
            }
            "SECRET_KEY_BASE" if is_sample(value) => {
                app.find(Id::S16, path, line, "SECRET_KEY_BASE is a placeholder");
            }
            _ => {}
        }
    }
}

fn is_sample(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    let first = value.chars().next();
    let one_character = value.len() > 1 && value.chars().all(|c| Some(c) == first);
    !secret::is_reference(&value)
        && (one_character || SAMPLES.iter().any(|sample| value == *sample || (value.len() < 40 && value.contains(sample))))
}

/// Placeholders of tutorials and images.
const SAMPLES: &[&str] = &["changeme", "change_me", "change-me", "dummy", "placeholder", "secret", "example", "test", "foobar", "12345"];
