//! The brake of the checks, as the pipeline and the signal share it.

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

/// A [`Brake`], shared with whoever releases it.
pub struct SharedBrake {
    brake: Mutex<Brake>,
    released: Notify,
}

impl SharedBrake {
    /// See [`Brake::new`].
    pub fn new(after: u32) -> Self {
        Self { brake: Mutex::new(Brake::new(after)), released: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Brake> {
        lock(&self.brake)
    }

    /// See [`Brake::room`].
    pub(super) fn room(&self, resolutions: impl Iterator<Item = Resolution>) -> usize {
        self.lock().room(resolutions)
    }

    /// See [`Brake::count`].
    pub(super) fn count(&self, resolution: Resolution, step: CheckStep) {
        self.lock().count(resolution, step);
    }

    /// Why nothing is checked, while the brake is engaged.
    pub fn engaged(&self) -> Option<Outage> {
        let brake = self.lock();
        brake.is_engaged().then(|| Outage {
            dependency: Dependency::PayStatus,
            reason: format!(
                "the brake: {} reversals in a row without a paid payment between them (compensation.brake_after). Is \
                 [pay_status] right? SIGHUP (systemctl reload pointsd) releases it; `pointsd reconcile --reversed --apply` \
                 then checks again what was reversed",
                brake.after()
            ),
        })
    }

    /// A person has looked at it. Whether it was engaged.
    pub fn release(&self) -> bool {
        let engaged = self.lock().release();
        self.released.notify_waiters();
        engaged
    }

    /// Returns when it is not engaged.
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
