use super::*;
use crate::pipeline::ports::{Dependency, RowStatus};
use crate::{
    domain::{
        check::{CheckStep, LedgerState},
        retry::Delay,
        settlement::Destination,
        shape::Shape,
        status::PaymentStatus,
    },
    observe::pulse::Pulses,
};
use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// A body, and the checks that are done.
#[derive(Debug)]
struct Text(String, u32);

impl Message for Text {
    fn body(&self) -> &[u8] {
        self.0.as_bytes()
    }
    fn sent_at(&self) -> Option<SystemTime> {
        None
    }
    fn retries_taken(&self) -> u32 {
        0
    }
    fn checks_done(&self) -> u32 {
        self.1
    }
    fn label(&self) -> String {
        String::new()
    }
}

fn down() -> Outage {
    Outage { dependency: Dependency::PayStatus, reason: "down".into() }
}

/// Logic only: a source that answers by the payment's id, `STATUS-anything`.
#[derive(Default)]
struct Table {
    asked: Mutex<Vec<usize>>,
    set: Mutex<Vec<(String, RowStatus)>>,
}

#[async_trait]
impl PaymentSource for Table {
    async fn look_up(&self, payments: Arc<[PaymentId]>) -> Result<Vec<Lookup>, BatchError> {
        self.asked.lock().unwrap().push(payments.len());
        if payments.iter().any(|id| id.as_str() == "down") {
            return Err(down().into());
        }
        let answer = |id: &PaymentId| match id.as_str().split('-').next() {
            Some("failed") => Lookup::Failed("garbage".into()),
            Some("other") => {
                Lookup::Known(Payment { user: Some("somebody".into()), ..Payment::new(PaymentStatus::Paid) })
            }
            word => {
                let status = PaymentStatus::ALL.into_iter().find(|status| Some(status.label()) == word);
                Lookup::Known(Payment::new(status.unwrap_or(PaymentStatus::Unknown)))
            }
        };
        Ok(payments.iter().map(answer).collect())
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
    fn most(&self) -> usize {
        100
    }
    fn longest(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// A ledger in memory, in which everything was credited unless it was not: `…-absent`.
#[derive(Default)]
struct Memory {
    rows: Mutex<HashMap<String, LedgerState>>,
    batches: Mutex<Vec<Vec<String>>>,
}

#[async_trait]
impl CheckLedger for Memory {
    async fn check(&self, batch: Arc<[Check]>, on_unpaid: OnUnpaid) -> Result<Vec<Checked>, BatchError> {
        let ids: Vec<String> = batch.iter().map(|check| check.payment_id.to_string()).collect();
        assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]), "in order, each once: {ids:?}");
        if ids.iter().any(|id| id.ends_with("refused")) {
            return Err(BatchError::Refused("never".into()));
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

#[derive(Default)]
struct Queue {
    settled: Mutex<Vec<(String, &'static str)>>,
    steps: Mutex<Vec<CheckStep>>,
    copies: Mutex<Vec<(String, Destination)>>,
}

#[async_trait]
impl Deliveries<CheckOutcome> for Queue {
    type Message = Text;

    async fn forward(&self, copies: &[Forward<'_, Text>]) -> Result<(), Outage> {
        let of = |copy: &Forward<'_, Text>| (copy.payment_id.unwrap().to_string(), copy.to);
        let settled = self.settled.lock().unwrap();
        let early = |copy: &Forward<'_, Text>| settled.iter().any(|(payment, _)| *payment == of(copy).0);
        assert!(!copies.iter().any(early), "nothing is settled before its copy is confirmed");
        self.copies.lock().unwrap().extend(copies.iter().map(of));
        Ok(())
    }

    async fn settle(&self, done: Vec<Decided<Text, CheckOutcome>>) {
        for Decided { payment_id, outcome, .. } in done {
            if let CheckOutcome::Checked { step, .. } = outcome {
                self.steps.lock().unwrap().push(step);
            }
            let payment = payment_id.map_or_else(String::new, |id| id.to_string());
            self.settled.lock().unwrap().push((payment, outcome.label()));
        }
    }
}

struct World {
    source: Arc<Table>,
    ledger: Arc<Memory>,
    queue: Queue,
    pipeline: CheckPipeline,
}

fn world(brake_after: u32) -> World {
    let (source, ledger) = (Arc::new(Table::default()), Arc::new(Memory::default()));
    let delay = |text| Delay::parse(text).unwrap();
    let pipeline = CheckPipeline {
        part: Part::Checks,
        sources: Arc::from([]),
        format: Format { shape: Shape::default(), max_body_bytes: 1000, max_points: 100 },
        source: Arc::clone(&source) as Arc<dyn PaymentSource>,
        ledger: Arc::clone(&ledger) as Arc<dyn CheckLedger>,
        policy: CheckPolicy::new(delay("1s"), vec![delay("2s")], OnUnpaid::Reverse),
        immediate_attempts: 2,
        retry: RetryPolicy::new(vec![delay("5s")]),
        brake: SharedBrake::new(brake_after),
        answered: AtomicBool::default(),
        former: Mutex::default(),
    };
    World { source, ledger, queue: Queue::default(), pipeline }
}

impl World {
    /// Each of these payments, after so many checks.
    async fn process(&self, payments: &[(&str, u32)]) -> Result<(), Interrupted<Text>> {
        let body = |id: &str| format!(r#"{{"paymentId":"{id}","userId":"u","integral":1}}"#);
        let batch = payments.iter().map(|(id, done)| Text(body(id), *done)).collect();
        let (pulse, stop) = (Pulses::default().begin("test", Duration::from_secs(60)), CancellationToken::new());
        self.pipeline.process(&self.queue, batch, &Turn { pulse: &pulse, stop: &stop }).await
    }

    fn settled(&self) -> Vec<(String, &'static str)> {
        let mut settled = self.queue.settled.lock().unwrap().clone();
        settled.sort();
        settled
    }
}

fn pairs(expected: &[(&str, &'static str)]) -> Vec<(String, &'static str)> {
    expected.iter().map(|(id, label)| ((*id).to_owned(), *label)).collect()
}

#[tokio::test(start_paused = true)]
async fn every_check_of_a_batch_has_its_own_outcome() {
    let world = world(100);
    let batch = [
        ("paid-1", 0),
        ("pending-1", 0),
        ("pending-2", 1),
        ("closed-1", 0),
        ("unrecognised-1", 1),
        ("failed-1", 0),
        ("other-1", 0),
    ];
    world.process(&batch).await.unwrap();
    let expected = [
        ("closed-1", "checked"),
        ("failed-1", "retry"),
        ("other-1", "conflict"),
        ("paid-1", "checked"),
        ("pending-1", "checked"),
        ("pending-2", "checked"),
        ("unrecognised-1", "unrecognised"),
    ];
    assert_eq!(world.settled(), pairs(&expected));
    // What failed was tried once more, alone.
    assert_eq!(*world.source.asked.lock().unwrap(), [7, 1]);
    // What is not certain does not touch the ledger.
    assert_eq!(*world.ledger.batches.lock().unwrap(), [["closed-1", "paid-1", "pending-2"]]);
    let copies = world.queue.copies.lock().unwrap();
    let of = |id: &str| copies.iter().find(|(payment, _)| payment == id).map(|(_, to)| *to);
    let turn = |done| Some(Destination::Check(world.pipeline.policy.turn(done).next));
    assert_eq!((of("pending-1"), of("pending-2")), (turn(0), turn(1)), "the second is expired, and confirmed");
    assert_eq!(of("unrecognised-1"), Some(Destination::Dead(Reason::Unrecognised)));
    assert_eq!((of("paid-1"), of("closed-1")), (None, None));
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_payment_are_looked_up_once_and_done_one_after_the_other() {
    let world = world(100);
    world.process(&[("closed-1", 0), ("paid-absent", 0), ("closed-1", 0), ("paid-absent", 1)]).await.unwrap();
    assert_eq!(*world.source.asked.lock().unwrap(), [2]);
    assert_eq!(*world.ledger.batches.lock().unwrap(), [["closed-1", "paid-absent"]]);
    let steps = world.queue.steps.lock().unwrap().clone();
    assert_eq!(steps, [CheckStep::Reverse, CheckStep::LateCredit, CheckStep::None, CheckStep::Verify]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_source_leaves_everything_undone() {
    let world = world(100);
    let left = world.process(&[("paid-1", 0), ("down", 0)]).await.unwrap_err();
    assert_eq!((left.outage, left.unsettled.len()), (Some(down()), 2));
    assert!(world.settled().is_empty() && world.ledger.batches.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_the_ledger_refuses_costs_the_others_nothing() {
    let world = world(100);
    world.process(&[("paid-1", 0), ("closed-refused", 0), ("paid-2", 0)]).await.unwrap();
    let expected = [("closed-refused", "rejected"), ("paid-1", "checked"), ("paid-2", "checked")];
    assert_eq!(world.settled(), pairs(&expected));
}

#[tokio::test(start_paused = true)]
async fn the_brake_stops_in_the_middle_of_a_batch_and_gives_back_the_rest() {
    let world = world(3);
    let closed: Vec<String> = (0..5).map(|n| format!("closed-{n}")).collect();
    let mut batch: Vec<(&str, u32)> = closed.iter().map(|id| (id.as_str(), 0)).collect();
    // A paid one before the third begins the count anew; what is not certain goes on beside it.
    batch.insert(2, ("paid-1", 0));
    batch.push(("pending-1", 0));
    let left = world.process(&batch).await.unwrap_err();
    assert!(left.outage.unwrap().reason.contains("the brake: 3 reversals in a row"));
    assert_eq!(left.unsettled.len(), 0, "two, a paid one, and three more");
    assert_eq!(world.settled().len(), 7);
    let left = world.process(&[("closed-9", 0), ("paid-9", 0), ("pending-9", 0)]).await.unwrap_err();
    assert_eq!(left.unsettled.len(), 2, "nothing is reversed or verified any more");

    assert!(world.pipeline.brake.release());
    world.pipeline.brake.until_released().await;
    world.process(&[("closed-9", 0), ("paid-9", 0)]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_reversed_already_does_not_count_for_the_brake() {
    let world = world(2);
    world.process(&[("closed-1", 0)]).await.unwrap();
    for _ in 0..5 {
        world.process(&[("closed-1", 0), ("closed-1", 0)]).await.unwrap();
    }
    assert!(world.process(&[("closed-2", 0)]).await.unwrap_err().unsettled.is_empty());
    assert!(world.pipeline.brake.engaged().is_some());
}
