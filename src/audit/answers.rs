//! E12 to E17: what answers, logs and files tell, and with whose rights Puma runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::application::Application;
use super::checks::Id;
use crate::puma::ruby::{Call, Kind};

pub(super) fn check(app: &mut Application<'_>) {
    environment(app);
    error_handler(app);
    logs(app);
    own_files(app);
    public_files(app);
    rights(app);
}

fn environment(app: &mut Application<'_>) {
    let Some(environment) = app.puma.environment() else { return };
    if !matches!(environment.as_str(), "development" | "test") {
        return;
    }
    let line = app.puma.environment.line();
    let written = app.puma.environment.value().is_some() && line.is_some_and(|line| is_literal_environment(app, line));
    // Where nothing says how Puma is started, RAILS_ENV may well come from outside: only a literal is certain then.
    if written || app.is_deployed() || (app.puma.path.is_some() && !app.is_rails() && line.is_none()) {
        app.find(Id::E12, app.puma_path(), line, format!("the environment is {environment}: nothing here sets production"));
    }
}

fn is_literal_environment(app: &Application<'_>, line: u32) -> bool {
    let mut calls = app.puma.programs.iter().flat_map(|(_, program)| program.calls());
    calls.any(|(at, call)| at == line && call.name == "environment" && call.arguments.first().is_some_and(|a| a.literal().is_some()))
}

fn error_handler(app: &mut Application<'_>) {
    let mut found = Vec::new();
    for (path, program) in &app.puma.programs {
        for (line, call) in program.calls().into_iter().filter(|(_, call)| call.name == "lowlevel_error_handler") {
            if tells(call) {
                found.push((path.clone(), line));
            }
        }
    }
    for (path, line) in found {
        app.find(Id::E13, path, Some(line), "lowlevel_error_handler uses the exception's text");
    }
}

/// Whether the block, or a lambda among the arguments, asks an exception for its text.
fn tells(call: &Call) -> bool {
    let bodies = call.block.iter().map(|block| &*block.body).chain(&call.arguments);
    let mut told = false;
    for body in bodies {
        body.walk(&mut |expression| {
            if let Kind::Call(call) = &expression.kind {
                told |= call.receiver.is_some()
                    && matches!(call.name.as_str(), "message" | "backtrace" | "full_message" | "inspect" | "detailed_message");
            }
        });
    }
    told
}

fn logs(app: &mut Application<'_>) {
    let file = app.puma_path();
    if app.puma.log_requests.value() == Some(&true) {
        app.find(Id::E14, &file, app.puma.log_requests.line(), "log_requests writes whole request lines, with tokens in the query");
    }
    if app.puma.debug.value() == Some(&true) {
        app.find(Id::E14, &file, app.puma.debug.line(), "debug is on");
    }
    let Some((out, err)) = app.puma.stdout_redirect.value().cloned() else { return };
    for path in [out, err].into_iter().flatten() {
        if let Some(mode) = app.mode(&path).filter(|mode| mode & 0o037 != 0) {
            app.find(Id::E14, &file, app.puma.stdout_redirect.line(), format!("{path} has mode {:04o}", mode & 0o777));
        }
    }
}

fn own_files(app: &mut Application<'_>) {
    let puma = &app.puma;
    let mut paths: Vec<(&str, String, Option<u32>)> = Vec::new();
    paths.extend(puma.pidfile.value().map(|path| ("pidfile", path.clone(), puma.pidfile.line())));
    paths.extend(puma.state_path.value().map(|path| ("state_path", path.clone(), puma.state_path.line())));
    if let Some((out, err)) = puma.stdout_redirect.value() {
        let line = puma.stdout_redirect.line();
        paths.extend([out, err].into_iter().flatten().map(|path| ("stdout_redirect", path.clone(), line)));
    }
    let public = app.root.join("public");
    let served: Vec<_> = paths.into_iter().filter(|(_, path, _)| app.root.join(path).starts_with(&public)).collect();
    let file = app.puma_path();
    for (name, path, line) in served {
        app.find(Id::E15, &file, line, format!("{name} {path} is inside public/"));
    }
}

fn public_files(app: &mut Application<'_>) {
    let public = app.root.join("public");
    let Ok(home) = public.canonicalize() else { return };
    let mut open = vec![(public, 0_usize)];
    let mut seen = BTreeSet::new();
    let mut looked_at = 0_usize;
    let mut found: Vec<(PathBuf, &str)> = Vec::new();
    while let Some((folder, depth)) = open.pop() {
        let Ok(real) = folder.canonicalize() else { continue };
        if !seen.insert(real) || depth > DEPTH {
            continue;
        }
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            looked_at = looked_at.saturating_add(1);
            if looked_at > ENTRIES {
                app.notes.push(format!("public/ has more than {ENTRIES} entries: the rest was not looked at"));
                open.clear();
                break;
            }
            let path = entry.path();
            let link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            let target = path.canonicalize().ok();
            if link && target.as_ref().is_some_and(|target| !target.starts_with(&home) && leads_astray(app, target)) {
                found.push((path, "a link to files that are not meant to be served"));
                continue;
            }
            let relative = path.strip_prefix(&home).or_else(|_| path.strip_prefix(app.root.join("public"))).unwrap_or(&path).to_owned();
            if let Some(what) = sensitive(&relative) {
                found.push((path, what));
            } else if path.is_dir() {
                open.push((path, depth.saturating_add(1)));
            }
        }
    }
    for (path, what) in found {
        app.find(Id::E16, path, None, what);
    }
}

/// A link out of `public/` is the usual way to uploads; one to the application itself, its configuration or a home
/// folder is not.
fn leads_astray(app: &Application<'_>, target: &Path) -> bool {
    let Ok(root) = app.root.canonicalize() else { return false };
    let private = ["config", "log", "db", "tmp", "app", "lib", ".git", "storage", "vendor"];
    root.starts_with(target) || private.iter().any(|folder| target.starts_with(root.join(folder))) || target.starts_with("/etc")
}

/// What a path below `public/` gives away by its name.
fn sensitive(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let has = |end: &str| name.ends_with(end);
    let in_config = path.parent().is_some_and(|folder| folder.ends_with("config"));
    if name == ".git" || name == ".svn" || name == ".hg" {
        Some("a repository")
    } else if name == ".env" || (name.starts_with(".env.") && !has(".example")) {
        Some("an environment file")
    } else if has(".key") || has(".pem") || has(".p12") || has(".jks") || name == "id_rsa" || name == "id_ed25519" {
        Some("a key")
    } else if has(".sql") || has(".sql.gz") || has(".dump") || has(".sqlite3") || has(".sqlite") {
        Some("a database or its dump")
    } else if has(".log") || has(".pid") || has(".state") {
        Some("a log or state file")
    } else if in_config && (has(".yml") || has(".yaml") || has(".rb") || has(".enc")) {
        Some("a configuration file")
    } else if has(".bak") || has("~") || has(".swp") || has(".orig") {
        Some("a backup of a file")
    } else {
        None
    }
}

fn rights(app: &mut Application<'_>) {
    let mut found = Vec::new();
    for (name, file) in app.dockerfiles.iter().filter(|(_, file)| !file.commands.is_empty()) {
        match &file.user {
            None => found.push((name.clone(), file.last_from, "no USER: Puma runs as root".to_owned())),
            Some((user, line)) if is_root(user) => found.push((name.clone(), Some(*line), format!("USER {user}"))),
            Some(_) => {}
        }
    }
    for (name, unit) in app.units.iter().filter(|(_, unit)| !unit.commands.is_empty() && !unit.dynamic_user) {
        match &unit.user {
            None => found.push((name.clone(), unit.service, "no User=: Puma runs as root".to_owned())),
            Some((user, line)) if is_root(user) => found.push((name.clone(), Some(*line), format!("User={user}"))),
            Some(_) => {}
        }
    }
    for path in ["", "app", "config", "lib", "public", "Gemfile", "Gemfile.lock", "config.ru", "config/puma.rb"] {
        if let Some(mode) = app.mode(path).filter(|mode| mode & 0o002 != 0) {
            let name = if path.is_empty() { "." } else { path };
            found.push((name.to_owned(), None, format!("everyone may write to it, mode {mode:04o}")));
        }
    }
    for (path, line, detail) in found {
        app.find(Id::E17, path, line, detail);
    }
}

fn is_root(user: &str) -> bool {
    let user = user.split(':').next().unwrap_or_default();
    user == "root" || user == "0"
}

/// Folders below `public/` that are entered.
const DEPTH: usize = 8;

/// Files below `public/` that are looked at.
const ENTRIES: usize = 200_000;
