//! The report as a table for people, as JSON, and as SARIF 2.1.0 for code scanning.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::checks::Id;
use super::finding::{Finding, Severity};
use super::report::Report;
use super::secret;
use crate::log::text::is_hidden;

pub(super) fn table(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    for finding in &report.findings {
        let unsure = if finding.unsure { " (please confirm)" } else { "" };
        writeln!(out, "{:<8}  {}  {}{unsure}", finding.severity.to_string(), finding.id.name(), finding.id.title())?;
        writeln!(out, "    where   {}", printable(&finding.place.to_string()))?;
        writeln!(out, "    what    {}", printable(&finding.detail))?;
        writeln!(out, "    why     {}", finding.id.why())?;
        writeln!(out, "    remedy  {}\n", finding.id.remedy())?;
    }
    for waived in &report.waived {
        let finding = &waived.finding;
        let reason = printable(&waived.waiver.reason);
        writeln!(
            out,
            "waived    {}  {} until {}: {reason}",
            finding.id.name(),
            printable(&finding.place.to_string()),
            waived.waiver.until
        )?;
    }
    for note in &report.notes {
        writeln!(out, "note      {}", printable(note))?;
    }
    let counts = [Severity::Critical, Severity::High, Severity::Medium, Severity::Low].map(|severity| {
        let count = report.findings.iter().filter(|finding| finding.severity == severity).count();
        format!("{count} {severity}")
    });
    let waived = report.waived.len();
    writeln!(out, "{} findings in {}: {}; {waived} waived", report.findings.len(), report.root.display(), counts.join(", "))
}

pub(super) fn json(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let value = json!({
        "root": report.root.display().to_string(),
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "waived": report.waived.iter().map(|waived| {
            let mut value = finding(&waived.finding);
            if let Some(object) = value.as_object_mut() {
                object.insert("reason".to_owned(), Value::from(waived.waiver.reason.clone()));
                object.insert("until".to_owned(), Value::from(waived.waiver.until.to_string()));
            }
            value
        }).collect::<Vec<_>>(),
        "notes": report.notes,
    });
    write_json(&value, out)
}

fn finding(finding: &Finding) -> Value {
    json!({
        "id": finding.id.name(),
        "severity": finding.severity.to_string(),
        "title": finding.id.title(),
        "path": finding.place.path.display().to_string(),
        "line": finding.place.line,
        "detail": finding.detail,
        "why": finding.id.why(),
        "remedy": finding.id.remedy(),
        "unsure": finding.unsure,
    })
}

pub(super) fn sarif(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let rules: Vec<Value> = Id::ALL
        .iter()
        .map(|id| {
            json!({
                "id": id.name(),
                "shortDescription": { "text": id.title() },
                "fullDescription": { "text": id.why() },
                "help": { "text": id.remedy() },
                "defaultConfiguration": { "level": level(id.severity()) },
                "properties": { "security-severity": score(id.severity()), "tags": ["security"] },
            })
        })
        .collect();
    let open = report.findings.iter().map(|finding| result(finding, None));
    let waived = report.waived.iter().map(|waived| result(&waived.finding, Some(&waived.waiver.reason)));
    let value = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "palisade", "semanticVersion": env!("CARGO_PKG_VERSION"), "rules": rules } },
            "columnKind": "utf16CodeUnits",
            "results": open.chain(waived).collect::<Vec<_>>(),
            "invocations": [{
                "executionSuccessful": true,
                "toolExecutionNotifications": report.notes.iter()
                    .map(|note| json!({ "level": "note", "message": { "text": note } })).collect::<Vec<_>>(),
            }],
        }],
    });
    write_json(&value, out)
}

fn result(finding: &Finding, waived: Option<&str>) -> Value {
    let path = finding.place.path.display().to_string();
    let mut location = json!({ "artifactLocation": { "uri": uri(&path) } });
    if let (Some(line), Some(object)) = (finding.place.line, location.as_object_mut()) {
        object.insert("region".to_owned(), json!({ "startLine": line }));
    }
    let mut value = json!({
        "ruleId": finding.id.name(),
        "ruleIndex": Id::ALL.iter().position(|id| *id == finding.id),
        "level": level(finding.severity),
        "message": { "text": format!("{}. {}", finding.detail, finding.id.remedy()) },
        "locations": [{ "physicalLocation": location }],
        // Without the line, so that a finding stays the same when lines above it come and go.
        "partialFingerprints": { "finding/v1": secret::hash(&format!("{} {path} {}", finding.id.name(), finding.detail), 16) },
    });
    if let (Some(reason), Some(object)) = (waived, value.as_object_mut()) {
        object.insert("suppressions".to_owned(), json!([{ "kind": "external", "justification": reason }]));
    }
    value
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical | Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low => "note",
    }
}

/// The scale that code scanning sorts by.
fn score(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "9.5",
        Severity::High => "8.0",
        Severity::Medium => "5.0",
        Severity::Low => "2.0",
    }
}

/// A path as a relative URI reference.
fn uri(path: &str) -> String {
    let mut uri = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}

/// File names and settings come from the application: nothing in them that a terminal obeys or a reader cannot see gets out.
fn printable(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// The same for JSON, where an escape keeps what was there. `serde_json` itself escapes what lies below U+0020 only.
fn write_json(value: &Value, out: &mut dyn Write) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    let mut from = 0;
    for (at, hidden) in text.match_indices(|c| is_hidden(c) && c != '\n') {
        out.write_all(text.get(from..at).unwrap_or_default().as_bytes())?;
        for unit in hidden.encode_utf16() {
            write!(out, "\\u{unit:04x}")?;
        }
        from = at.saturating_add(hidden.len());
    }
    writeln!(out, "{}", text.get(from..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped_in_json_and_can_be_read_back() {
        let value = json!({ "detail": "rack 2.2\u{7f}\u{9b}31m \u{202e}\u{1b}[0m é\n" });
        let mut out = Vec::new();
        write_json(&value, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "{\n  \"detail\": \"rack 2.2\\u007f\\u009b31m \\u202e\\u001b[0m é\\n\"\n}\n");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert_eq!(printable("2.2\u{7f}\u{9b}31m\u{202e}"), "2.2\u{fffd}\u{fffd}31m\u{fffd}");
    }
}
