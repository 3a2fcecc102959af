//! Figures whose truth lives elsewhere, collected when somebody reads the metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;

use super::assembly::Concealed;
use crate::{
    accept::{
        Gate,
        counters::{Failure, Rejected},
    },
    admin::Capacity,
    audit::{Finding, Severity},
    layers::{ban, rate, spill::Store},
    metrics::{Metrics, Sheet},
    sandbox::{Confinement, Part},
    upstream::Puma,
};

/// Registers all of them.
pub fn register(metrics: &Metrics, gate: &Arc<Gate>, puma: &Puma, store: &Arc<Store>) {
    let (gate, puma, store) = (Arc::clone(gate), puma.clone(), Arc::clone(store));
    metrics.collect_with(Box::new(move |sheet| {
        connections(sheet, &gate);
        slots(sheet, &puma);
        buffers(sheet, &store);
        reloads(sheet);
    }));
}

/// Registers the answers that told too much.
pub fn register_concealed(metrics: &Metrics, concealed: &Concealed) {
    let parts = [("fields", Arc::clone(&concealed.fields)), ("backtrace", Arc::clone(&concealed.backtraces))];
    metrics.collect_with(Box::new(move |sheet| {
        for (part, count) in &parts {
            let help = "Answers of the application that told too much of it, concealed or observed.";
            sheet.counter("palisade_answers_concealed_total", help, &[("part", part)], count.load(Relaxed));
        }
    }));
}

/// Registers what the rules of the operator decided; also those in mode `observe`, which are seen nowhere else.
pub fn register_rules(metrics: &Metrics, rates: &Arc<ArcSwap<rate::Limits>>, bans: &Arc<ArcSwap<ban::Bans>>) {
    let (rates, bans) = (Arc::clone(rates), Arc::clone(bans));
    metrics.collect_with(Box::new(move |sheet| {
        for rule in rates.load().report() {
            let help = "Requests that a rule of rate_limit let pass, or that were above it; in mode observe these passed too.";
            for (decision, count) in [("passed", rule.passed), ("limited", rule.limited)] {
                let labels = [("rule", rule.name), ("decision", decision), ("mode", rule.mode.label())];
                sheet.counter("palisade_rate_limit_decisions_total", help, &labels, count);
            }
            sheet.gauge("palisade_rate_limit_keys", "Clients that a rule remembers.", &[("rule", rule.name)], rule.keys as f64);
        }
        for (rule, count) in bans.load().report() {
            sheet.gauge("palisade_bans", "Clients that are shut out.", &[("rule", rule)], count as f64);
        }
    }));
}

/// Registers what was settled at the start.
pub fn register_start(metrics: &Metrics, confinement: Confinement, findings: Vec<Finding>) {
    metrics.collect_with(Box::new(move |sheet| {
        for part in Part::EACH {
            let given_up = if confinement.has(part) { 1.0 } else { 0.0 };
            sheet.gauge("palisade_sandbox", "Whether the process has given this up.", &[("part", part.label())], given_up);
        }
        for severity in [Severity::Low, Severity::Medium, Severity::High, Severity::Critical] {
            let count = findings.iter().filter(|finding| finding.severity == severity).count();
            let labels = [("severity", &*severity.to_string())];
            sheet.gauge("palisade_audit_findings", "What was found about Puma's set-up at the start.", &labels, count as f64);
        }
    }));
}

/// Puma's threads, for `/stats`.
pub fn capacity(puma: &Puma) -> Capacity {
    let figures = puma.figures();
    Capacity {
        backlog: figures.waiting as u64,
        running: figures.slots.into(),
        max_threads: figures.slots.into(),
        busy_threads: figures.in_flight.into(),
    }
}

/// A reload has succeeded now.
pub fn reloaded() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    RELOADED.store(now, Relaxed);
}

/// A reload has failed.
pub fn reload_failed() {
    RELOADS_FAILED.fetch_add(1, Relaxed);
}

fn connections(sheet: &mut Sheet, gate: &Gate) {
    let counters = &gate.counters;
    sheet.gauge("palisade_connections", "Open client connections.", &[], gate.limits.open() as f64);
    sheet.counter("palisade_connections_total", "Client connections accepted.", &[], counters.accepted());
    for reason in Rejected::ALL {
        let labels = [("reason", reason.label())];
        sheet.counter("palisade_connections_rejected_total", "Client connections closed at once.", &labels, counters.rejected(reason));
    }
    let help = "What Palisade gives up for want of resources: 0 nothing, 1 newcomers, 2 keep-alive too, 3 low priority too.";
    sheet.gauge("palisade_overload_step", help, &[], f64::from(gate.overload.relief() as u8));
    sheet.counter("palisade_accept_errors_total", "Failures to accept, such as no descriptors.", &[], counters.accept_errors());
    sheet.counter("palisade_tls_handshakes_total", "TLS handshakes that succeeded.", &[], counters.handshakes());
    for cause in Failure::ALL {
        let labels = [("cause", cause.label())];
        sheet.counter("palisade_tls_handshakes_failed_total", "Connections that ended before HTTP.", &labels, counters.failed(cause));
    }
    for (name, expiry) in gate.tls.iter().flat_map(|tls| tls.expiry()) {
        let help = "When a certificate expires, in seconds since 1970.";
        sheet.gauge("palisade_tls_certificate_expiry_timestamp_seconds", help, &[("name", &name)], expiry as f64);
    }
}

fn slots(sheet: &mut Sheet, puma: &Puma) {
    let figures = puma.figures();
    let used = f64::from(figures.in_flight);
    sheet.gauge("palisade_slots", "Threads of Puma that can be reached.", &[], figures.slots.into());
    sheet.gauge("palisade_slots_in_use", "Requests inside Puma.", &[], used);
    sheet.gauge("palisade_slots_stuck", "Requests inside Puma whose clients were answered 504.", &[], figures.stuck.into());
    sheet.gauge("palisade_slots_streaming", "Requests inside Puma that are event streams.", &[], figures.streams.into());
    sheet.gauge("palisade_slot_utilization_ratio", "Requests inside Puma by its threads.", &[], used / f64::from(figures.slots.max(1)));
    sheet.gauge("palisade_queue_depth", "Requests that wait for a thread.", &[], figures.waiting as f64);
    sheet.gauge("palisade_upstream_up", "Whether Puma can be reached.", &[], if figures.away { 0.0 } else { 1.0 });
    sheet.gauge("palisade_upgrades", "Open WebSockets.", &[], puma.upgrades().into());
    sheet.gauge("palisade_upstream_idle_connections", "Connections to Puma that wait for a request.", &[], puma.idle_connections() as f64);
    // Puma's own word is used on when it no longer answers: its age says how far to trust it. NaN satisfies no alert.
    let reported = puma.reported();
    let age = reported.as_ref().map_or(f64::NAN, |reported| reported.at.elapsed().as_secs_f64());
    sheet.gauge("palisade_puma_stats_age_seconds", "Time since Puma's control server last answered; NaN: it never did.", &[], age);
    let phase = reported.map_or(0, |reported| reported.stats.phase);
    sheet.gauge("palisade_puma_phase", "Phased restarts of Puma so far, as it counts them.", &[], phase as f64);
    for (index, (threads, busy, _)) in figures.workers.iter().enumerate() {
        let worker = index.to_string();
        sheet.gauge("puma_threads_max", "Threads of a worker.", &[("worker", &worker)], (*threads).into());
        sheet.gauge("puma_threads_busy", "Requests inside a worker.", &[("worker", &worker)], (*busy).into());
    }
}

fn buffers(sheet: &mut Sheet, store: &Store) {
    for (kind, account) in [("memory", &store.memory), ("disk", &store.disk)] {
        sheet.gauge("palisade_buffer_bytes", "Bytes of bodies that are held.", &[("kind", kind)], account.used() as f64);
        sheet.gauge("palisade_buffer_limit_bytes", "Bytes of bodies that may be held.", &[("kind", kind)], account.limit() as f64);
    }
}

fn reloads(sheet: &mut Sheet) {
    let help = "When the configuration was last taken over, in seconds since 1970.";
    sheet.gauge("palisade_config_reload_success_timestamp_seconds", help, &[], RELOADED.load(Relaxed) as f64);
    sheet.counter("palisade_config_reload_failures_total", "Reloads that were refused.", &[], RELOADS_FAILED.load(Relaxed));
}

static RELOADED: AtomicU64 = AtomicU64::new(0);
static RELOADS_FAILED: AtomicU64 = AtomicU64::new(0);
