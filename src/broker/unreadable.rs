//! Parking what lapin cannot decode ([`super::lenient`]): publish, confirm, then acknowledge, beside the batches.

use super::batch::Delivered;
use crate::{
    domain::{
        dead_letter::Reason,
        failure::{Dependency, Outage},
        settlement::Destination,
    },
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeat,
    },
    pipeline::ports::{CopyBody, Deliveries, Forward, Message},
    unpoisoned::lock,
};
use std::{
    borrow::Cow,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Notify;

/// Deliveries that are to be parked.
#[derive(Debug, Default)]
pub(super) struct UnreadableOnes {
    waiting: Mutex<Vec<Delivered>>,
    arrived: Notify,
    have_arrived: AtomicBool,
}

impl UnreadableOnes {
    /// One more.
    pub(super) fn add(&self, delivered: Delivered) {
        self.have_arrived.store(true, Ordering::Relaxed);
        lock(&self.waiting).push(delivered);
        self.arrived.notify_one();
    }

    /// Returns when there is one, or was. Cancel safe.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Whether there was one in this session.
    pub(super) fn have_arrived(&self) -> bool {
        self.have_arrived.load(Ordering::Relaxed)
    }

    /// All that there are.
    pub(super) fn take(&self) -> Vec<Delivered> {
        std::mem::take(&mut lock(&self.waiting))
    }

    /// Parks what waits for it. What is not confirmed waits on, and goes back with the end of the session, which the error is.
    pub(super) async fn park<D: Deliveries<Message = Delivered>>(
        &self,
        deliveries: &D,
        heartbeat: &Heartbeat,
    ) -> Result<(), Outage> {
        let waiting = self.take();
        let copies: Vec<Forward<'_, Delivered>> = waiting.iter().map(parked_copy).collect();
        let confirmed = deliveries.forward(&copies, heartbeat).await;
        drop(copies);
        let (mut done, mut failed) = (Vec::with_capacity(waiting.len()), None);
        let mut each = confirmed.map_err(|error| failed = Some(error)).unwrap_or_default().into_iter();
        for delivered in waiting {
            match each.next() {
                Some(Ok(())) => done.push(delivered),
                Some(Err(reason)) => {
                    failed.get_or_insert(Outage { dependency: Dependency::Broker, reason });
                    self.add(delivered);
                }
                None => self.add(delivered),
            }
        }
        for delivered in &done {
            let message = delivered.label();
            let error = error_of(delivered);
            events::MessageParked { reason: Reason::Unreadable, payment_id: None, message: &message, error: &error }
                .emit();
        }
        deliveries.settle(done).await;
        failed.map_or(Ok(()), Err)
    }
}

fn error_of(delivered: &Delivered) -> String {
    let error = delivered.unreadable.as_ref().map_or("", |unreadable| &unreadable.error);
    format!("the AMQP client cannot decode the message: {error}")
}

fn parked_copy(message: &Delivered) -> Forward<'_, Delivered> {
    Forward {
        message,
        payment_id: None,
        to: Destination::Dead(Reason::Unreadable),
        error: Some(Cow::Owned(error_of(message))),
        recorded: None,
        body: CopyBody::Original,
    }
}
