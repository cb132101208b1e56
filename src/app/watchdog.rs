//! systemd's watchdog (`WatchdogSec=`): fed as long as every loop turns.

use crate::observe::{events, pulse::Pulses};

/// Starts to feed the watchdog, where systemd has asked for it.
pub(super) fn start(pulses: Pulses) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        // Three times a period: one late turn of this task is not yet a missed one.
        let mut turns = tokio::time::interval(period / 3);
        loop {
            turns.tick().await;
            match pulses.stuck() {
                None => {
                    // Without the socket there is nobody to tell, and systemd decides.
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                }
                Some((name, late)) => events::LoopStuck { name, late }.emit(),
            }
        }
    });
}
