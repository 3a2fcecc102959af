//! S01, S02, S06, S07, S10 in part, S13, S14: key and environment files, in version control, in images, and on disk.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::application::Application;
use super::checks::Id;
use super::secret;

pub(super) fn check(app: &mut Application<'_>) {
    keys(app);
    environment_files(app);
    kamal(app);
    docker_ignore(app);
    ignore_rules(app);
}

fn is_key(path: &str) -> bool {
    path == "config/master.key"
        || path.strip_prefix("config/credentials/").is_some_and(|name| !name.contains('/') && name.ends_with(".key"))
}

fn is_environment_file(path: &str) -> bool {
    let harmless = [".example", ".sample", ".erb", ".template", ".dist"].iter().any(|end| path.ends_with(end));
    path.starts_with(".env") && !path.contains('/') && !harmless && (path == ".env" || path.starts_with(".env."))
}

/// Paths that are or were in version control, each with how.
fn committed(app: &Application<'_>, wanted: fn(&str) -> bool) -> Vec<(String, String)> {
    let Some(git) = &app.git else { return Vec::new() };
    let tracked = git.tracked_paths().filter(|path| wanted(path)).map(|path| (path.to_owned(), "it is tracked".to_owned()));
    let past = app
        .history
        .paths
        .iter()
        .filter(|(path, _)| wanted(path) && !git.tracked(path))
        .map(|(path, commit)| (path.clone(), format!("it is in the history, for example in commit {commit}")));
    tracked.chain(past).collect()
}

fn keys(app: &mut Application<'_>) {
    let committed = committed(app, is_key);
    for (path, how) in &committed {
        app.find(Id::S01, path, None, how.clone());
    }
    let mut present = vec!["config/master.key".to_owned()];
    present.extend(app.files("config/credentials").into_iter().filter(|path| is_key(path)));
    let root_owner = app.metadata("").map(|metadata| metadata.uid());
    for path in present {
        let Some(metadata) = app.metadata(&path) else { continue };
        let known = committed.iter().any(|(committed, _)| *committed == path);
        if !known && app.git.as_ref().and_then(|git| git.ignored(&path)) == Some(false) {
            app.find(Id::S01, &path, None, "it is here and not ignored: the next commit takes it");
        }
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            app.find(Id::S02, &path, None, format!("its mode is {mode:04o}"));
        }
        if root_owner.is_some_and(|owner| owner != metadata.uid() && metadata.uid() != 0) {
            app.find(Id::S02, &path, None, "its owner is not the owner of the application");
        }
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if let Some(mode) = app.mode(folder).filter(|mode| mode & 0o002 != 0 && mode & 0o1000 == 0) {
            app.find(Id::S02, &path, None, format!("its folder can be written by everyone, mode {mode:04o}"));
        }
    }
}

fn environment_files(app: &mut Application<'_>) {
    for (path, how) in committed(app, is_environment_file) {
        app.find(Id::S06, path, None, how);
    }
    for path in app.files("").into_iter().filter(|path| is_environment_file(path)) {
        if let Some(mode) = app.mode(&path).filter(|mode| mode & 0o177 != 0) {
            app.find(Id::S07, &path, None, format!("its mode is {:04o}", mode & 0o777));
        }
    }
}

/// `.kamal/secrets` may be committed because it names commands and variables; a value in it may not.
fn kamal(app: &mut Application<'_>) {
    for path in app.files(".kamal").into_iter().filter(|path| path.starts_with(".kamal/secrets")) {
        let Some(text) = app.text(&path) else { continue };
        let how = if app.git.as_ref().is_some_and(|git| git.tracked(&path)) { "committed" } else { "written" };
        let mut open: Option<char> = None;
        for (line, number) in text.lines().zip(1_u32..) {
            let line = line.trim();
            // A value in quotes may go on: its next lines have no name.
            if let Some(quote) = open {
                open = open.filter(|_| !line.contains(quote));
                continue;
            }
            let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else { continue };
            let value = value.trim();
            open = value.chars().next().filter(|first| matches!(first, '"' | '\'') && value.matches(*first).count() == 1);
            let value = value.trim_matches(['"', '\'']);
            if value.is_empty() || value.starts_with('$') {
                continue;
            }
            let detail = format!("{} has a {how} value, fingerprint {}", secret::shown(name), secret::fingerprint(value));
            app.find(Id::S10, &path, Some(number), detail);
        }
    }
}

fn docker_ignore(app: &mut Application<'_>) {
    let rules = app.text(".dockerignore").unwrap_or_default();
    let copies: Vec<(String, u32)> =
        app.dockerfiles.iter().filter_map(|(name, file)| file.copies_all.map(|line| (name.clone(), line))).collect();
    let missing: Vec<&str> = IMAGE_PATHS.iter().copied().filter(|path| !docker_ignores(&rules, path)).collect();
    if missing.is_empty() {
        return;
    }
    for (name, line) in copies {
        app.find(Id::S13, name, Some(line), format!("the whole folder is copied, and .dockerignore lets in {}", missing.join(", ")));
    }
}

/// Docker's rules: the last pattern that matches the path or a folder above it decides.
fn docker_ignores(rules: &str, path: &str) -> bool {
    let mut ignored = false;
    for rule in rules.lines().map(str::trim).filter(|rule| !rule.is_empty() && !rule.starts_with('#')) {
        let (keep, pattern) = rule.strip_prefix('!').map_or((false, rule), |pattern| (true, pattern));
        let pattern = pattern.trim_start_matches('/').trim_end_matches('/');
        let mode = gix::glob::wildmatch::Mode::NO_MATCH_SLASH_LITERAL;
        let above = path.match_indices('/').filter_map(|(end, _)| path.get(..end)).chain([path]);
        if above.into_iter().any(|candidate| gix::glob::wildmatch(pattern.into(), candidate.into(), mode)) {
            ignored = !keep;
        }
    }
    ignored
}

fn ignore_rules(app: &mut Application<'_>) {
    let Some(git) = &app.git else { return };
    let missing: Vec<&str> = GIT_PATHS.iter().copied().filter(|path| git.ignored(path) == Some(false) && !git.tracked(path)).collect();
    if !missing.is_empty() {
        let place = if fs::exists(app.root.join(".gitignore")).unwrap_or(false) { ".gitignore" } else { "." };
        app.find(Id::S14, place, None, format!("not ignored: {}", missing.join(", ")));
    }
}

/// Paths that stand for what must not get into an image.
const IMAGE_PATHS: &[&str] = &["config/master.key", "config/credentials/production.key", ".env", ".env.production", ".git"];

/// Paths that stand for what must not get into a commit.
const GIT_PATHS: &[&str] =
    &["config/master.key", ".env", ".env.production", "log/production.log", "tmp/pids/server.pid", "config/certificate.pem"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_rules_are_read_in_order() {
        let rules = "/.git/\n/.env*\n!/.env*.erb\n/config/*.key\n**/credentials/*.key\n";
        for path in IMAGE_PATHS {
            assert!(docker_ignores(rules, path), "{path}");
        }
        assert!(!docker_ignores(rules, ".env.production.erb"));
        assert!(!docker_ignores("config\n!config/master.key\n", "config/master.key"));
        assert!(!docker_ignores("", ".env"));
    }

    #[test]
    fn a_pattern_of_stars_ends() {
        let started = std::time::Instant::now();
        for rules in ["*a".repeat(200), "**/*a".repeat(200), "**a".repeat(200)] {
            assert!(!docker_ignores(&rules, "config/credentials/production.key"));
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(2));
    }

    #[test]
    fn examples_are_no_environment_files() {
        assert!(is_environment_file(".env") && is_environment_file(".env.production"));
        assert!(!is_environment_file(".env.example") && !is_environment_file(".environment") && !is_environment_file("x/.env"));
    }
}
