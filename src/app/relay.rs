//! Running the relay: sessions one after the other, while this daemon holds the relay lock.

use super::{App, SLACK};
use crate::{
    broker::{BrokerError, CONFIRM_TIMEOUT, EventPublisher},
    database::WithDeadline,
    domain::{
        component::Component,
        failure::{Dependency, Outage},
    },
    ledger::{self, Outbox},
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeat,
    },
    pauses,
    relay::Relay,
};
use std::{sync::Arc, time::Duration};

/// The interval at which an idle relay reads the outbox.
const IDLE_INTERVAL: Duration = Duration::from_millis(200);

/// The interval at which other daemons try to take the relay lock, and the delay until another relay replaces a dead
/// one.
const TAKEOVER_INTERVAL: Duration = Duration::from_secs(1);

/// The interval at which the outbox is counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// The number of reads of an empty outbox between two proofs that the broker accepts messages.
const READS_PER_PROOF: u32 = 25;

/// The deadline for opening a publisher: a connection, tried with every node, and the exchange.
const OPENING_TIME: Duration = Duration::from_secs(120);

impl App {
    /// Publishes the rows of the outbox until the daemon stops, if events are enabled. Always counts the rows, because
    /// other programs may write to the outbox.
    pub(super) async fn keep_relaying(&self) {
        let relaying = async {
            if self.settings.events.exchange.is_some() {
                self.relay().await;
            }
        };
        tokio::join!(relaying, self.until_stopped(self.count_outbox()));
    }

    /// Opens the outbox with separate connections.
    fn open_outbox(&self) -> Arc<WithDeadline<dyn Outbox>> {
        let (url, timeout) = (self.settings.ledger.url.clone(), self.settings.ledger.timeout);
        Arc::new(WithDeadline::new(move || -> Arc<dyn Outbox> { ledger::open_outbox(&url, timeout) }, timeout))
    }

    /// Runs the relay whenever this daemon holds the relay lock.
    async fn relay(&self) {
        let outbox = self.open_outbox();
        let heartbeat =
            self.heartbeats.begin("relay", self.settings.ledger.timeout + CONFIRM_TIMEOUT + OPENING_TIME + SLACK);
        let mut blocked = None;
        while !self.stop.is_cancelled() {
            heartbeat.beat();
            let outage = match outbox.call(Outbox::take_turn).await {
                Ok(true) => self.relay_with_lock(&outbox, &heartbeat, &mut blocked).await,
                Ok(false) => {
                    // The relay of another daemon now detects and reports outages.
                    self.status.resume(Component::Relay, Dependency::Ledger);
                    self.status.resume(Component::Relay, Dependency::Broker);
                    self.until_stopped(tokio::time::sleep(TAKEOVER_INTERVAL)).await;
                    continue;
                }
                Err(error) => Err(error.into_outage(Dependency::Ledger)),
            };
            // Another daemon may work, or continue after this one stops.
            release_relay_lock(&outbox).await;
            if let Err(outage) = outage {
                self.status.pause(Component::Relay, &outage);
                heartbeat.beat();
                self.until_stopped(tokio::time::sleep(pauses::between_probes())).await;
            }
        }
    }

    /// Publishes until an error or until the daemon stops. `blocked`: the publisher that an alarm of the broker blocks,
    /// at most one. It is kept, because the broker notifies it when the alarm ends.
    async fn relay_with_lock(
        &self,
        outbox: &Arc<WithDeadline<dyn Outbox>>,
        heartbeat: &Heartbeat,
        blocked: &mut Option<EventPublisher>,
    ) -> Result<(), Outage> {
        if let Some(alarm) = blocked.as_ref().and_then(EventPublisher::is_blocked) {
            return Err(alarm.into_outage());
        }
        if let Some(unblocked) = blocked.take() {
            unblocked.close().await;
        }
        let opened = self.until_stopped(EventPublisher::open(&self.settings.plan())).await;
        let Some(publisher) = opened.transpose().map_err(BrokerError::into_outage)? else { return Ok(()) };
        heartbeat.beat();
        let relayed = self.relay_over(outbox, &publisher, heartbeat).await;
        if publisher.is_blocked().is_some() {
            *blocked = Some(publisher);
        } else {
            publisher.close().await;
        }
        relayed
    }

    /// Relays rows over a publisher until an error or until the daemon stops.
    async fn relay_over(
        &self,
        outbox: &Arc<WithDeadline<dyn Outbox>>,
        publisher: &EventPublisher,
        heartbeat: &Heartbeat,
    ) -> Result<(), Outage> {
        publisher.prove().await.map_err(BrokerError::into_outage)?;
        self.status.resume(Component::Relay, Dependency::Broker);
        events::Relaying.emit();
        let relay = Relay::new(Arc::clone(outbox), publisher, &self.stop);
        let mut empty_reads = 0;
        while !self.stop.is_cancelled() {
            heartbeat.beat();
            let had_rows = relay.step(heartbeat).await?;
            self.status.resume(Component::Relay, Dependency::Ledger);
            if had_rows {
                empty_reads = 0;
                continue;
            }
            empty_reads += 1;
            if empty_reads % READS_PER_PROOF == 0 {
                heartbeat.beat();
                publisher.prove().await.map_err(BrokerError::into_outage)?;
            }
            self.until_stopped(tokio::time::sleep(IDLE_INTERVAL)).await;
        }
        Ok(())
    }

    /// Counts the rows of the outbox at intervals. While the ledger is down, the metrics keep the last numbers.
    async fn count_outbox(&self) {
        let outbox = self.open_outbox();
        let mut ticks = tokio::time::interval(COUNT_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Ok(summary) = outbox.call(Outbox::summary).await {
                events::OutboxCounted { rows: summary.rows, oldest_seconds: summary.oldest_seconds }.emit();
            }
        }
    }
}

/// Releases the relay lock.
async fn release_relay_lock(outbox: &WithDeadline<dyn Outbox>) {
    let given_up = outbox.call(|outbox| {
        outbox.give_turn_up();
        Ok(())
    });
    // If the ledger does not answer in time, the connection is dropped, which releases the lock as well.
    let _ = given_up.await;
}
