//! Parking of messages that lapin cannot decode ([`super::lenient`]), outside the batches: publish, confirm,
//! acknowledge.

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

/// The unreadable deliveries that wait to be parked.
#[derive(Debug, Default)]
pub(super) struct UnreadableDeliveries {
    waiting: Mutex<Vec<Delivered>>,
    arrived: Notify,
    have_arrived: AtomicBool,
}

impl UnreadableDeliveries {
    /// Adds a delivery.
    pub(super) fn add(&self, delivered: Delivered) {
        self.have_arrived.store(true, Ordering::Relaxed);
        lock(&self.waiting).push(delivered);
        self.arrived.notify_one();
    }

    /// Waits until a delivery is added; one that was added before may already be parked. Cancel safe.
    pub(super) async fn wait_for_arrival(&self) {
        self.arrived.notified().await;
    }

    /// Whether a delivery was added in this session.
    pub(super) fn have_arrived(&self) -> bool {
        self.have_arrived.load(Ordering::Relaxed)
    }

    /// Removes and returns all waiting deliveries.
    pub(super) fn take_waiting(&self) -> Vec<Delivered> {
        std::mem::take(&mut lock(&self.waiting))
    }

    /// Parks the waiting deliveries. Unconfirmed ones continue to wait; the returned error ends the session, which
    /// requeues them.
    pub(super) async fn park<D: Deliveries<Message = Delivered>>(
        &self,
        deliveries: &D,
        heartbeat: &Heartbeat,
    ) -> Result<(), Outage> {
        let waiting = self.take_waiting();
        let copies: Vec<Forward<'_, Delivered>> = waiting.iter().map(dead_copy).collect();
        let confirmed = deliveries.forward(&copies, heartbeat).await;
        drop(copies);
        let (mut parked, mut failed) = (Vec::with_capacity(waiting.len()), None);
        let mut results = confirmed.map_err(|error| failed = Some(error)).unwrap_or_default().into_iter();
        for delivered in waiting {
            match results.next() {
                Some(Ok(())) => parked.push(delivered),
                Some(Err(reason)) => {
                    failed.get_or_insert(Outage { dependency: Dependency::Broker, reason });
                    self.add(delivered);
                }
                None => self.add(delivered),
            }
        }
        for delivered in &parked {
            let message = delivered.label();
            let error = describe_error(delivered);
            events::MessageParked { reason: Reason::Unreadable, payment_id: None, message: &message, error: &error }
                .emit();
        }
        deliveries.settle(parked).await;
        failed.map_or(Ok(()), Err)
    }
}

fn describe_error(delivered: &Delivered) -> String {
    let error = delivered.unreadable.as_ref().map_or("", |unreadable| &unreadable.error);
    format!("the AMQP client cannot decode the message: {error}")
}

fn dead_copy(message: &Delivered) -> Forward<'_, Delivered> {
    Forward {
        message,
        payment_id: None,
        to: Destination::Dead(Reason::Unreadable),
        error: Some(Cow::Owned(describe_error(message))),
        recorded: None,
        body: CopyBody::Original,
    }
}
