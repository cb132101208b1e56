//! Settling the deliveries of a session: publishing copies, acknowledging and requeuing.

use super::{CONSUMER_TAG, Consumer};
use crate::{
    broker::{
        BrokerError, STEP_TIMEOUT,
        batch::Delivered,
        copy::{self, CopyHeaders},
        lenient,
        outgoing::Outgoing,
        within,
    },
    domain::{failure::Outage, settlement::Destination},
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeat,
    },
    pipeline::ports::{Confirmed, CopyBody, Deliveries, FirstChecks, Forward, Message},
    unpoisoned::lock,
};
use async_trait::async_trait;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions};
use std::{
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

impl Consumer {
    /// The queue of a destination.
    fn destination_queue(&self, destination: Destination) -> &str {
        match destination {
            Destination::Retry(step) => &self.retry_queues[step.index()],
            Destination::Check(wait) => &self.check_delay_queues[wait.index()],
            Destination::CheckQueue => &self.check_queue,
            Destination::Dead(_) => &self.dead_queue,
        }
    }

    /// Stops consuming and requeues all unsettled deliveries one by one: a `basic.nack` of many would count against
    /// each of them. The broker requeues the rest when the channel closes.
    pub async fn close(&self, unsettled: Vec<Delivered>) {
        let given_back = tokio::time::timeout(STEP_TIMEOUT, self.stop_and_requeue(unsettled)).await.ok();
        events::GaveBack { deliveries: given_back }.emit();
        if self.publisher.is_blocked().is_some() {
            *lock(&self.blocked) = Some(Arc::clone(&self.publisher));
        } else {
            self.publisher.close().await;
        }
        let _ = tokio::time::timeout(STEP_TIMEOUT, self.connection.close(200, "done".into())).await;
        self.tracker().channel_opened();
        events::InFlight { component: self.component, deliveries: 0 }.emit();
    }

    async fn stop_and_requeue(&self, mut unsettled: Vec<Delivered>) -> usize {
        if !self.has_cancelled.swap(true, Ordering::Relaxed) && self.cancel().await.is_err() {
            return 0;
        }
        let mut stream = self.stream.lock().await;
        while let Some(delivery) = stream.gathered.pop_front() {
            let Some(token) = self.tracker().delivered(delivery.delivery_tag) else { break };
            unsettled.push(self.accept(token, delivery));
        }
        while let Ok(delivery) = stream.next().await {
            let Some(token) = self.tracker().delivered(delivery.delivery_tag) else { break };
            unsettled.push(self.accept(token, delivery));
        }
        drop(stream);
        unsettled.extend(self.unreadable.take_waiting());
        self.give_back(unsettled).await
    }

    async fn cancel(&self) -> lapin::Result<()> {
        // lapin still returns the deliveries that arrive before the answer.
        self.channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions { nowait: false }).await
    }

    /// Cancels the consumer of a limited session before its first settlement, so that no further delivery arrives.
    async fn cancel_if_limited(&self) {
        if self.limited && !self.has_cancelled.swap(true, Ordering::Relaxed) {
            // If this fails, the channel and with it the session ends.
            let _ = tokio::time::timeout(STEP_TIMEOUT, self.cancel()).await;
        }
    }

    /// Requeues deliveries while the session continues. Returns their number.
    pub async fn give_back(&self, unsettled: Vec<Delivered>) -> usize {
        let _order = self.acknowledging.lock().await;
        self.cancel_if_limited().await;
        let mut given_back = 0;
        for delivered in unsettled {
            let Some(tag) = self.tracker().give_back(delivered.token) else { continue };
            let nack = self.channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true });
            // If this fails, the channel ends and the broker requeues the rest.
            if within(STEP_TIMEOUT, "basic.nack", nack).await.is_err() {
                break;
            }
            given_back += 1;
        }
        events::InFlight { component: self.component, deliveries: self.tracker().in_flight() }.emit();
        // Deliveries that were settled after a requeued one can be acknowledged now.
        let prefix = self.tracker().settled_prefix();
        if let Some(tag) = prefix {
            let ack = self.channel.basic_ack(tag, BasicAckOptions { multiple: true });
            let _ = tokio::time::timeout(STEP_TIMEOUT, ack).await;
        }
        given_back
    }

    /// Publishes copies and returns for each whether it is confirmed, or the reason.
    async fn publish_copies(
        &self,
        copies: &[Forward<'_, Delivered>],
        heartbeat: &Heartbeat,
    ) -> Result<Confirmed, BrokerError> {
        let now = jiff::Timestamp::now().to_string();
        let mut frame = self.publisher.header_frame();
        let copies: Vec<Outgoing<'_>> = copies
            .iter()
            .map(|copy| {
                let original = &copy.message.delivery;
                let headers = CopyHeaders::new(copy, &self.queue, copy.message.source(), &now);
                let mut properties = copy::forwarded_properties(&original.properties, &headers, &copy.body, &mut frame);
                if let Some(unreadable) = &copy.message.unreadable {
                    properties = lenient::add_raw_properties(&properties, unreadable, &mut frame);
                }
                let body = match copy.body {
                    CopyBody::Original => &original.data[..],
                    CopyBody::Checks(body) | CopyBody::Points(body) => body,
                };
                Outgoing::to_queue(self.destination_queue(copy.to), body, properties)
            })
            .collect();
        self.publisher.publish_all(&copies, heartbeat).await
    }
}

#[async_trait]
impl Deliveries for Consumer {
    type Message = Delivered;

    async fn forward(&self, copies: &[Forward<'_, Delivered>], heartbeat: &Heartbeat) -> Result<Confirmed, Outage> {
        self.publish_copies(copies, heartbeat).await.map_err(BrokerError::into_outage)
    }

    async fn schedule(&self, checks: &[FirstChecks], heartbeat: &Heartbeat) -> Result<Confirmed, Outage> {
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let messages: Vec<Outgoing<'_>> = checks
            .iter()
            .map(|FirstChecks { wait, body }| {
                let queue = self.destination_queue(Destination::Check(*wait));
                Outgoing::to_queue(queue, body, copy::first_check_properties(&self.queue, seconds))
            })
            .collect();
        self.publisher.publish_all(&messages, heartbeat).await.map_err(BrokerError::into_outage)
    }

    async fn settle(&self, done: Vec<Delivered>) {
        let _order = self.acknowledging.lock().await;
        self.cancel_if_limited().await;
        let prefix = {
            let mut tracker = self.tracker();
            for delivered in done {
                tracker.settle(delivered.token);
            }
            events::InFlight { component: self.component, deliveries: tracker.in_flight() }.emit();
            tracker.settled_prefix()
        };
        if let Some(tag) = prefix {
            // If this fails, the stream ends and the broker redelivers the messages.
            let ack = self.channel.basic_ack(tag, BasicAckOptions { multiple: true });
            let _ = tokio::time::timeout(STEP_TIMEOUT, ack).await;
        }
    }
}
