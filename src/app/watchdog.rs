//! The systemd watchdog (`WatchdogSec=`): pinged while no task is stalled.

use crate::observe::{
    events::{self, Event as _},
    heartbeat::Heartbeats,
    systemd::{self, Notice},
};

/// Starts to ping the watchdog, if systemd has enabled it.
pub(super) fn start(heartbeats: Heartbeats) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        // Three pings in each period: one late ping does not miss the deadline.
        let mut pings = tokio::time::interval(period / 3);
        loop {
            pings.tick().await;
            match heartbeats.stalled() {
                // If a ping is dropped, systemd decides.
                None => {
                    systemd::notify(Notice::Watchdog);
                }
                Some((task, overdue)) => events::TaskStalled { task, overdue }.emit(),
            }
        }
    });
}
