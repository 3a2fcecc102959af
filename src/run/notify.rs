//! What systemd is told (`Type=notify`): ready, reloading, stopping, still alive.
//!
//! Outside of systemd there is no `NOTIFY_SOCKET` and all of this does nothing. `READY=1` comes when every listener is open and
//! the configuration is in force, so that units ordered after ours find a proxy that serves. The watchdog's beat comes from a
//! task of the runtime: a runtime that is stuck is restarted.

use std::{process, time::Duration};

use sd_notify::NotifyState;

use crate::log::{Level, event};

/// It serves, from the start or again.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// It reads its configuration; [`ready`] says that it has.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => event(Level::Warn, "systemd cannot be told", &[("error", &error)]),
    }
}

/// It drains or ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Beats for systemd's watchdog, if the unit has one, for as long as the runtime runs.
pub fn watch() {
    let period = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok()).map(Duration::from_micros);
    let is_ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == process::id().to_string());
    let Some(period) = period.filter(|period| is_ours && !period.is_zero()) else { return };
    tokio::spawn(async move {
        // Twice in each period, as sd_watchdog_enabled(3) advises.
        let mut beat = tokio::time::interval(period / 2);
        loop {
            beat.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        event(Level::Warn, "systemd cannot be told", &[("error", &error)]);
    }
}
