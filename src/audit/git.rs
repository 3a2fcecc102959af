//! The repository an application lives in: what is tracked, what ever was, what would be.
//!
//! Threat 4, exposure. Read by gix without hooks, filters, network or the user's configuration: nothing of a
//! repository that was put there by someone else is run. Of history only the few folders are looked at where secrets
//! lie, each tree once, so ten thousand commits cost little more than ten thousand small reads.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use gix::ObjectId;

/// An open repository, seen from the application's folder.
pub(super) struct Repository {
    repository: gix::Repository,
    /// The application's folder inside the repository, empty or ending in `/`.
    prefix: String,
    tracked: BTreeSet<String>,
    index: gix::worktree::Index,
}

/// Paths that some commit has, relative to the application, each with one such commit.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) paths: BTreeMap<String, String>,
    /// False if commits were left out: a shallow clone, or too many.
    pub(super) complete: bool,
}

impl Repository {
    /// The repository around `app`; `None` if there is none.
    pub(super) fn around(app: &Path) -> Option<Result<Self, String>> {
        let app = app.canonicalize().ok()?;
        let top = app.ancestors().find(|folder| folder.join(".git").exists())?.to_owned();
        Some(Self::open(&top, &app))
    }

    fn open(top: &Path, app: &Path) -> Result<Self, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let repository = gix::open::Options::isolated().open(top.to_owned()).map_err(|error| text(&error))?.to_thread_local();
        let index = repository.index_or_empty().map_err(|error| text(&error))?;
        let inside = app.strip_prefix(top).unwrap_or(Path::new("")).to_string_lossy().into_owned();
        let prefix = if inside.is_empty() { inside } else { format!("{inside}/") };
        let tracked = index
            .entries()
            .iter()
            .filter_map(|entry| String::from_utf8_lossy(entry.path(&index).as_ref()).strip_prefix(&prefix).map(str::to_owned))
            .collect();
        Ok(Self { repository, prefix, tracked, index })
    }

    pub(super) fn tracked(&self, path: &str) -> bool {
        self.tracked.contains(path)
    }

    pub(super) fn tracked_paths(&self) -> impl Iterator<Item = &str> {
        self.tracked.iter().map(String::as_str)
    }

    /// Whether `git add` would pass over this path. `None` if the rules cannot be read.
    pub(super) fn ignored(&self, path: &str) -> Option<bool> {
        let source = gix::worktree::stack::state::ignore::Source::WorktreeThenIdMappingIfNotSkipped;
        let mut rules = self.repository.excludes(&self.index, None, source).ok()?;
        let path = PathBuf::from(format!("{}{path}", self.prefix));
        let platform = rules.at_path(path, Some(gix::index::entry::Mode::FILE)).ok()?;
        Some(platform.is_excluded())
    }

    /// The files of `folders` (relative to the application, `""` is itself) in any commit that a reference reaches.
    pub(super) fn history(&self, folders: &[&str]) -> History {
        let mut history = History { complete: self.repository.is_shallow().is_ok_and(|shallow| !shallow), ..History::default() };
        let mut seen_trees: HashSet<(ObjectId, usize)> = HashSet::new();
        let mut seen: HashSet<ObjectId> = HashSet::new();
        let mut roots: HashSet<ObjectId> = HashSet::new();
        let mut open = self.tips();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            if seen.len() > COMMITS {
                history.complete = false;
                break;
            }
            let Ok(commit) = self.repository.find_commit(id) else {
                history.complete = false;
                continue;
            };
            open.extend(commit.parent_ids().map(gix::Id::detach));
            let Ok(tree) = commit.tree_id() else {
                history.complete = false;
                continue;
            };
            let tree = tree.detach();
            // A commit that changed nothing, such as a merge, has a tree that was looked at.
            if !roots.insert(tree) {
                continue;
            }
            let short = id.to_hex_with_len(10).to_string();
            for (folder, number) in folders.iter().zip(0..) {
                self.files(tree, folder, number, &short, &mut seen_trees, &mut history);
            }
        }
        history
    }

    fn tips(&self) -> Vec<ObjectId> {
        let mut tips: Vec<ObjectId> = self.repository.head_id().ok().map(gix::Id::detach).into_iter().collect();
        if let Ok(references) = self.repository.references()
            && let Ok(all) = references.all()
        {
            tips.extend(all.flatten().filter_map(|mut reference| reference.peel_to_id().ok()).map(gix::Id::detach));
        }
        tips
    }

    /// The files directly in `folder` of one commit's tree.
    fn files(
        &self,
        root: ObjectId,
        folder: &str,
        number: usize,
        commit: &str,
        seen: &mut HashSet<(ObjectId, usize)>,
        history: &mut History,
    ) {
        let mut id = root;
        for name in self.prefix.split('/').chain(folder.split('/')).filter(|name| !name.is_empty()) {
            // The way to a folder is walked again for each commit: a subtree that did not change is cut off below.
            let Ok(tree) = self.repository.find_tree(id) else { return };
            let found = tree.iter().flatten().find(|entry| entry.mode().is_tree() && entry.filename() == name.as_bytes());
            let Some(next) = found.map(|entry| entry.object_id()) else { return };
            id = next;
        }
        if !seen.insert((id, number)) {
            return;
        }
        let Ok(tree) = self.repository.find_tree(id) else {
            history.complete = false;
            return;
        };
        for entry in tree.iter().flatten().filter(|entry| entry.mode().is_blob()) {
            let name = String::from_utf8_lossy(entry.filename().as_ref()).into_owned();
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            history.paths.entry(path).or_insert_with(|| commit.to_owned());
        }
    }
}

/// Commits that are read. The largest public Rails applications have some 150,000.
const COMMITS: usize = 500_000;
