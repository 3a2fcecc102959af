//! What an audit answers: findings, what was waived, and what could not be looked at.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use super::Format;
use super::application::Application;
use super::checks::Id;
use super::finding::{Finding, Place, Severity};
use super::render;
use super::waiver::Waiver;

/// The result of an audit.
#[derive(Clone, Debug)]
pub struct Report {
    /// The application's folder.
    pub root: PathBuf,
    /// The worst first.
    pub findings: Vec<Finding>,
    pub waived: Vec<Waived>,
    /// What could not be known, and which checks were left out for it.
    pub notes: Vec<String>,
}

/// A finding that somebody accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waived {
    pub finding: Finding,
    pub waiver: Waiver,
}

impl Report {
    pub(super) fn new(app: Application<'_>) -> Self {
        let options = app.options;
        let today = options.today;
        let root = app.root.clone();
        let mut sources = Sources { root: root.clone(), read: Vec::new() };
        let (found, notes) = app.into_findings();
        let mut report = Self { root, findings: Vec::new(), waived: Vec::new(), notes };
        for waiver in &options.waivers {
            if let Some(fault) = waiver.fault(today) {
                report.findings.push(Finding::new(Id::W01, Place { path: PathBuf::from("[audit] ignore"), line: None }, fault));
            }
        }
        for finding in found {
            let configured = options.waivers.iter().find(|waiver| waiver.covers(finding.id, &finding.place.path, today)).cloned();
            let (inline, faults) = sources.inline(&finding);
            for fault in faults {
                let fault = Finding::new(Id::W01, finding.place.clone(), fault);
                if !report.findings.contains(&fault) {
                    report.findings.push(fault);
                }
            }
            for waiver in inline.iter().filter(|waiver| waiver.id == finding.id.name()) {
                if let Some(fault) = waiver.fault(today) {
                    report.findings.push(Finding::new(Id::W01, finding.place.clone(), fault));
                }
            }
            let inline = inline.into_iter().find(|waiver| waiver.covers(finding.id, &finding.place.path, today));
            match configured.or(inline) {
                Some(waiver) => report.waived.push(Waived { finding, waiver }),
                None => report.findings.push(finding),
            }
        }
        report.findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.id.cmp(&b.id)).then(a.place.cmp(&b.place)));
        report
    }

    /// The worst severity found.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    pub fn at_or_above(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.severity >= severity)
    }

    /// Write it for people, or for machines.
    ///
    /// # Errors
    /// When `out` cannot be written to.
    pub fn write(&self, format: Format, out: &mut dyn Write) -> io::Result<()> {
        match format {
            Format::Table => render::table(self, out),
            Format::Json => render::json(self, out),
            Format::Sarif => render::sarif(self, out),
        }
    }
}

/// Files that findings point into, read for the waivers in their comments.
struct Sources {
    root: PathBuf,
    read: Vec<(PathBuf, String)>,
}

impl Sources {
    /// Waivers on the finding's line or the one before, or anywhere in the file if the finding has no line; and what is
    /// wrong with those that are none.
    fn inline(&mut self, finding: &Finding) -> (Vec<Waiver>, Vec<String>) {
        let text = self.text(&finding.place.path).unwrap_or_default();
        let (mut waivers, mut faults) = (Vec::new(), Vec::new());
        for (line, number) in text.lines().zip(1_u32..) {
            let near = finding.place.line.is_none_or(|at| number == at || number.checked_add(1) == Some(at));
            match Waiver::inline(line).filter(|_| near) {
                Some(Ok(waiver)) => waivers.push(waiver),
                Some(Err(fault)) => faults.push(fault),
                None => {}
            }
        }
        (waivers, faults)
    }

    fn text(&mut self, path: &PathBuf) -> Option<&str> {
        if !self.read.iter().any(|(read, _)| read == path) {
            let file = self.root.join(path);
            let small = fs::metadata(&file).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= LARGEST);
            let text = if small { fs::read(&file).ok() } else { None };
            self.read.push((path.clone(), text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()));
        }
        self.read.iter().find(|(read, _)| read == path).map(|(_, text)| text.as_str())
    }
}

/// Files above are not searched for waivers.
const LARGEST: u64 = 1024 * 1024;
