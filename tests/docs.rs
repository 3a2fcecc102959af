//! Nothing refuses without an explanation, and the two commands of the README are the ones that CI runs.

use std::{collections::HashSet, fs, path::Path};

use palisade::{guard::rule::Rule, refusal::Refusal};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The text under each heading of this level, by heading.
fn sections(text: &str, level: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix(level).and_then(|rest| rest.strip_prefix(' ')) {
            all.push((heading.trim_matches('`').to_owned(), String::new()));
        } else if let Some((_, body)) = all.last_mut() {
            body.push_str(line);
            body.push('\n');
        }
    }
    all
}

#[test]
fn every_refusal_has_its_meaning_first_look_and_remedy() {
    let sections = sections(&read("docs/operating.md"), "###");
    for refusal in Refusal::EACH {
        let label = refusal.label();
        let (_, body) = sections.iter().find(|(heading, _)| heading == label).unwrap_or_else(|| panic!("no heading `{label}`"));
        for part in ["**Meaning.**", "**First look.**", "**Remedy.**"] {
            assert!(body.contains(part), "{label} lacks {part}");
        }
        assert!(body.contains(refusal.status().as_str()), "{label} does not name its status {}", refusal.status().as_str());
    }
}

#[test]
fn every_rule_is_in_the_table_with_its_source() {
    let text = read("docs/operating.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
    for rule in Rule::ALL {
        let info = rule.info();
        let start = format!("| {} | {} |", info.id, info.status.as_str());
        let row = rows.iter().find(|row| row.starts_with(&start)).unwrap_or_else(|| panic!("no row {start}"));
        assert!(row.contains(info.sentence), "{}: the sentence differs from {:?}", info.id, info.sentence);
        assert!(row.contains(info.source), "{}: the source differs from {:?}", info.id, info.source);
    }
}

#[test]
fn no_heading_explains_a_refusal_that_does_not_exist() {
    let labels: HashSet<&str> = Refusal::EACH.iter().map(|refusal| refusal.label()).collect();
    let text = read("docs/operating.md");
    let refusals = text.split("## When Palisade answers instead of Puma").nth(1).unwrap().split("\n## ").next().unwrap();
    for (heading, _) in sections(refusals, "###") {
        assert!(labels.contains(heading.as_str()), "no refusal has the label {heading}");
    }
}

#[test]
fn readme_and_ci_name_the_same_commands() {
    let (readme, ci, makefile) = (read("README.md"), read(".ci/run"), read("Makefile"));
    assert!(readme.contains("make demo") && readme.contains("make test"));
    assert!(ci.contains("make test"));
    for target in ["demo:", "test:", "bench:", "fuzz:", "lint:", "check:"] {
        assert!(makefile.lines().any(|line| line.starts_with(target)), "no target {target}");
    }
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    for (folder, file) in
        [("", "README.md"), ("docs/", "docs/operating.md"), ("docs/", "docs/deploying.md"), ("docs/", "docs/threat-model.md")]
    {
        let text = read(file);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.starts_with('#') {
                continue;
            }
            let target = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(link.split('#').next().unwrap());
            assert!(target.exists(), "{file} links to {link}, which is not there");
        }
    }
}
