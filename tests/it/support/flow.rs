//! A flow of payments with duplicates, and the account of what must come of it.

use super::{
    amqp::Client,
    daemon::{Daemon, Setup},
    eventually,
};
use lapin::BasicProperties;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Numbers that look random and are the same for every run of a seed (xorshift64*).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// Payments that were published.
pub struct Flow {
    dice: Dice,
    payments: Vec<(u64, u64)>,
    pub published: u64,
}

impl Flow {
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), payments: Vec::new(), published: 0 }
    }

    /// A random number from the flow's own dice.
    pub fn roll(&mut self, bound: u64) -> u64 {
        self.dice.below(bound)
    }

    /// The next bodies: new payments, and a tenth that repeats one of any age.
    pub fn bodies(&mut self, count: usize) -> Vec<(Vec<u8>, BasicProperties)> {
        let mut bodies = Vec::with_capacity(count);
        for _ in 0..count {
            let repeated = !self.payments.is_empty() && self.dice.below(10) == 0;
            let index = if repeated {
                usize::try_from(self.dice.below(self.payments.len() as u64)).unwrap()
            } else {
                self.payments.push((self.dice.below(50), 1 + self.dice.below(500)));
                self.payments.len() - 1
            };
            let (user, points) = self.payments[index];
            let body = format!(r#"{{"paymentId": {}, "userId": "u{user}", "integral": {points}}}"#, 1_000_000 + index);
            bodies.push((body.into_bytes(), BasicProperties::default().with_delivery_mode(2)));
        }
        self.published += count as u64;
        bodies
    }

    pub fn publish(&mut self, client: &Client, setup: &Setup, count: usize) {
        let bodies = self.bodies(count);
        client.publish(&setup.exchange, &setup.key, bodies);
    }

    /// Each payment credited once, balances equal to the sums, the invariants proven, nothing left and nothing parked.
    pub fn assert_credited_once(&self, client: &Client, setup: &Setup) {
        let mut balances: BTreeMap<u64, u64> = BTreeMap::new();
        for (user, points) in &self.payments {
            *balances.entry(*user).or_default() += points;
        }
        let report = setup.json(&["verify", "--json"]);
        assert_eq!(report["violations"], 0, "{report}");
        assert_eq!(report["credits"], self.payments.len());
        let total: u64 = balances.values().sum();
        assert_eq!(report["points"], total);
        // A sample: that all of them add up is in the report.
        for (user, points) in balances.iter().step_by(7) {
            assert_eq!(setup.json(&["balance", &format!("u{user}"), "--json"])["balance"], *points, "user u{user}");
        }
        assert_eq!(client.ready(&setup.credit_queue), Some(0), "the queue is empty");
        assert_eq!(client.ready(&setup.dead_queue), Some(0), "nothing was parked");
        assert_eq!(client.ready(&setup.never_used()).unwrap_or(0), 0, "no delayed retry was taken");
    }
}

/// Publishes at an even pace, in the background, until it is stopped: whatever strikes meanwhile strikes a daemon that
/// works.
pub struct Stream {
    thread: JoinHandle<Flow>,
    stop: Arc<AtomicBool>,
}

impl Stream {
    /// About 500 messages a second.
    pub fn begin(url: &str, setup: &Setup, mut flow: Flow) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, exchange, key) = (url.to_owned(), setup.exchange.clone(), setup.key.clone());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let client = Client::connect(&url);
            while !stopped.load(Ordering::Relaxed) {
                client.publish(&exchange, &key, flow.bodies(20));
                std::thread::sleep(Duration::from_millis(40));
            }
            flow
        });
        Self { thread, stop }
    }

    pub fn end(self) -> Flow {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Lets the daemon work until nothing is left in the credit queue, neither ready nor unacknowledged: whatever it had
/// not settled is back in the queue when it has stopped, and then it is started again.
pub fn work_off(client: &Client, setup: &Setup, daemon: Daemon) {
    let mut daemon = Some(daemon);
    eventually("the credit queue is worked off", || {
        let running = daemon.take().unwrap_or_else(|| setup.start());
        running.wait_ready();
        running.wait_for("nothing is ready", |_| client.ready(&setup.credit_queue)?.eq(&0).then_some(()));
        running.wait_for("nothing is in flight", |daemon| {
            daemon.metric(r#"pointsd_in_flight{queue="credit"}"#).eq(&0.0).then_some(())
        });
        running.stop();
        client.ready(&setup.credit_queue)?.eq(&0).then_some(())
    });
}
