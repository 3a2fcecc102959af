//! The audit reads what a stranger may have written: no file makes it fall over, and no control byte of one reaches a terminal.

use std::{fs, path::PathBuf};

use palisade::audit::{self, Format, Options};

/// The first byte says which file of an application the rest is.
pub fn check(data: &[u8]) {
    let Some((number, text)) = data.split_first() else { return };
    let Some(name) = FILES.get(usize::from(*number) % FILES.len()) else { return };
    let app = folder();
    let file = app.join(name);
    fs::write(&file, text).expect("a temporary folder can be written to");
    let report = audit::run(&app, &Options { history: false, ..Options::default() });
    for format in [Format::Table, Format::Json, Format::Sarif] {
        let mut out = Vec::new();
        report.write(format, &mut out).expect("a vector takes every byte");
        let out = String::from_utf8(out).expect("a report is UTF-8");
        assert!(!out.chars().any(|c| c.is_control() && c != '\n'), "{name}");
    }
    fs::remove_file(&file).expect("it was written above");
}

/// One application for each process.
fn folder() -> PathBuf {
    let app = std::env::temp_dir().join(format!("palisade-fuzz-audit-{}", std::process::id()));
    for folder in ["config/environments", "config/initializers", ".kamal"] {
        fs::create_dir_all(app.join(folder)).expect("a temporary folder can be made");
    }
    app
}

const FILES: &[&str] = &[
    "config/puma.rb",
    "config/database.yml",
    "config/deploy.yml",
    "config/secrets.yml",
    "config/environments/production.rb",
    "config/initializers/secret_token.rb",
    "config/routes.rb",
    "config/shop.service",
    "config/server.pem",
    "Dockerfile",
    "docker-compose.yml",
    "Procfile",
    "Gemfile",
    "Gemfile.lock",
    ".kamal/secrets",
    ".dockerignore",
    ".env",
    "fly.toml",
    "app.json",
    "values.yaml",
];
