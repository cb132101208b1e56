//! The relay: reads the outbox, publishes, waits for the confirms, deletes (`docs/guides/events.md`).
//!
//! At every `await` the process may die: a row that was published and not yet deleted is published again, with the same
//! message id. No transaction is open while publishing.

use crate::{
    broker::{EventPublisher, OutboxMessage},
    database::{DatabaseError, WithDeadline},
    domain::failure::{Dependency, Outage},
    ledger::{FailedDelivery, Outbox, OutboxRow},
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeat,
    },
};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Rows that are read at a time.
const READ: i64 = 1000;
/// Most publishes that wait for their confirms.
const WINDOW: usize = 500;
/// The pause after a row's first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause: how late it is noticed that a row can be delivered again. `pointsd outbox retry` ends it.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// One relay's way through the outbox, in one session with the broker.
pub struct Relay<'a> {
    outbox: Arc<WithDeadline<dyn Outbox>>,
    publisher: &'a EventPublisher,
    /// When cancelled, no further window is begun.
    stop: &'a CancellationToken,
}

impl<'a> Relay<'a> {
    /// Over this publisher.
    pub fn new(
        outbox: Arc<WithDeadline<dyn Outbox>>,
        publisher: &'a EventPublisher,
        stop: &'a CancellationToken,
    ) -> Self {
        Self { outbox, publisher, stop }
    }

    /// Publishes what is due, and then what is new, a bounded number of each. Whether there was anything.
    ///
    /// New rows are read from the beginning each time: what was read before is deleted or held by then, and a transaction that
    /// took its ids early may commit them late.
    pub async fn step(&self, heartbeat: &Heartbeat) -> Result<bool, Outage> {
        heartbeat.beat();
        let due = self.call(|outbox| outbox.due(READ)).await?;
        let tried_again = !due.is_empty();
        self.relay(due, heartbeat).await?;
        heartbeat.beat();
        let fresh = self.call(|outbox| outbox.fresh(READ)).await?;
        let came = !fresh.is_empty();
        self.relay(fresh, heartbeat).await?;
        Ok(tried_again || came)
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Outbox) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, Outage> {
        self.outbox.call(move |outbox| work(outbox)).await.map_err(|error| error.into_outage(Dependency::Ledger))
    }

    /// Window by window: publish, confirm, delete. What could not be delivered is held, and with it the later rows of its key.
    async fn relay(&self, rows: Vec<OutboxRow>, heartbeat: &Heartbeat) -> Result<(), Outage> {
        let mut held = Held::default();
        for row in &rows {
            if let Some(problem) = &row.problem {
                held.count(row, problem);
            }
        }
        let mut way = KeyedWindows::of(rows);
        let mut lost = None;
        while let Some(window) = way.next_window().filter(|_| !self.stop.is_cancelled()) {
            heartbeat.beat();
            let messages: Vec<OutboxMessage<'_>> = window.iter().map(message).collect();
            let results = match self.publisher.send(&messages, heartbeat).await {
                Ok(results) => results,
                Err(error) => {
                    lost = Some(error.into_outage());
                    break;
                }
            };
            let mut delivered = Vec::with_capacity(window.len());
            for (row, result) in window.iter().zip(results) {
                match result {
                    Ok(()) => delivered.push(row.id),
                    Err(error) => {
                        let pause = pause_after(row.attempts);
                        held.count(row, &error);
                        way.hold(row, error, pause);
                    }
                }
            }
            heartbeat.beat();
            self.call(move |outbox| outbox.delete(&delivered)).await?;
        }
        held.tell();
        let failures = way.failures;
        if !failures.is_empty() {
            heartbeat.beat();
            self.call(move |outbox| outbox.hold(&failures)).await?;
        }
        lost.map_or(Ok(()), Err)
    }
}

fn message(row: &OutboxRow) -> OutboxMessage<'_> {
    OutboxMessage {
        exchange: &row.exchange,
        routing_key: &row.routing_key,
        message_id: &row.message_id,
        headers: &row.headers,
        body: &row.body,
    }
}

/// Rows of one reading that could not be delivered: a line for each exchange, not for each row.
#[derive(Default)]
struct Held(BTreeMap<String, (i64, u64, bool, String)>);

impl Held {
    fn count(&mut self, row: &OutboxRow, error: &str) {
        let first = || (row.id, 0, false, error.to_owned());
        let (_, rows, anew, _) = self.0.entry(row.exchange.clone()).or_insert_with(first);
        *rows += 1;
        *anew |= row.attempts == 0;
    }

    fn tell(self) {
        for (exchange, (first_id, rows, anew, error)) in self.0 {
            events::OutboxHeld { exchange: &exchange, rows, first_id, is_new: anew, error: &error }.emit();
        }
    }
}

/// How long a row waits that has failed so often before.
fn pause_after(attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts).unwrap_or(0).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

/// Rows on their way: windows in which no two rows have one key, because the second must not be delivered when the first
/// is not.
#[derive(Debug, Default)]
struct KeyedWindows {
    rows: VecDeque<OutboxRow>,
    /// The keys of rows that are held, and for how long.
    held: HashMap<String, Duration>,
    failures: Vec<FailedDelivery>,
}

impl KeyedWindows {
    fn of(rows: Vec<OutboxRow>) -> Self {
        let mut way = Self::default();
        let here: HashSet<i64> = rows.iter().map(|row| row.id).collect();
        for row in rows {
            if let Some(problem) = row.problem.clone() {
                way.hold(&row, problem, pause_after(row.attempts));
                continue;
            }
            match row.behind_id.filter(|id| !here.contains(id)) {
                // The one before it is not among these, which are in order.
                Some(_) => {
                    // Never at once: it is looked at again with the one before it.
                    let seconds = row.behind_seconds.unwrap_or_default().clamp(0.1, 86_400.0);
                    way.wait(&row, Duration::from_secs_f64(seconds));
                }
                None => way.rows.push_back(row),
            }
        }
        way
    }

    /// The next rows that can go together; none when all are done.
    fn next_window(&mut self) -> Option<Vec<OutboxRow>> {
        let mut window = Vec::new();
        let mut keys: HashSet<String> = HashSet::new();
        let mut later = VecDeque::new();
        while let Some(row) = self.rows.pop_front() {
            let key = row.key.as_deref();
            if let Some(again_in) = key.and_then(|key| self.held.get(key)).copied() {
                self.wait(&row, again_in);
            } else if window.len() == WINDOW || key.is_some_and(|key| keys.contains(key)) {
                keys.extend(row.key.clone());
                later.push_back(row);
            } else {
                keys.extend(row.key.clone());
                window.push(row);
            }
        }
        self.rows = later;
        (!window.is_empty()).then_some(window)
    }

    fn hold(&mut self, row: &OutboxRow, error: String, again_in: Duration) {
        self.failures.push(FailedDelivery { id: row.id, error: Some(error), again_in });
        self.held.extend(row.key.clone().map(|key| (key, again_in)));
    }

    /// Behind another one of its key.
    fn wait(&mut self, row: &OutboxRow, again_in: Duration) {
        self.failures.push(FailedDelivery { id: row.id, error: None, again_in });
        self.held.extend(row.key.clone().map(|key| (key, again_in)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, key: Option<&str>) -> OutboxRow {
        OutboxRow {
            id,
            message_id: id.to_string(),
            exchange: String::new(),
            routing_key: String::new(),
            key: key.map(str::to_owned),
            headers: "{}".into(),
            body: Vec::new(),
            attempts: 0,
            behind_id: None,
            behind_seconds: None,
            problem: None,
        }
    }

    fn ids(window: Option<Vec<OutboxRow>>) -> Vec<i64> {
        window.into_iter().flatten().map(|row| row.id).collect()
    }

    #[test]
    fn a_window_has_one_row_of_a_key_and_a_row_that_fails_holds_back_its_own_key_only() {
        let (a, b) = (Some("a"), Some("b"));
        let mut way =
            KeyedWindows::of(vec![row(1, a), row(2, a), row(3, b), row(4, None), row(5, None), row(6, b), row(7, a)]);
        assert_eq!(ids(way.next_window()), [1, 3, 4, 5]);
        way.hold(&row(3, b), "no".into(), Duration::from_secs(1));
        assert_eq!(ids(way.next_window()), [2], "6 waits behind 3, and 7 behind 2");
        assert_eq!(ids(way.next_window()), [7]);
        assert_eq!(way.next_window(), None);
        let held: Vec<(i64, bool)> = way.failures.iter().map(|it| (it.id, it.error.is_some())).collect();
        assert_eq!(held, [(3, true), (6, false)]);
    }

    #[test]
    fn rows_behind_a_held_one_wait_as_long_as_it_does() {
        let behind = |id, key, seconds| OutboxRow { behind_id: Some(1), behind_seconds: Some(seconds), ..row(id, key) };
        let mut way = KeyedWindows::of(vec![
            behind(5, Some("a"), 2.0),
            row(6, Some("a")),
            behind(7, Some("b"), -1.0),
            row(8, None),
        ]);
        assert_eq!(ids(way.next_window()), [8]);
        assert_eq!(way.next_window(), None);
        let waits: Vec<(i64, u64)> = way.failures.iter().map(|it| (it.id, it.again_in.as_secs())).collect();
        assert_eq!(waits, [(5, 2), (7, 0), (6, 2)]);
    }

    #[test]
    fn windows_are_bounded_and_pauses_grow_to_their_bound() {
        let mut way = KeyedWindows::of((0..1200).map(|id| row(id, None)).collect());
        let sizes: Vec<usize> = std::iter::from_fn(|| way.next_window()).map(|window| window.len()).collect();
        assert_eq!(sizes, [500, 500, 200]);
        let seconds: Vec<u64> = [0, 1, 2, 8, 9, 1000, -5].map(|attempts| pause_after(attempts).as_secs()).to_vec();
        assert_eq!(seconds, [1, 2, 4, 256, 300, 300, 1]);
    }
}
