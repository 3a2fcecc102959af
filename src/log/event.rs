//! What happened to Palisade itself: one line per event on standard error.
//!
//! JSON for machines, plain text for a terminal. Threat: exhaustion. A client that can cause an event at will must not fill a
//! disk with it, so ten lines of a kind are written each second and the rest is counted.

use std::{
    collections::HashMap,
    fmt::{self, Display, Write as _},
    io::{self, IsTerminal, Write as _},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::{
    Config, Level, calendar,
    sink::{Sink, Target},
    text,
};

/// Reports an event: its kind, a fixed word that operators search for, and its details.
pub fn event(level: Level, what: &'static str, details: &[(&'static str, &dyn Display)]) {
    match EVENTS.get() {
        Some(events) => {
            if let Some(line) = events.line(level, what, details, Instant::now()) {
                events.sink.push(&line);
            }
        }
        // Before the configuration is read, and in tests: few lines, so the plain way. A closed stderr has no one to tell.
        None if level <= Level::Info => io::stderr().write_all(&render(level, what, details, 0, true)).unwrap_or_default(),
        None => {}
    }
}

/// Sends events through a thread of their own from now on. Once; the level of a second call is ignored.
pub fn start_events(config: &Config) -> io::Result<()> {
    let events = Events::new(config.level, io::stderr().is_terminal(), Sink::open(Target::Stderr)?);
    EVENTS.get_or_init(|| events);
    Ok(())
}

/// Waits until every event is written, at most for `patience`.
pub fn flush_events(patience: Duration) -> bool {
    EVENTS.get().is_none_or(|events| events.sink.flush(patience))
}

#[derive(Debug)]
struct Events {
    level: Level,
    is_plain: bool,
    sink: Sink,
    /// As many entries as there are kinds in this program: no client can add one.
    windows: Mutex<HashMap<&'static str, Window>>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    since: Instant,
    written: u32,
    suppressed: u64,
}

impl Events {
    fn new(level: Level, is_plain: bool, sink: Sink) -> Self {
        Events { level, is_plain, sink, windows: Mutex::default() }
    }

    fn line(&self, level: Level, what: &'static str, details: &[(&'static str, &dyn Display)], now: Instant) -> Option<Vec<u8>> {
        if level > self.level {
            return None;
        }
        let suppressed = self.admit(what, now)?;
        Some(render(level, what, details, suppressed, self.is_plain))
    }

    /// How many events of this kind were left out since the last line; `None` when this one is left out as well.
    fn admit(&self, what: &'static str, now: Instant) -> Option<u64> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(what).or_insert(Window { since: now, written: 0, suppressed: 0 });
        if now.saturating_duration_since(window.since) >= WINDOW {
            window.since = now;
            window.written = 0;
        }
        if window.written >= PER_WINDOW {
            window.suppressed = window.suppressed.saturating_add(1);
            return None;
        }
        window.written = window.written.saturating_add(1);
        Some(std::mem::take(&mut window.suppressed))
    }
}

fn render(level: Level, what: &str, details: &[(&'static str, &dyn Display)], suppressed: u64, is_plain: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    let mut value = String::new();
    let start = if is_plain { "" } else { "{\"ts\":\"" };
    out.extend_from_slice(start.as_bytes());
    calendar::rfc3339(&mut out, SystemTime::now());
    if is_plain {
        out.extend_from_slice(format_args_of(&mut value, format_args!(" {:5} {what}", level.label())));
    } else {
        out.extend_from_slice(format_args_of(&mut value, format_args!("\",\"level\":\"{}\",\"event\":\"{what}\"", level.label())));
    }
    let suppressed: Option<(&'static str, &dyn Display)> = if suppressed > 0 { Some(("suppressed", &suppressed)) } else { None };
    for (key, detail) in details.iter().copied().chain(suppressed) {
        if is_plain {
            out.extend_from_slice(format_args_of(&mut value, format_args!(" {key}=")));
            text::logfmt(&mut out, format_args_of(&mut value, format_args!("{detail}")));
        } else {
            out.extend_from_slice(format_args_of(&mut value, format_args!(",\"{key}\":")));
            text::json(&mut out, format_args_of(&mut value, format_args!("{detail}")));
        }
    }
    out.extend_from_slice(if is_plain { b"\n" } else { b"}\n" });
    out
}

/// A detail whose `Display` fails shows what it wrote until then.
fn format_args_of<'a>(buffer: &'a mut String, arguments: fmt::Arguments<'_>) -> &'a [u8] {
    buffer.clear();
    buffer.write_fmt(arguments).unwrap_or_default();
    buffer.as_bytes()
}

static EVENTS: OnceLock<Events> = OnceLock::new();
const WINDOW: Duration = Duration::from_secs(1);
const PER_WINDOW: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn events(is_plain: bool) -> Events {
        Events::new(Level::Info, is_plain, Sink::open(Target::File("/dev/null".into())).unwrap())
    }

    #[test]
    fn an_event_is_one_line_of_json_whatever_its_details() {
        let line = events(false).line(Level::Warn, "reload_failed", &[("why", &"bad\n\"x\"\u{1b}"), ("line", &7)], Instant::now()).unwrap();
        let parsed: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!((&parsed["level"], &parsed["event"]), (&"warn".into(), &"reload_failed".into()));
        assert_eq!((&parsed["why"], &parsed["line"]), (&"bad\n\"x\"\u{1b}".into(), &"7".into()));
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
    }

    #[test]
    fn a_terminal_gets_plain_text() {
        let line = events(true).line(Level::Info, "listening", &[("address", &"127.0.0.1:80"), ("why", &"a b")], Instant::now()).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(line.ends_with("Z info  listening address=127.0.0.1:80 why=\"a b\"\n"), "{line}");
    }

    #[test]
    fn repeated_events_are_limited_and_counted() {
        let events = events(false);
        let now = Instant::now();
        let written = (0..100).filter(|_| events.line(Level::Warn, "flood", &[], now).is_some()).count();
        assert_eq!(written, 10);
        assert!(events.line(Level::Warn, "other", &[], now).is_some(), "another kind has room of its own");
        let next = events.line(Level::Warn, "flood", &[], now + WINDOW).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&next).unwrap()["suppressed"], "90");
        assert!(events.line(Level::Debug, "detail", &[], now).is_none());
    }
}
