//! The relay: reads rows of the outbox, publishes them, and deletes them after the confirm (`docs/guides/events.md`).
//!
//! The process may die at any `await`: a row that was published and not yet deleted is published again, with the same
//! message ID. No transaction is open while the relay publishes.

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

/// The maximum number of rows that are read at a time.
const READ_LIMIT: i64 = 1000;
/// The maximum number of publishes that wait for their confirms.
const WINDOW: usize = 500;
/// The pause after the first failure of a row; it doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause, and the delay until the relay detects that a row can be delivered again. `pointsd outbox retry`
/// ends it.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The relay of one session with the broker.
pub struct Relay<'a> {
    outbox: Arc<WithDeadline<dyn Outbox>>,
    publisher: &'a EventPublisher,
    /// When cancelled, no further window is published.
    stop: &'a CancellationToken,
}

impl<'a> Relay<'a> {
    /// Creates a relay that uses this publisher.
    pub fn new(
        outbox: Arc<WithDeadline<dyn Outbox>>,
        publisher: &'a EventPublisher,
        stop: &'a CancellationToken,
    ) -> Self {
        Self { outbox, publisher, stop }
    }

    /// Publishes held rows that are due and then new rows, a limited number of each. Returns whether there were any.
    ///
    /// New rows are read from the beginning each time: rows that were read before are deleted or held by then, and a
    /// transaction that took its IDs early may commit them late.
    pub async fn step(&self, heartbeat: &Heartbeat) -> Result<bool, Outage> {
        heartbeat.beat();
        let due = self.call(|outbox| outbox.due(READ_LIMIT)).await?;
        let had_due = !due.is_empty();
        self.relay_rows(due, heartbeat).await?;
        heartbeat.beat();
        let fresh = self.call(|outbox| outbox.fresh(READ_LIMIT)).await?;
        let had_fresh = !fresh.is_empty();
        self.relay_rows(fresh, heartbeat).await?;
        Ok(had_due || had_fresh)
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Outbox) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, Outage> {
        self.outbox.call(move |outbox| work(outbox)).await.map_err(|error| error.into_outage(Dependency::Ledger))
    }

    /// Relays rows window by window: publish, confirm, delete. Rows that could not be delivered are held with the later
    /// rows of their keys.
    async fn relay_rows(&self, rows: Vec<OutboxRow>, heartbeat: &Heartbeat) -> Result<(), Outage> {
        let mut held = HeldRows::default();
        for row in &rows {
            if let Some(problem) = &row.problem {
                held.count(row, problem);
            }
        }
        let mut windows = KeyedWindows::new(rows);
        let mut lost = None;
        while let Some(window) = windows.next_window().filter(|_| !self.stop.is_cancelled()) {
            heartbeat.beat();
            let messages: Vec<OutboxMessage<'_>> = window.iter().map(outbox_message).collect();
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
                        windows.hold(row, error, pause);
                    }
                }
            }
            heartbeat.beat();
            self.call(move |outbox| outbox.delete(&delivered)).await?;
        }
        held.log();
        let failures = windows.failures;
        if !failures.is_empty() {
            heartbeat.beat();
            self.call(move |outbox| outbox.hold(&failures)).await?;
        }
        lost.map_or(Ok(()), Err)
    }
}

fn outbox_message(row: &OutboxRow) -> OutboxMessage<'_> {
    OutboxMessage {
        exchange: &row.exchange,
        routing_key: &row.routing_key,
        message_id: &row.message_id,
        headers: &row.headers,
        body: &row.body,
    }
}

/// The rows of one read that could not be delivered, which are logged by exchange and not by row.
#[derive(Default)]
struct HeldRows(BTreeMap<String, (i64, u64, bool, String)>);

impl HeldRows {
    fn count(&mut self, row: &OutboxRow, error: &str) {
        let first = || (row.id, 0, false, error.to_owned());
        let (_, rows, is_new, _) = self.0.entry(row.exchange.clone()).or_insert_with(first);
        *rows += 1;
        *is_new |= row.attempts == 0;
    }

    fn log(self) {
        for (exchange, (first_id, rows, is_new, error)) in self.0 {
            events::OutboxHeld { exchange: &exchange, rows, first_id, is_new, error: &error }.emit();
        }
    }
}

/// The pause after a failure of a row with this number of earlier failures.
fn pause_after(attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts).unwrap_or(0).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

/// Rows in windows. No two rows of a window have the same key, because the second one must not be delivered if the
/// first one fails.
#[derive(Debug, Default)]
struct KeyedWindows {
    rows: VecDeque<OutboxRow>,
    /// The keys of held rows, and their pauses.
    held: HashMap<String, Duration>,
    failures: Vec<FailedDelivery>,
}

impl KeyedWindows {
    fn new(rows: Vec<OutboxRow>) -> Self {
        let mut windows = Self::default();
        let read_ids: HashSet<i64> = rows.iter().map(|row| row.id).collect();
        for row in rows {
            if let Some(problem) = row.problem.clone() {
                windows.hold(&row, problem, pause_after(row.attempts));
                continue;
            }
            match row.behind_id.filter(|id| !read_ids.contains(id)) {
                // The row before it is not among these rows, which are in order.
                Some(_) => {
                    // Never immediately: it is read again together with the row before it.
                    let seconds = row.behind_seconds.unwrap_or_default().clamp(0.1, 86_400.0);
                    windows.hold_behind(&row, Duration::from_secs_f64(seconds));
                }
                None => windows.rows.push_back(row),
            }
        }
        windows
    }

    /// Returns the next rows that can be published together; `None` after the last one.
    fn next_window(&mut self) -> Option<Vec<OutboxRow>> {
        let mut window = Vec::new();
        let mut keys: HashSet<String> = HashSet::new();
        let mut later = VecDeque::new();
        while let Some(row) = self.rows.pop_front() {
            let key = row.key.as_deref();
            if let Some(again_in) = key.and_then(|key| self.held.get(key)).copied() {
                self.hold_behind(&row, again_in);
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

    /// Holds a row that could not be delivered.
    fn hold(&mut self, row: &OutboxRow, error: String, again_in: Duration) {
        self.failures.push(FailedDelivery { id: row.id, error: Some(error), again_in });
        self.held.extend(row.key.clone().map(|key| (key, again_in)));
    }

    /// Holds a row behind an earlier row of its key.
    fn hold_behind(&mut self, row: &OutboxRow, again_in: Duration) {
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
        let mut windows =
            KeyedWindows::new(vec![row(1, a), row(2, a), row(3, b), row(4, None), row(5, None), row(6, b), row(7, a)]);
        assert_eq!(ids(windows.next_window()), [1, 3, 4, 5]);
        windows.hold(&row(3, b), "no".into(), Duration::from_secs(1));
        assert_eq!(ids(windows.next_window()), [2], "6 waits behind 3, and 7 behind 2");
        assert_eq!(ids(windows.next_window()), [7]);
        assert_eq!(windows.next_window(), None);
        let held: Vec<(i64, bool)> = windows.failures.iter().map(|it| (it.id, it.error.is_some())).collect();
        assert_eq!(held, [(3, true), (6, false)]);
    }

    #[test]
    fn rows_behind_a_held_one_wait_as_long_as_it_does() {
        let behind = |id, key, seconds| OutboxRow { behind_id: Some(1), behind_seconds: Some(seconds), ..row(id, key) };
        let mut windows = KeyedWindows::new(vec![
            behind(5, Some("a"), 2.0),
            row(6, Some("a")),
            behind(7, Some("b"), -1.0),
            row(8, None),
        ]);
        assert_eq!(ids(windows.next_window()), [8]);
        assert_eq!(windows.next_window(), None);
        let waits: Vec<(i64, u64)> = windows.failures.iter().map(|it| (it.id, it.again_in.as_secs())).collect();
        assert_eq!(waits, [(5, 2), (7, 0), (6, 2)]);
    }

    #[test]
    fn windows_are_bounded_and_pauses_grow_to_their_bound() {
        let mut windows = KeyedWindows::new((0..1200).map(|id| row(id, None)).collect());
        let sizes: Vec<usize> = std::iter::from_fn(|| windows.next_window()).map(|window| window.len()).collect();
        assert_eq!(sizes, [500, 500, 200]);
        let seconds: Vec<u64> = [0, 1, 2, 8, 9, 1000, -5].map(|attempts| pause_after(attempts).as_secs()).to_vec();
        assert_eq!(seconds, [1, 2, 4, 256, 300, 300, 1]);
    }
}
