//! The relay: one session after the other, while this daemon has the turn.

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

/// How long the relay looks away while there is nothing to publish.
const IDLE: Duration = Duration::from_millis(200);

/// How often a daemon without the turn asks for it: how late a dead relay is followed by another.
const WAITING: Duration = Duration::from_secs(1);

/// How often the outbox is counted.
const COUNTING: Duration = Duration::from_secs(5);

/// After so many looks at an empty outbox it is proven that the broker would take something.
const LOOKS_BEFORE_PROOF: u32 = 25;

/// What opening a publisher may take: a connection with every node, and the exchange.
const OPENING_TIME: Duration = Duration::from_secs(120);

impl App {
    /// Publishes what is in the outbox, as long as events are wanted, until the daemon is told to stop; and counts it, wanted or
    /// not: other programs may write there.
    pub(super) async fn keep_relaying(&self) {
        let relaying = async {
            if self.settings.events.exchange.is_some() {
                self.relay().await;
            }
        };
        tokio::join!(relaying, self.until_stopped(self.count_outbox()));
    }

    /// With connections of its own.
    fn outbox(&self) -> Arc<WithDeadline<dyn Outbox>> {
        let (url, timeout) = (self.settings.ledger.url.clone(), self.settings.ledger.timeout);
        Arc::new(WithDeadline::new(move || -> Arc<dyn Outbox> { ledger::open_outbox(&url, timeout) }, timeout))
    }

    async fn relay(&self) {
        let outbox = self.outbox();
        let heartbeat =
            self.heartbeats.begin("relay", self.settings.ledger.timeout + CONFIRM_TIMEOUT + OPENING_TIME + SLACK);
        let mut blocked = None;
        while !self.stop.is_cancelled() {
            heartbeat.beat();
            let outage = match outbox.call(Outbox::take_turn).await {
                Ok(true) => self.relay_in_turn(&outbox, &heartbeat, &mut blocked).await,
                Ok(false) => {
                    // Whatever was told of an outage is the other relay's to find out now.
                    self.status.resume(Component::Relay, Dependency::Ledger);
                    self.status.resume(Component::Relay, Dependency::Broker);
                    self.until_stopped(tokio::time::sleep(WAITING)).await;
                    continue;
                }
                Err(error) => Err(error.into_outage(Dependency::Ledger)),
            };
            // Another daemon may be better off, or goes on while this one leaves.
            give_turn_up(&outbox).await;
            if let Err(outage) = outage {
                self.status.pause(Component::Relay, &outage);
                heartbeat.beat();
                self.until_stopped(tokio::time::sleep(pauses::between_probes())).await;
            }
        }
    }

    /// Publishes until something fails or the daemon is told to stop. `blocked`: a publisher that an alarm of the broker has
    /// blocked is kept, because it will hear when the alarm is over, and never more than one.
    async fn relay_in_turn(
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
        let relayed = self.relay_with(outbox, &publisher, heartbeat).await;
        if publisher.is_blocked().is_some() {
            *blocked = Some(publisher);
        } else {
            publisher.close().await;
        }
        relayed
    }

    async fn relay_with(
        &self,
        outbox: &Arc<WithDeadline<dyn Outbox>>,
        publisher: &EventPublisher,
        heartbeat: &Heartbeat,
    ) -> Result<(), Outage> {
        publisher.prove().await.map_err(BrokerError::into_outage)?;
        self.status.resume(Component::Relay, Dependency::Broker);
        events::Relaying.emit();
        let relay = Relay::new(Arc::clone(outbox), publisher, &self.stop);
        let mut idle = 0;
        while !self.stop.is_cancelled() {
            heartbeat.beat();
            let moved = relay.step(heartbeat).await?;
            self.status.resume(Component::Relay, Dependency::Ledger);
            if moved {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle % LOOKS_BEFORE_PROOF == 0 {
                heartbeat.beat();
                publisher.prove().await.map_err(BrokerError::into_outage)?;
            }
            self.until_stopped(tokio::time::sleep(IDLE)).await;
        }
        Ok(())
    }

    /// Tells every now and then how full the outbox is. While the ledger is down it tells the last numbers.
    async fn count_outbox(&self) {
        let outbox = self.outbox();
        let mut turns = tokio::time::interval(COUNTING);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            if let Ok(summary) = outbox.call(Outbox::summary).await {
                events::OutboxCounted { rows: summary.rows, oldest_seconds: summary.oldest_seconds }.emit();
            }
        }
    }
}

async fn give_turn_up(outbox: &WithDeadline<dyn Outbox>) {
    let given_up = outbox.call(|outbox| {
        outbox.give_turn_up();
        Ok(())
    });
    // One that does not answer in time is abandoned with its connection, which ends the turn as well.
    let _ = given_up.await;
}
