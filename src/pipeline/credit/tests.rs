use super::*;
use crate::{
    domain::{
        check_message,
        check_schedule::CheckPolicy,
        credit::{RecordedCredit, Verdict},
        failure::{BatchError, Dependency, Outage},
        field_paths::FieldPaths,
        id_rule::IdRule,
        message::Format,
        retry::Delay,
    },
    observe::heartbeat::{Heartbeat, Heartbeats},
    pipeline::ports::{Confirmed, Forward, Patience},
};
use async_trait::async_trait;
use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// A message with this body.
#[derive(Debug, PartialEq)]
struct Text(String);

impl Message for Text {
    fn body(&self) -> &[u8] {
        self.0.as_bytes()
    }
    fn sent_at(&self) -> Option<SystemTime> {
        None
    }
    fn retries_taken(&self) -> u32 {
        TAKEN
    }
    fn label(&self) -> String {
        String::new()
    }
}

/// Number of delayed retries that each message has taken.
const TAKEN: u32 = 1;

/// A ledger in memory without a database, which fails as the payment ID requires.
#[derive(Default)]
struct Script {
    rows: Mutex<HashMap<String, RecordedCredit>>,
    calls: Mutex<Vec<usize>>,
    probe_fails: bool,
}

fn outage(dependency: Dependency) -> Outage {
    Outage { dependency, reason: "down".into() }
}

#[async_trait]
impl CreditLedger for Script {
    async fn credit(&self, batch: Arc<[Credit]>, _: Patience) -> Result<Vec<Verdict>, BatchError> {
        let calls = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(batch.len());
            calls.clone()
        };
        for credit in &*batch {
            match credit.payment_id.as_str() {
                "once" if calls.len() < 7 => return Err(BatchError::Transient("not for long".into())),
                "refused" => return Err(BatchError::Refused("permanent".into())),
                "transient" => return Err(BatchError::Transient("perhaps".into())),
                "down" => return Err(outage(Dependency::Ledger).into()),
                _ => {}
            }
        }
        let mut rows = self.rows.lock().unwrap();
        let verdict = |credit: &Credit| {
            let new =
                RecordedCredit { user_id: credit.user_id.to_string(), points: credit.points.get(), checked: false };
            if let Some(recorded) = rows.get(credit.payment_id.as_str()) {
                return Verdict::of_existing(credit, recorded);
            }
            rows.insert(credit.payment_id.to_string(), new);
            Verdict::Credited
        };
        Ok(batch.iter().map(verdict).collect())
    }

    async fn probe(&self) -> Result<(), Outage> {
        if self.probe_fails { Err(outage(Dependency::Ledger)) } else { Ok(()) }
    }
}

#[derive(Default)]
struct Queue {
    settled: Mutex<Vec<String>>,
    /// The label of each outcome, by body.
    outcomes: Mutex<HashMap<String, &'static str>>,
    parked: Mutex<Vec<String>>,
    scheduled: Mutex<Vec<Vec<String>>>,
    parking_fails: bool,
    /// Number of times that the last of several check messages is not confirmed.
    scheduling_fails: Mutex<u32>,
}

#[async_trait]
impl Deliveries for Queue {
    type Message = Text;

    async fn forward(&self, copies: &[Forward<'_, Text>], _: &Heartbeat) -> Result<Confirmed, Outage> {
        assert!(self.settled.lock().unwrap().is_empty(), "no message is settled before its copy is confirmed");
        if self.parking_fails {
            return Err(outage(Dependency::Broker));
        }
        self.parked.lock().unwrap().extend(
            copies.iter().map(|copy| format!("{}: {}", copy.message.0, copy.error.as_deref().unwrap_or_default())),
        );
        Ok(vec![Ok(()); copies.len()])
    }

    async fn schedule(&self, checks: &[FirstChecks], _: &Heartbeat) -> Result<Confirmed, Outage> {
        assert!(self.settled.lock().unwrap().is_empty(), "no message is settled before its check is scheduled");
        let mut confirmed: Confirmed = vec![Ok(()); checks.len()];
        let mut fails = self.scheduling_fails.lock().unwrap();
        if *fails > 0 {
            *fails -= 1;
            confirmed[checks.len() - 1] = Err("full".into());
        }
        for (FirstChecks { body, .. }, _) in checks.iter().zip(&confirmed).filter(|(_, confirmed)| confirmed.is_ok()) {
            let checks = check_message::parse(body).unwrap().into_iter();
            let payments = checks.map(|check| check.unwrap().payment_id.to_string()).collect();
            self.scheduled.lock().unwrap().push(payments);
        }
        Ok(confirmed)
    }

    async fn settle(&self, done: Vec<Text>) {
        self.settled.lock().unwrap().extend(done.into_iter().map(|message| message.0));
    }
}

fn body(payment: &str, user: &str) -> String {
    format!(r#"{{"paymentId":"{payment}","userId":"{user}","integral":1}}"#)
}

fn pipeline(ledger: &Arc<Script>, delays: &[&str]) -> CreditPipeline {
    CreditPipeline {
        component: Component::Credits,
        format: Format {
            paths: FieldPaths::default(),
            max_body_bytes: 1000,
            max_points: 100,
            payment_ids: IdRule::Any,
        },
        ledger: Arc::clone(ledger) as Arc<dyn CreditLedger>,
        locked: Arc::default(),
        immediate_attempts: 3,
        retry: RetryPolicy::new(delays.iter().filter_map(|delay| Delay::parse(delay)).collect()),
        checks: Some(CheckScheduling {
            wait: CheckPolicy::default().beginning(),
            limits: Limits { entries: 2, bytes: 65_536 },
        }),
    }
}

async fn process(ledger: Script, queue: &Queue, bodies: &[String]) -> (Result<(), Interrupted<Text>>, Vec<usize>) {
    process_with(ledger, queue, bodies, &["1s", "5s"]).await
}

async fn process_with(
    ledger: Script,
    queue: &Queue,
    bodies: &[String],
    delays: &[&str],
) -> (Result<(), Interrupted<Text>>, Vec<usize>) {
    let ledger = Arc::new(ledger);
    let pipeline = pipeline(&ledger, delays);
    let heartbeat = Heartbeats::default().begin("test", Duration::from_secs(60));
    let batch = bodies.iter().cloned().map(Text).collect();
    let stop = CancellationToken::new();
    let context = BatchContext { heartbeat: &heartbeat, stop: &stop };
    let committed = pipeline.commit(batch, &context).await;
    for Decided { message, outcome, .. } in &committed.decided {
        queue.outcomes.lock().unwrap().insert(message.0.clone(), outcome.label());
    }
    let done = pipeline.finish(queue, committed, &context).await;
    let calls = ledger.calls.lock().unwrap().clone();
    (done, calls)
}

fn settled(queue: &Queue) -> Vec<(String, &'static str)> {
    let outcomes = queue.outcomes.lock().unwrap();
    let settled = queue.settled.lock().unwrap().clone().into_iter();
    let mut settled: Vec<_> = settled.map(|body| (body.clone(), outcomes[&body])).collect();
    settled.sort();
    settled
}

#[tokio::test]
async fn a_batch_is_split_until_the_message_that_fails_is_alone() {
    let mut bodies: Vec<String> = (0..7).map(|n| body(&format!("p{n}"), "u")).collect();
    bodies.insert(3, body("refused", "u"));
    // The first of two messages with the same ID is credited, even if they are in different parts.
    bodies.push(body("p0", "v"));
    bodies.push("garbage".into());
    let queue = Queue::default();
    let (done, calls) = process(Script::default(), &queue, &bodies).await;
    assert!(done.is_ok());
    assert_eq!(calls, [9, 4, 2, 2, 1, 1, 5], "the failing half is split in order, the other half runs whole");
    let of = |label: &str| settled(&queue).iter().filter(|(_, outcome)| *outcome == label).count();
    assert_eq!((of("credited"), of("rejected"), of("conflict"), of("malformed")), (7, 1, 1, 1));
    assert!(settled(&queue).contains(&(body("p0", "v"), "conflict")));
    assert_eq!(queue.parked.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_reason_that_may_pass_costs_no_other_message_anything() {
    let bodies = [body("a", "u"), body("transient", "u"), body("b", "u")];
    let queue = Queue::default();
    let (done, calls) = process(Script::default(), &queue, &bodies).await;
    assert!(done.is_ok(), "the other messages are not delayed");
    assert_eq!(
        calls,
        [3, 3, 3, 1, 2, 1, 1, 1, 1, 1],
        "three attempts at the whole batch, one at each part, three at the single message and one more"
    );
    let credited = |n: usize| (bodies[n].clone(), "credited");
    assert_eq!(settled(&queue), [credited(0), credited(2), (bodies[1].clone(), "retry")]);
    assert_eq!(
        *queue.parked.lock().unwrap(),
        [format!("{}: perhaps", bodies[1])],
        "the copy waits and has the error text"
    );

    let queue = Queue::default();
    let (done, _) = process_with(Script::default(), &queue, &bodies, &["1s"]).await;
    assert!(done.is_ok());
    assert_eq!(settled(&queue), [credited(0), credited(2), (bodies[1].clone(), "exhausted")]);

    let queue = Queue::default();
    let (done, calls) = process(Script { probe_fails: true, ..Script::default() }, &queue, &bodies).await;
    let interrupted = done.unwrap_err();
    assert_eq!(interrupted.outage, Some(outage(Dependency::Ledger)));
    assert_eq!(interrupted.unsettled.len(), 3);
    assert_eq!(calls, [3, 3, 3], "not split: no message is to blame");
    assert!(settled(&queue).is_empty() && queue.parked.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_has_just_passed_is_charged_to_nobody() {
    // The message fails until the probe after its own attempts and then succeeds: the problem concerned all messages.
    let bodies = [body("a", "u"), body("once", "u")];
    let queue = Queue::default();
    let (done, calls) = process(Script::default(), &queue, &bodies).await;
    assert!(done.is_ok());
    assert_eq!(calls, [2, 2, 2, 1, 1, 1, 1]);
    assert!(settled(&queue).iter().all(|(_, outcome)| *outcome == "credited"), "{:?}", settled(&queue));
}

#[tokio::test]
async fn no_attempt_is_spent_on_the_way_out() {
    let ledger = Arc::new(Script::default());
    let heartbeat = Heartbeats::default().begin("test", Duration::from_secs(60));
    let stop = CancellationToken::new();
    stop.cancel();
    let queue = Queue::default();
    let batch = vec![Text(body("transient", "u"))];
    let done =
        pipeline(&ledger, &["1s"]).process(&queue, batch, &BatchContext { heartbeat: &heartbeat, stop: &stop }).await;
    let interrupted = done.unwrap_err();
    assert_eq!((interrupted.outage, interrupted.unsettled.len()), (None, 1));
    assert!(settled(&queue).is_empty());
}

#[tokio::test]
async fn splitting_stops_when_the_worker_is_told_to() {
    let bodies: Vec<String> = (0..6).map(|n| body(if n == 0 { "refused" } else { "p" }, "u")).collect();
    let ledger = Arc::new(Script::default());
    let pipeline = pipeline(&ledger, &["1s"]);
    let heartbeat = Heartbeats::default().begin("test", Duration::from_secs(60));
    let stop = CancellationToken::new();
    stop.cancel();
    let queue = Queue::default();
    let batch = bodies.into_iter().map(Text).collect();
    let done = pipeline.process(&queue, batch, &BatchContext { heartbeat: &heartbeat, stop: &stop }).await;
    let interrupted = done.unwrap_err();
    assert_eq!((interrupted.outage, interrupted.unsettled.len()), (None, 6));
    assert_eq!(*ledger.calls.lock().unwrap(), [6], "only the batch that was begun");
}

#[tokio::test]
async fn an_outage_gives_back_what_is_not_committed_and_settles_the_rest() {
    // Splitting commits the first half; then the ledger goes down.
    let bodies = [body("a", "u"), body("refused", "u"), body("down", "u"), body("b", "u"), "garbage".into()];
    let queue = Queue::default();
    let (done, _) = process(Script::default(), &queue, &bodies).await;
    let interrupted = done.unwrap_err();
    assert_eq!(interrupted.outage.unwrap().dependency, Dependency::Ledger);
    // `refused` fails first in the whole batch, so the batch is halved; the second half meets the outage.
    assert_eq!(interrupted.unsettled, [Text(bodies[2].clone()), Text(bodies[3].clone())]);
    assert_eq!(
        settled(&queue),
        [("garbage".to_owned(), "malformed"), (bodies[0].clone(), "credited"), (bodies[1].clone(), "rejected"),]
    );
}

#[tokio::test]
async fn what_cannot_be_parked_is_given_back_and_the_rest_is_settled() {
    let bodies = [body("a", "u"), "garbage".into(), body("a", "v"), body("b", "u")];
    let queue = Queue { parking_fails: true, ..Queue::default() };
    let (done, _) = process(Script::default(), &queue, &bodies).await;
    let interrupted = done.unwrap_err();
    assert_eq!(interrupted.outage.unwrap().dependency, Dependency::Broker);
    let mut unsettled: Vec<_> = interrupted.unsettled.into_iter().map(|text| text.0).collect();
    unsettled.sort();
    assert_eq!(unsettled, ["garbage".to_owned(), bodies[2].clone()]);
    assert_eq!(settled(&queue), [(bodies[0].clone(), "credited"), (bodies[3].clone(), "credited")]);
}

#[tokio::test]
async fn an_empty_batch_asks_nothing_of_the_ledger() {
    let queue = Queue::default();
    let (done, calls) = process(Script::default(), &queue, &["garbage".into()]).await;
    assert!(done.is_ok() && calls.is_empty());
    assert_eq!(settled(&queue).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_check_is_scheduled_for_what_may_count_once_a_payment_and_before_anything_is_settled() {
    // Credited, duplicate, conflict, rejected, retried, malformed, and two payments that the ledger already contains.
    let ledger = Script::default();
    let recorded = |checked| RecordedCredit { user_id: "u".into(), points: 1, checked };
    ledger.rows.lock().unwrap().insert("known".into(), recorded(false));
    ledger.rows.lock().unwrap().insert("verified".into(), recorded(true));
    let bodies = [
        body("a", "u"),
        body("a", "u"),
        body("a", "v"),
        body("refused", "u"),
        body("transient", "u"),
        "garbage".into(),
        body("known", "u"),
        body("verified", "u"),
    ];
    let queue = Queue::default();
    let (done, _) = process(ledger, &queue, &bodies).await;
    assert!(done.is_ok());
    assert_eq!(*queue.scheduled.lock().unwrap(), [vec!["a", "known"], vec!["refused"]]);
    assert_eq!(settled(&queue).len(), 8);

    let queue = Queue::default();
    let (done, _) = process_with(Script::default(), &queue, &[body("transient", "u")], &["1s"]).await;
    assert!(done.is_ok());
    assert_eq!(*queue.scheduled.lock().unwrap(), [["transient"]], "exhausted");
}

#[tokio::test(start_paused = true)]
async fn check_messages_that_are_confirmed_in_part_are_not_sent_again_but_for_the_rest() {
    let bodies = [body("a", "u"), body("b", "u"), body("c", "u")];
    let queue = Queue { scheduling_fails: Mutex::new(3), ..Queue::default() };
    // The second of two check messages is not confirmed with the first, nor in two attempts alone; then it is.
    let (done, _) = process(Script::default(), &queue, &bodies).await;
    assert!(done.is_ok());
    assert_eq!(*queue.scheduled.lock().unwrap(), [vec!["a", "b"], vec!["c"]]);
    assert_eq!(settled(&queue).len(), 3);

    let queue = Queue { scheduling_fails: Mutex::new(1), ..Queue::default() };
    let (done, _) = process(Script::default(), &queue, &[body("a", "u"), "garbage".into()]).await;
    let interrupted = done.unwrap_err();
    assert_eq!(interrupted.outage.unwrap().dependency, Dependency::Broker);
    assert_eq!(
        (interrupted.unsettled.len(), settled(&queue).len()),
        (2, 0),
        "none is confirmed: all messages are requeued"
    );
}
