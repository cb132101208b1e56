//! The brake of the checks, shared by the pipeline and the signal handler.

use crate::{
    domain::{
        brake::Brake,
        check::{CheckStep, Resolution},
        failure::{Dependency, Outage},
    },
    unpoisoned::lock,
};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// A [`Brake`] that the pipeline engages and SIGHUP releases.
pub struct SharedBrake {
    brake: Mutex<Brake>,
    released: Notify,
}

impl SharedBrake {
    /// Returns a released brake with this limit; see [`Brake::new`].
    pub fn new(after: u32) -> Self {
        Self { brake: Mutex::new(Brake::new(after)), released: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Brake> {
        lock(&self.brake)
    }

    /// Returns the number of checks that the brake allows; see [`Brake::room`].
    pub(super) fn room(&self, resolutions: impl Iterator<Item = Resolution>) -> usize {
        self.lock().room(resolutions)
    }

    /// Counts a step; see [`Brake::count`].
    pub(super) fn count(&self, resolution: Resolution, step: CheckStep) {
        self.lock().count(resolution, step);
    }

    /// Returns the outage that pauses the checks while the brake is engaged.
    pub fn engaged(&self) -> Option<Outage> {
        let brake = self.lock();
        brake.is_engaged().then(|| Outage {
            dependency: Dependency::PayStatus,
            reason: format!(
                "the brake: {} reversals in a row without a paid payment between them (compensation.brake_after). \
                 Check that [pay_status] is correct. SIGHUP (systemctl reload pointsd) releases the brake; \
                 `pointsd reconcile --reversed --apply` then checks the reversed credits again",
                brake.after()
            ),
        })
    }

    /// Releases the brake after a person has checked the configuration. Returns whether it was engaged.
    pub fn release(&self) -> bool {
        let engaged = self.lock().release();
        self.released.notify_waiters();
        engaged
    }

    /// Waits until the brake is not engaged.
    pub async fn until_released(&self) {
        loop {
            let released = self.released.notified();
            if !self.lock().is_engaged() {
                return;
            }
            released.await;
        }
    }
}
