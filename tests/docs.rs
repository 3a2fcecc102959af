//! Nothing refuses without an explanation, and the two commands of the README are the ones that CI runs.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::Path,
    thread,
    time::Duration,
};

use palisade::{guard::rule::Rule, refusal::Refusal};

use crate::harness::{palisade::Setup, puma::Puma};

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

/// Names in backquotes that begin as metrics do, with the labels behind them.
fn named_metrics(text: &str) -> Vec<(String, Vec<String>)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let prefixes = ["palisade_", "http_server_", "http_client_", "puma_threads_", "process_"];
    quoted
        .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .map(|name| {
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split('=').next());
            (name.to_owned(), labels.filter(|label| !label.is_empty()).map(str::to_owned).collect())
        })
        .collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let Some(puma) = Puma::cluster() else { return };
    let rules = "[[rate_limit]]\nname = \"a\"\nrate = \"1/s\"\nmode = \"observe\"\n";
    let palisade = Setup::before(puma.address()).tls().with(rules).start();
    palisade.connect_tls().ask("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx");
    let operating = read("docs/operating.md");
    let table: Vec<&str> = operating.lines().filter(|line| line.starts_with("| `") && !named_metrics(line).is_empty()).collect();
    let rows: BTreeMap<String, BTreeSet<String>> =
        table.iter().map(|row| named_metrics(row).swap_remove(0)).map(|(name, labels)| (name, labels.into_iter().collect())).collect();
    // A histogram's series have endings of their own.
    let family = |series: &str| {
        let name = series.split(['{', ' ']).next().unwrap();
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let page = || {
        let page = palisade.admin("/metrics").unwrap().text();
        let mut served: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
            let names = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
            served.entry(family(line)).or_default().extend(names.filter(|name| name != "le"));
        }
        served
    };
    // What is known of Puma's workers comes with their answers, a moment later.
    let pause = || thread::sleep(Duration::from_millis(50));
    let served = (0..200).map(|_| (pause(), page()).1).find(|served| *served == rows).unwrap_or_else(page);
    assert!(served.len() > 40, "{served:?}");
    assert_eq!(rows.len(), table.len(), "a metric has two rows");
    assert_eq!(rows, served, "the table of docs/operating.md (left) and /metrics (right)");
    for file in ["docs/operating.md", "docs/deploying.md", "docs/configuration.md", "README.md", "docs/threat-model.md"] {
        for (name, labels) in named_metrics(&read(file)) {
            let known = served.get(&family(&name)).unwrap_or_else(|| panic!("{file} names {name}, which is not served"));
            assert!(labels.iter().all(|label| known.contains(label)), "{file}: {name} has the labels {known:?}, not {labels:?}");
        }
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
