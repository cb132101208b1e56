use super::*;
use crate::{
    domain::{
        check::{Check, Checked, Claim, LedgerState, OnUnpaid},
        check_message::{self, About, Limits, ScheduledCheck, Writer},
        check_schedule::CheckPolicy,
        component::Component,
        credit::Points,
        dead_letter::Reason,
        failure::BatchError,
        field_paths::FieldPaths,
        id_rule::IdRule,
        ids::UserId,
        message::Format,
        notification::NotificationFormat,
        notification_source::{NotificationKind, NotificationSource},
        retry::{Delay, RetryPolicy},
        settlement::Destination,
        status::PaymentStatus,
        valuation::PaymentValue,
    },
    observe::heartbeat::{Heartbeat, Heartbeats},
    pipeline::{
        check::brake::SharedBrake,
        ports::{
            Answers, CheckLedger, Confirmed, CopyBody, FirstChecks, Forward, Lookup, Origin, Patience, Payment,
            PaymentSource, RowStatus,
        },
    },
};
use async_trait::async_trait;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};
use tokio_util::sync::CancellationToken;

/// A message with this body and this number of checks done.
#[derive(Debug)]
struct Text(Vec<u8>, u32);

impl Message for Text {
    fn body(&self) -> &[u8] {
        &self.0
    }
    fn sent_at(&self) -> Option<SystemTime> {
        None
    }
    fn origin(&self) -> Origin {
        Origin::Checks
    }
    fn checks_done(&self) -> u32 {
        self.1
    }
    fn source(&self) -> Option<&str> {
        (!self.0.starts_with(b"{")).then_some("trade")
    }
    fn label(&self) -> String {
        String::new()
    }
}

fn down() -> Outage {
    Outage { dependency: Dependency::PayStatus, reason: "down".into() }
}

/// A payment source in memory: the payment ID `STATUS-anything` determines the answer, unless `statuses` has another
/// status.
#[derive(Default)]
struct Table {
    asked: Mutex<Vec<usize>>,
    set: Mutex<Vec<(String, RowStatus)>>,
    /// The statuses of payments from now on.
    statuses: Mutex<HashMap<String, PaymentStatus>>,
}

#[async_trait]
impl PaymentSource for Table {
    async fn look_up(&self, payments: Arc<[PaymentId]>, _: Instant, answers: Answers<'_>) -> Result<(), BatchError> {
        self.asked.lock().unwrap().push(payments.len());
        if payments.iter().any(|id| id.as_str() == "down") {
            return Err(down().into());
        }
        for (index, id) in payments.iter().enumerate().filter(|(_, id)| !id.as_str().starts_with("late")) {
            let known = self.statuses.lock().unwrap().get(id.as_str()).copied();
            if id.as_str().starts_with("once") && self.asked.lock().unwrap().len() > 1 {
                continue;
            }
            let payment = |payment| Lookup::Known(Payment { id: Some(id.to_string()), ..payment });
            let answer = match (known, id.as_str().split('-').next()) {
                (Some(status), _) => payment(Payment::new(status)),
                // Paid in the first look-up; then closed (`closes`) or without an answer (`once`).
                (None, Some("closes")) if self.asked.lock().unwrap().len() > 1 => {
                    payment(Payment::new(PaymentStatus::Closed))
                }
                (None, Some("once" | "closes" | "stays")) => {
                    let value = Some(PaymentValue::Points(UserId::new("u").unwrap(), Points::new(1, 1).unwrap()));
                    payment(Payment { value, ..Payment::new(PaymentStatus::Paid) })
                }
                (None, Some("failed")) => Lookup::Failed("garbage".into()),
                (None, Some("other")) => {
                    payment(Payment { user: Some("another".into()), ..Payment::new(PaymentStatus::Paid) })
                }
                (None, Some("Paid")) => {
                    let id = Some(id.as_str().to_lowercase());
                    Lookup::Known(Payment { id, ..Payment::new(PaymentStatus::Paid) })
                }
                (None, word) => {
                    let status = PaymentStatus::ALL.into_iter().find(|status| Some(status.label()) == word);
                    payment(Payment::new(status.unwrap_or(PaymentStatus::Unknown)))
                }
            };
            answers(index, answer);
        }
        Ok(())
    }
    async fn set(&self, payments: Arc<[PaymentId]>, to: RowStatus) -> Result<(), BatchError> {
        self.set.lock().unwrap().extend(payments.iter().map(|id| (id.to_string(), to)));
        Ok(())
    }
    async fn probe_set(&self) -> Result<(), Outage> {
        Ok(())
    }
    async fn probe(&self) -> Result<(), Outage> {
        Ok(())
    }
    fn max_duration(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// A ledger in memory that contains every payment, except for IDs `…-absent`.
#[derive(Default)]
struct Memory {
    rows: Mutex<HashMap<String, LedgerState>>,
    batches: Mutex<Vec<Vec<String>>>,
    /// Payments whose commit fails next, and their statuses at the source from then on.
    fails: Mutex<Vec<(String, PaymentStatus)>>,
    /// Whether the ledger is down after one commit.
    is_down_later: AtomicBool,
    source: Arc<Table>,
}

#[async_trait]
impl CheckLedger for Memory {
    async fn check(&self, batch: Arc<[Check]>, on_unpaid: OnUnpaid, _: Patience) -> Result<Vec<Checked>, BatchError> {
        let ids: Vec<String> = batch.iter().map(|check| check.payment_id.to_string()).collect();
        assert!(
            ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]),
            "sorted and without duplicates: {ids:?}"
        );
        if batch.iter().all(|check| matches!(check.resolution, crate::domain::check::Resolution::ForPerson(_))) {
            return Ok(Vec::new());
        }
        if let Some((id, status)) = self.fails.lock().unwrap().pop() {
            self.source.statuses.lock().unwrap().insert(id, status);
            return Err(BatchError::Transient("locked".into()));
        }
        if self.is_down_later.load(Ordering::Relaxed) && !self.batches.lock().unwrap().is_empty() {
            return Err(Outage { dependency: Dependency::Ledger, reason: "down".into() }.into());
        }
        if ids.iter().any(|id| id.ends_with("refused")) {
            return Err(BatchError::Refused("permanent".into()));
        }
        self.batches.lock().unwrap().push(ids);
        let mut rows = self.rows.lock().unwrap();
        let done = batch.iter().map(|check| {
            let id = check.payment_id.to_string();
            let at_first = if id.ends_with("absent") { LedgerState::Absent } else { LedgerState::Credited };
            let state = rows.entry(id).or_insert(at_first);
            let step = check.decide(*state, on_unpaid);
            *state = step.leaves(*state);
            Checked { step, state: *state, user_id: "u".into(), points: 1 }
        });
        Ok(done.collect())
    }
    async fn probe(&self) -> Result<(), Outage> {
        Ok(())
    }
}

/// A confirmed copy: its payments and its destination.
type Copied = (Vec<String>, Destination);

#[derive(Default)]
struct Queue {
    settled: Mutex<u32>,
    copies: Mutex<Vec<Copied>>,
    /// Destinations that refuse copies, with the number of refusals left.
    refuses: Mutex<Vec<(Destination, u32)>>,
    /// Cancelled when a destination refuses a copy.
    stops: Mutex<CancellationToken>,
}

fn payments(body: CopyBody<'_>, original: &Text) -> Vec<String> {
    let of_checks = |body: &[u8]| -> Vec<String> {
        let checks = check_message::parse(body).unwrap().into_iter();
        checks.map(|check| check.map_or_else(|bad| bad.json, |check| check.payment_id.to_string())).collect()
    };
    match body {
        CopyBody::Original => vec![String::from_utf8_lossy(&original.0).into_owned()],
        CopyBody::Checks(body) => of_checks(body),
        CopyBody::Points(body) => {
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            vec![body["paymentId"].as_str().unwrap().to_owned()]
        }
    }
}

#[async_trait]
impl Deliveries for Queue {
    type Message = Text;

    async fn forward(&self, copies: &[Forward<'_, Text>], _: &Heartbeat) -> Result<Confirmed, Outage> {
        assert_eq!(*self.settled.lock().unwrap(), 0, "no message is settled before its copies are confirmed");
        let mut refuses = self.refuses.lock().unwrap();
        let confirmed = copies.iter().map(|copy| {
            let refusal = refuses.iter_mut().find(|(to, left)| *to == copy.to && *left > 0);
            if let Some((_, left)) = refusal {
                *left -= 1;
                self.stops.lock().unwrap().cancel();
                return Err("full".to_owned());
            }
            self.copies.lock().unwrap().push((payments(copy.body, copy.message), copy.to));
            Ok(())
        });
        Ok(confirmed.collect())
    }

    async fn schedule(&self, checks: &[FirstChecks], _: &Heartbeat) -> Result<Confirmed, Outage> {
        let none = Text(Vec::new(), 0);
        let copies = checks.iter().map(|it| (payments(CopyBody::Checks(&it.body), &none), Destination::Check(it.wait)));
        self.copies.lock().unwrap().extend(copies);
        Ok(checks.iter().map(|_| Ok(())).collect())
    }

    async fn settle(&self, done: Vec<Text>) {
        *self.settled.lock().unwrap() += u32::try_from(done.len()).unwrap();
    }
}

struct World {
    source: Arc<Table>,
    ledger: Arc<Memory>,
    queue: Queue,
    pipeline: CheckPipeline,
}

fn world(brake_after: u32) -> World {
    let source = Arc::new(Table::default());
    let ledger = Arc::new(Memory { source: Arc::clone(&source), ..Memory::default() });
    let delay = |text| Delay::parse(text).unwrap();
    let pipeline = CheckPipeline {
        component: Component::Checks,
        sources: Arc::from([]),
        format: Format {
            paths: FieldPaths::default(),
            max_body_bytes: 1000,
            max_points: 100,
            payment_ids: IdRule::Any,
        },
        source: Arc::clone(&source) as Arc<dyn PaymentSource>,
        ledger: Arc::clone(&ledger) as Arc<dyn CheckLedger>,
        locked: Arc::default(),
        policy: CheckPolicy::new(delay("1s"), vec![delay("2s")], OnUnpaid::Reverse),
        limits: Limits { entries: 100, bytes: 65_536 },
        immediate_attempts: 2,
        retry: RetryPolicy::new(vec![delay("5s")]),
        brake: SharedBrake::new(brake_after),
        answered: AtomicBool::default(),
        former: Mutex::default(),
    };
    World { source, ledger, queue: Queue::default(), pipeline }
}

/// Returns a world whose pipeline processes the queue of a source with notifications of this kind.
fn arrivals(kind: NotificationKind) -> World {
    let world = world(100);
    let policy = world.pipeline.policy.clone();
    let trade = NotificationSource { name: "trade".into(), format: NotificationFormat::PaymentId, kind, policy };
    World {
        pipeline: CheckPipeline { component: Component::Source("trade"), sources: [trade].into(), ..world.pipeline },
        ..world
    }
}

fn message(payments: &[&str], done: u32) -> Text {
    let mut writer = Writer::new(Limits { entries: 1000, bytes: usize::MAX });
    for id in payments {
        let claim = Claim { user_id: UserId::new("u").unwrap(), points: Points::new(1, 1).unwrap() };
        writer.push(&ScheduledCheck { payment_id: PaymentId::new(id).unwrap(), about: About::Claim(claim) });
    }
    Text(writer.finish().remove(0), done)
}

impl World {
    /// Processes a check message with these payments after `done` checks.
    async fn process(&self, payments: &[&str], done: u32) -> Result<(), Interrupted<Text>> {
        self.process_all(vec![message(payments, done)]).await
    }

    async fn process_all(&self, batch: Vec<Text>) -> Result<(), Interrupted<Text>> {
        self.process_until(batch, &CancellationToken::new()).await
    }

    async fn process_until(&self, batch: Vec<Text>, stop: &CancellationToken) -> Result<(), Interrupted<Text>> {
        let heartbeat = Heartbeats::default().begin("test", Duration::from_secs(60));
        *self.queue.settled.lock().unwrap() = 0;
        self.pipeline.process(&self.queue, batch, &BatchContext { heartbeat: &heartbeat, stop }).await
    }

    fn copies(&self) -> Vec<Copied> {
        let mut copies = self.queue.copies.lock().unwrap().clone();
        copies.sort_by_key(|(_, to)| *to);
        copies
    }

    fn settled(&self) -> u32 {
        *self.queue.settled.lock().unwrap()
    }

    fn state(&self, payment: &str) -> Option<LedgerState> {
        self.ledger.rows.lock().unwrap().get(payment).copied()
    }

    fn wait(&self, done: u32) -> Destination {
        Destination::Check(self.pipeline.policy.attempt(done).next())
    }
}

fn copy(payments: &[&str], to: Destination) -> Copied {
    (payments.iter().map(|id| (*id).to_owned()).collect(), to)
}

#[tokio::test(start_paused = true)]
async fn every_check_of_a_message_has_its_own_outcome_and_what_goes_on_together_stays_together() {
    let world = world(100);
    let retry = world.pipeline.retry.next(0).unwrap();
    world
        .process(
            &["paid-1", "pending-1", "closed-1", "unrecognised-1", "failed-1", "other-1", "Paid-2", "pending-2"],
            0,
        )
        .await
        .unwrap();
    // The failed payment was looked up once more, alone.
    assert_eq!(*world.source.asked.lock().unwrap(), [8, 1]);
    // A status that is not final does not change the ledger.
    assert_eq!(*world.ledger.batches.lock().unwrap(), [["Paid-2", "closed-1", "paid-1"]]);
    assert_eq!(
        world.copies(),
        [
            copy(&["failed-1"], Destination::Retry(retry)),
            copy(&["pending-1", "unrecognised-1", "pending-2"], world.wait(0)),
            copy(&["other-1"], Destination::Dead(Reason::Conflict)),
        ]
    );
    assert_eq!(world.settled(), 1);
    assert_eq!(world.state("Paid-2"), Some(LedgerState::Reversed), "another spelling");
}

#[tokio::test(start_paused = true)]
async fn a_credit_on_arrival_is_confirmed_at_once_or_by_a_check() {
    let world = arrivals(NotificationKind::StatusChanged);
    let batch = ["closes-absent", "once-absent", "stays-absent"].map(|id| Text(id.into(), 0)).into();
    world.process_all(batch).await.unwrap();
    assert_eq!(world.state("closes-absent"), Some(LedgerState::Reversed), "it was closed in the meantime");
    assert_eq!(world.state("stays-absent"), Some(LedgerState::Verified));
    // A check confirms the payment whose second look-up had no answer.
    let confirming = world.pipeline.policy.arrival().confirming_paid().unwrap();
    assert_eq!(world.copies(), [copy(&["once-absent"], Destination::Check(confirming))]);
    assert_eq!(world.settled(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_credit_on_arrival_keeps_its_check_when_it_cannot_be_reversed() {
    let world = arrivals(NotificationKind::StatusChanged);
    world.ledger.is_down_later.store(true, Ordering::Relaxed);
    let interrupted = world.process_all(vec![Text("closes-absent".into(), 0)]).await.unwrap_err();
    assert!(interrupted.unsettled.is_empty());
    assert_eq!(world.state("closes-absent"), Some(LedgerState::Verified));
    let confirming = world.pipeline.policy.arrival().confirming_paid().unwrap();
    assert_eq!(world.copies(), [copy(&["closes-absent"], Destination::Check(confirming))]);
}

#[tokio::test(start_paused = true)]
async fn a_notification_that_says_paid_of_a_closed_payment_is_parked_and_its_credit_is_reversed() {
    let world = arrivals(NotificationKind::Paid);
    world.process_all(vec![Text("closed-1".into(), 0), Text("closed-absent".into(), 0)]).await.unwrap();
    assert_eq!(world.state("closed-1"), Some(LedgerState::Reversed));
    assert_eq!(world.state("closed-absent"), Some(LedgerState::Absent));
    let parked = |id| copy(&[id], Destination::Dead(Reason::Conflict));
    assert_eq!(world.copies(), [parked("closed-1"), parked("closed-absent")]);
}

#[tokio::test(start_paused = true)]
async fn the_last_check_expires_parks_and_is_confirmed() {
    let world = world(100);
    world.process(&["pending-1", "unrecognised-1", "unknown-absent"], 1).await.unwrap();
    let last = Destination::Check(world.pipeline.policy.attempt(1).next());
    assert_eq!(
        world.copies(),
        [
            copy(&["pending-1", "unknown-absent"], last),
            copy(&["unrecognised-1"], Destination::Dead(Reason::Unrecognised)),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn entries_that_cannot_be_read_are_parked_alone_and_a_message_that_cannot_be_read_is_parked_whole() {
    let world = world(100);
    let bad = r#"{"payment_id": "", "user_id": "u", "points": 1}"#;
    let good = r#"{"payment_id": "pending-1", "user_id": "u", "points": 1}"#;
    let body = |checks: &str| Text(format!(r#"{{"version": 1, "checks": [{checks}]}}"#).into_bytes(), 0);
    world.process_all(vec![body(&format!("{bad}, {good}"))]).await.unwrap();
    let dead = Destination::Dead(Reason::Malformed);
    assert_eq!(world.copies(), [copy(&["pending-1"], world.wait(0)), copy(&[bad], dead)]);
    world.queue.copies.lock().unwrap().clear();
    let unknown = r#"{"version": 2, "checks": []}"#;
    world.process_all(vec![Text(unknown.into(), 0), body("")]).await.unwrap();
    let empty = r#"{"version": 1, "checks": []}"#;
    assert_eq!(world.copies(), [copy(&[unknown], dead), copy(&[empty], dead)]);
    assert_eq!(world.settled(), 2);
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_payment_are_looked_up_once_and_done_one_after_the_other() {
    let world = world(100);
    let batch = vec![message(&["closed-1", "paid-absent"], 0), message(&["closed-1", "paid-absent"], 1)];
    world.process_all(batch).await.unwrap();
    assert_eq!(*world.source.asked.lock().unwrap(), [2]);
    assert_eq!(*world.ledger.batches.lock().unwrap(), [["closed-1", "paid-absent"]]);
    // The check that credited the payment is confirmed by another check.
    let confirmation = Destination::Check(world.pipeline.policy.attempt(0).confirming_paid().unwrap());
    assert_eq!(world.copies(), [copy(&["paid-absent"], confirmation)]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_source_leaves_everything_undone() {
    let world = world(100);
    let left = world.process(&["paid-1", "down"], 0).await.unwrap_err();
    assert_eq!((left.outage, left.unsettled.len()), (Some(down()), 1));
    assert!(world.copies().is_empty() && world.ledger.batches.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_the_ledger_refuses_costs_the_others_nothing() {
    let world = world(100);
    world.process(&["paid-1", "closed-refused", "paid-2"], 0).await.unwrap();
    assert_eq!(world.copies(), [copy(&["closed-refused"], Destination::Dead(Reason::Rejected))]);
    assert_eq!(
        (world.state("paid-1"), world.state("paid-2")),
        (Some(LedgerState::Verified), Some(LedgerState::Verified))
    );
}

#[tokio::test(start_paused = true)]
async fn before_a_further_attempt_the_source_is_asked_again() {
    let world = world(100);
    // The commit waits for a row; in the meantime the payment is closed, and its notification reverses the credit.
    world.ledger.rows.lock().unwrap().insert("paid-1".into(), LedgerState::Reversed);
    world.ledger.fails.lock().unwrap().push(("paid-1".into(), PaymentStatus::Closed));
    world.process(&["paid-1"], 0).await.unwrap();
    assert_eq!(world.state("paid-1"), Some(LedgerState::Reversed), "the old resolution would have reinstated it");
    assert!(world.source.asked.lock().unwrap().len() >= 2);
    assert_eq!((world.copies(), world.settled()), (Vec::new(), 1));
}

#[tokio::test(start_paused = true)]
async fn what_there_was_no_time_for_goes_to_the_end_of_the_queue_and_a_message_without_any_outcome_goes_back() {
    let world = world(100);
    let batch = vec![message(&["paid-1", "late-1", "pending-1"], 1), message(&["late-2", "late-3"], 0)];
    let left = world.process_all(batch).await.unwrap_err();
    assert_eq!((left.outage, left.unsettled.len()), (None, 1));
    let last = Destination::Check(world.pipeline.policy.attempt(1).next());
    assert_eq!(world.copies(), [copy(&["pending-1"], last), copy(&["late-1"], Destination::CheckQueue)]);
    assert_eq!(world.settled(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_confirmed_in_part_is_kept_and_only_the_rest_is_tried_again() {
    let world = world(100);
    let retry = Destination::Retry(world.pipeline.retry.next(0).unwrap());
    world.queue.refuses.lock().unwrap().push((retry, 3));
    world.process(&["failed-1", "pending-1"], 0).await.unwrap();
    assert_eq!(world.copies(), [copy(&["failed-1"], retry), copy(&["pending-1"], world.wait(0))]);
    assert_eq!(world.settled(), 1);
}

#[tokio::test(start_paused = true)]
async fn on_the_way_out_what_is_not_confirmed_goes_to_the_end_of_the_check_queue() {
    let world = world(100);
    let dead = Destination::Dead(Reason::Conflict);
    world.queue.refuses.lock().unwrap().push((dead, u32::MAX));
    let stop = world.queue.stops.lock().unwrap().clone();
    world.process_until(vec![message(&["other-1", "pending-1"], 0)], &stop).await.unwrap();
    assert_eq!(world.copies(), [copy(&["pending-1"], world.wait(0)), copy(&["other-1"], Destination::CheckQueue)]);
    assert_eq!(world.settled(), 1, "no copy is published twice");
}

#[tokio::test(start_paused = true)]
async fn a_message_of_which_no_copy_is_confirmed_goes_back_whole() {
    let world = world(100);
    world.queue.refuses.lock().unwrap().push((world.wait(0), 1));
    let batch = vec![message(&["pending-1", "pending-2"], 0), message(&["failed-1"], 0)];
    let left = world.process_all(batch).await.unwrap_err();
    assert_eq!((left.outage.unwrap().dependency, left.unsettled.len()), (Dependency::Broker, 1));
    assert_eq!((world.copies().len(), world.settled()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_brake_stops_in_the_middle_of_a_message_which_goes_back_whole() {
    let world = world(3);
    let payments = ["closed-0", "closed-1", "paid-1", "closed-2", "closed-3", "closed-4", "closed-5", "pending-1"];
    let left = world.process(&payments, 0).await.unwrap_err();
    assert!(left.outage.unwrap().reason.contains("the brake: 3 reversals in a row"));
    assert_eq!((left.unsettled.len(), world.copies().len(), world.settled()), (1, 0, 0));
    let reversed = world.ledger.rows.lock().unwrap().values().filter(|state| **state == LedgerState::Reversed).count();
    assert_eq!(reversed, 5, "two, a paid one, and three more");
    let left = world.process(&["closed-9", "paid-9", "pending-9"], 0).await.unwrap_err();
    assert_eq!(left.unsettled.len(), 1, "no further credit is reversed or verified");
    assert_eq!((world.state("closed-9"), world.state("paid-9")), (None, None));

    assert!(world.pipeline.brake.release());
    world.pipeline.brake.until_released().await;
    world.process(&payments, 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_reversed_already_does_not_count_for_the_brake() {
    let world = world(2);
    world.process(&["closed-1"], 0).await.unwrap();
    for _ in 0..5 {
        world.process(&["closed-1", "closed-1"], 0).await.unwrap();
    }
    assert!(world.process(&["closed-2"], 0).await.unwrap_err().unsettled.is_empty());
    assert!(world.pipeline.brake.engaged().is_some());
}
