//! E01 to E06: the control server that stops, restarts and describes Puma.

use std::path::{Path, PathBuf};

use super::application::Application;
use super::checks::Id;
use super::deployment;
use crate::puma::Bind;
use crate::puma::puma_rb::{Control, ControlUrl, Token};

pub(super) fn check(app: &mut Application<'_>) {
    arguments(app);
    state_file(app);
    let Some(control) = app.puma.control.value().cloned() else { return };
    let line = app.puma.control.line();
    let file = app.puma_path();
    if control.token == Token::None {
        app.find(Id::E02, &file, line, "no_token, or the token `none`");
    }
    if !control.data_only && app.puma_facts().data_only {
        app.find(Id::E03, &file, line, "activate_control_app without data_only");
    }
    match &control.url {
        ControlUrl::Auto => app.find(Id::E04, &file, line, "the URL `auto` is a socket in the folder for temporary files"),
        ControlUrl::At(bind) => address(app, &control, bind, &file, line),
        ControlUrl::Invalid | ControlUrl::Unknown => {}
    }
}

fn address(app: &mut Application<'_>, control: &Control, bind: &Bind, file: &Path, line: Option<u32>) {
    if bind.reachable_from_outside() {
        app.find(Id::E01, file, line, format!("the control server listens on {bind}"));
    }
    let Some(path) = bind.path(&app.root) else { return };
    if is_shared(app, &path) {
        app.find(Id::E04, file, line, format!("{} lies in a folder that everyone may write to", path.display()));
    }
    let mode = match control.umask {
        Some(umask) => 0o777 & !umask,
        None => bind.socket_mode().unwrap_or(0o777),
    };
    if mode & 0o002 != 0 {
        app.find(Id::E05, file, line, format!("the socket will have mode {mode:04o}"));
    }
}

/// `--control-url` and `--control-token` where Puma is started.
fn arguments(app: &mut Application<'_>) {
    for (name, command) in app.deployed_commands() {
        let line = Some(command.line);
        if let Some(bind) = deployment::argument(&command.text, "--control-url").and_then(|url| Bind::parse(&url)) {
            if bind.reachable_from_outside() {
                app.find(Id::E01, &name, line, format!("--control-url {bind}"));
            }
            if bind.open_to_every_user() {
                app.find(Id::E05, &name, line, format!("--control-url {bind} without umask"));
            }
        }
        if deployment::argument(&command.text, "--control-token").is_some_and(|token| token.is_empty() || token == "none") {
            app.find(Id::E02, &name, line, "--control-token none");
        }
    }
}

fn state_file(app: &mut Application<'_>) {
    let Some(path) = app.puma.state_path.value().map(PathBuf::from) else { return };
    let line = app.puma.state_path.line();
    let file = app.puma_path();
    let path = app.root.join(path);
    if is_shared(app, &path) {
        app.find(Id::E04, &file, line, format!("{} lies in a folder that everyone may write to", path.display()));
    }
    if app.puma.control.is_default() {
        return;
    }
    let permission = app.puma.state_permission.or_default(0o644);
    if let Some(mode) = permission.filter(|mode| mode & 0o077 != 0) {
        app.find(Id::E06, &file, line, format!("the state file will have mode {mode:04o}"));
    } else if let Some(mode) = app.mode(&path).filter(|mode| mode & 0o077 != 0) {
        app.find(Id::E06, &path, None, format!("the state file has mode {:04o}", mode & 0o777));
    }
    let tokenless = |line: &&str| {
        line.strip_prefix("control_auth_token:").is_some_and(|token| matches!(token.trim().trim_matches(['"', '\'']), "" | "none"))
    };
    if app.text(&path).is_some_and(|text| text.lines().any(|line| tokenless(&line))) {
        app.find(Id::E02, &path, None, "the state file names no token");
    }
}

/// Whether other users may put files beside this one.
fn is_shared(app: &Application<'_>, path: &Path) -> bool {
    let temporary = ["/tmp", "/var/tmp", "/dev/shm"].iter().any(|folder| path.starts_with(folder));
    // A whole application under /tmp is a test or a build; its own folders are judged by their mode.
    if temporary && !path.starts_with(&app.root) {
        return true;
    }
    path.parent().and_then(|folder| app.mode(folder)).is_some_and(|mode| mode & 0o002 != 0)
}
