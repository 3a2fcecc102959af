//! The control server's token: from a file of its own, from `puma.rb`, or from the state file in which Puma notes the one
//! that it has made up.
//!
//! Threat: exposure. Whoever has the token can stop Puma. It is read when it is needed and kept nowhere; it never stands in
//! our own configuration.

use std::{fs::File, io::Read, path::Path};

use zeroize::Zeroizing;

use crate::{
    config::secret::{Secret, Unreadable},
    puma::{
        evaluate::{Evaluator, Invocation, Language},
        puma_rb,
        value::{Value, Why},
    },
    upstream::Config,
};

/// The token of `control_token_file`, where there is one.
pub fn token(config: &Config) -> Result<Option<Secret>, Unreadable> {
    config.control_token_file.as_deref().map(Secret::read).transpose()
}

/// What to ask with; read each time, as it may be replaced while we run, and is made up anew at each start of Puma. Empty
/// where nothing names a token: Puma may ask for none. `None` where the file that should have it cannot be read.
pub(super) fn find(config: &Config) -> Option<Zeroizing<Vec<u8>>> {
    if let Some(token) = token(config).ok()? {
        return Some(Zeroizing::new(token.expose().to_vec()));
    }
    let written = config.puma_config.as_deref().and_then(of_puma_rb);
    let noted = || config.control_state_file.as_deref().and_then(of_state_file);
    Some(Zeroizing::new(written.or_else(noted).map(|token| token.as_bytes().to_vec()).unwrap_or_default()))
}

/// `activate_control_app url, { auth_token: … }`.
fn of_puma_rb(path: &Path) -> Option<Zeroizing<String>> {
    let (app, path) = puma_rb::places(path)?;
    let program = puma_rb::parse_file(&path).ok()?;
    let mut found = Found(None);
    Evaluator::new(&mut found, &|name| std::env::var(name).ok(), &app, &path).run(&program);
    found.0.filter(|token| !token.is_empty())
}

/// `control_auth_token: …` of Puma's state file, which is YAML with one pair on a line.
fn of_state_file(path: &Path) -> Option<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(LONGEST));
    File::open(path).ok()?.take(LONGEST as u64).read_to_string(&mut text).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("control_auth_token:"))?.trim();
    let quoted = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
    (!value.is_empty()).then(|| Zeroizing::new(value.to_owned()))
}

/// Looks for the token alone; everything else may say what it likes.
struct Found(Option<Zeroizing<String>>);

impl Language for Found {
    fn call(&mut self, call: &Invocation<'_>) -> Option<Value> {
        if call.source.name == "activate_control_app" {
            let option = call.arguments.iter().find_map(|value| value.entry("auth_token"));
            self.0 = option.and_then(Value::as_str).map(|token| Zeroizing::new(token.to_owned()));
        }
        Some(Value::Nil)
    }

    fn unknown(&mut self, _file: &Path, _why: Why) {}
}

/// A state file has five short lines.
const LONGEST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(puma_rb: &str, state: Option<&str>) -> String {
        let app = tempfile::tempdir().unwrap();
        std::fs::create_dir(app.path().join("config")).unwrap();
        let (path, noted) = (app.path().join("config/puma.rb"), app.path().join("puma.state"));
        std::fs::write(&path, puma_rb).unwrap();
        if let Some(state) = state {
            std::fs::write(&noted, state).unwrap();
        }
        let config = Config { puma_config: Some(path), control_state_file: Some(noted), ..Config::default() };
        String::from_utf8(find(&config).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn a_token_is_read_where_puma_reads_or_notes_it() {
        let written = "workers 2\ntoken = \"s3\" + \"cret\"\nactivate_control_app \"unix://c.sock\", { auth_token: token }\nunheard_of 3\n";
        assert_eq!(of(written, None), "s3cret");
        let silent = "activate_control_app \"unix://c.sock\"\n";
        assert_eq!(of(silent, Some("---\npid: 7\ncontrol_url: unix://c.sock\ncontrol_auth_token: \"0042\"\n")), "0042");
        assert_eq!(of(silent, Some("---\npid: 7\ncontrol_auth_token: abc\n")), "abc");
        assert_eq!(of(silent, None), "");
        assert_eq!(of("activate_control_app \"auto\", { no_token: true }\n", None), "");
    }

    #[test]
    fn a_token_file_wins_and_one_that_others_can_read_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "own\n").unwrap();
        let config = Config { control_token_file: Some(file.clone()), ..Config::default() };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(find(&config).unwrap().as_slice(), b"own");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(find(&config).is_none());
    }
}
