//! systemd's watchdog (`WatchdogSec=`): fed as long as every loop turns.

use crate::observe::{
    events::{self, Event as _},
    heartbeat::Heartbeats,
    systemd::{self, News},
};

/// Starts to feed the watchdog, where systemd has asked for it.
pub(super) fn start(heartbeats: Heartbeats) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        // Three times a period: one late turn of this task is not yet a missed one.
        let mut turns = tokio::time::interval(period / 3);
        loop {
            turns.tick().await;
            match heartbeats.stuck() {
                // What is not taken was not heard, and systemd decides.
                None => {
                    systemd::tell(News::Alive);
                }
                Some((name, late)) => events::TaskStalled { task: name, overdue: late }.emit(),
            }
        }
    });
}
