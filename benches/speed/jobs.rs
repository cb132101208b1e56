//! What is measured. A job is run once a round, all jobs in turn, so that whatever else the machine does meanwhile falls
//! upon all of them.

use crate::{
    clients::Client,
    load::{self, Kind, Load},
    process::{Run, run_client, total, watch},
    servers::{Ledger, Place, Servers},
    support::{amqp, daemon::Daemon, daemon::Setup},
};
use serde::Serialize;
use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant, SystemTime},
};
use tokio::runtime::Runtime;

/// A queue's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Queue {
    Quorum,
    Classic,
}

/// A daemon, or some of them, that credits what stands in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Crediting {
    pub ledger: Ledger,
    pub queue: Queue,
    pub kind: Kind,
    pub daemons: usize,
    pub events: bool,
    /// Checks are scheduled, and begin long after it is measured.
    pub checks: bool,
    pub size: Size,
    /// Not this program, but the one that it is compared with.
    pub other: bool,
}

impl Crediting {
    /// The scenario that the others differ from.
    pub const CLEAN: Self = Self {
        ledger: Ledger::Postgres,
        queue: Queue::Quorum,
        kind: Kind::Clean,
        daemons: 1,
        events: false,
        checks: false,
        size: Size::Usual,
        other: false,
    };
}

/// How many messages there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Size {
    Usual,
    /// For what is far slower.
    Few,
    /// For what must not grow with them.
    Many,
    /// To compare that with.
    TenThousand,
}

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Job {
    /// Taking and acknowledging: the broker's limit.
    Drain(Queue),
    /// Crediting from memory over so many connections: the database's limit.
    Insert(Ledger, Kind, u32),
    /// What the field usually runs.
    OneByOne,
    Credit(Crediting),
    /// Credits whose events are published and stand in a queue, from the start of the program.
    Published(Ledger),
    /// Every payment credited, and checked and found paid.
    Compensated {
        other: bool,
    },
    /// Checks of credits whose payments are paid, or pending still.
    Checks {
        ledger: Ledger,
        status: &'static str,
        other: bool,
    },
    /// What the broker's own forwarding from a delay queue takes.
    Forwarding,
    /// From publishing to commit, at [`PACE`] messages a second.
    Latency(Latency),
    /// From the start of the program to the first commit.
    Start,
}

/// Whose latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Latency {
    OneByOne,
    Daemon,
    /// The daemon with checks on, which begin long after it is measured.
    WithChecks,
}

impl Job {
    /// What takes long and comes out the same is run once.
    pub fn is_worth_repeating(self) -> bool {
        !matches!(self, Self::Credit(Crediting { size: Size::Many, .. }))
    }
}

/// Messages a second while latency is measured.
pub const PACE: u32 = 1000;

/// What the program does by default.
const PREFETCH: u16 = 2000;
const BATCH: usize = 500;

/// How many unacknowledged messages are usual where each is acknowledged on its own.
const PREFETCH_OF_ONE_BY_ONE: u16 = 250;

/// Runs jobs.
pub struct Bench {
    pub servers: Servers,
    pub runtime: Runtime,
    /// By [`Size`].
    pub sizes: [u64; 4],
    /// Settings that are tried, as environment variables.
    pub with: Vec<(String, String)>,
    /// Another program to compare with.
    pub other: Option<PathBuf>,
}

impl Bench {
    pub fn messages(&self, size: Size) -> u64 {
        self.sizes[size as usize]
    }

    /// Runs one, with payments that no run before had.
    pub fn run(&self, job: Job, number: u64) -> Run {
        let from = number * 10_000_000;
        let load = |kind, size| Load { kind, messages: self.messages(size), from };
        match job {
            Job::Drain(queue) => self.drain(queue, load(Kind::Clean, Size::Usual)),
            Job::Insert(ledger, kind, connections) => self.servers.with_ledger(ledger, |place| {
                let load = load(kind, Size::Usual);
                let client = Client::Insert { ledger: place.url.clone(), load, batch: BATCH, connections };
                run_client(&client, load.credits())
            }),
            Job::OneByOne => self.one_by_one(load(Kind::Clean, Size::Few)),
            Job::Credit(crediting) => self.credit(crediting, load(crediting.kind, crediting.size)),
            Job::Published(ledger) => self.published(ledger, load(Kind::Clean, Size::Usual)),
            Job::Compensated { other } => self.compensated(other, load(Kind::Clean, Size::Usual)),
            Job::Checks { ledger, status, other } => {
                self.checks((ledger, other), status, load(Kind::Clean, Size::Usual))
            }
            Job::Forwarding => self.forwarding(load(Kind::Clean, Size::Usual)),
            Job::Latency(whose) => self.latency(whose, load(Kind::Clean, Size::Few)),
            Job::Start => self.start(load(Kind::Clean, Size::Few)),
        }
    }

    fn publish(&self, exchange: &str, key: &str, load: Load) {
        self.runtime.block_on(load::publish(&self.servers.rabbit.url(), exchange, key, load.bodies()));
    }

    /// What the program is given to check: check messages, or for one that does not know those a points message each.
    fn publish_checks(&self, queue: &str, other: bool, load: Load) {
        if other {
            return self.publish("", queue, load);
        }
        let bodies = load::check_messages(load, BATCH);
        self.runtime.block_on(load::publish_checks(&self.servers.rabbit.url(), queue, bodies));
    }

    /// Where the other program is run, it makes the tables.
    fn migrate(&self, place: &Place, other: bool) {
        if let Some(program) = self.other.as_ref().filter(|_| other) {
            place.migrate_with(program);
        }
    }

    /// A configuration for a ledger, and its queues.
    fn setup(&self, place: &Place, queue: Queue, more: &str) -> Queues<'_> {
        let queue_type = match queue {
            Queue::Quorum => "quorum",
            Queue::Classic => "classic",
        };
        let more = format!("queue_type = {queue_type:?}\n{more}");
        let setup = Setup::new(&self.servers.rabbit.url(), &place.url, &more);
        assert!(setup.run(&["topology", "declare"]).status.success());
        Queues { setup, bench: self }
    }

    fn drain(&self, queue: Queue, load: Load) -> Run {
        self.servers.with_ledger(Ledger::Sqlite, |place| {
            let queues = self.setup(place, queue, "");
            self.publish(&queues.setup.exchange, &queues.setup.key, load);
            let queue = queues.setup.credit_queue.clone();
            let broker = self.servers.rabbit.url();
            let drain = Client::Drain { broker, queue, messages: load.messages, prefetch: PREFETCH, batch: BATCH };
            run_client(&drain, load.messages)
        })
    }

    fn one_by_one_client(&self, queues: &Queues<'_>, place: &Place, messages: u64) -> Client {
        Client::OneByOne {
            broker: self.servers.rabbit.url(),
            queue: queues.setup.credit_queue.clone(),
            ledger: place.url.clone(),
            messages,
            prefetch: PREFETCH_OF_ONE_BY_ONE,
        }
    }

    fn one_by_one(&self, load: Load) -> Run {
        self.servers.with_ledger(Ledger::Postgres, |place| {
            let queues = self.setup(place, Queue::Quorum, "");
            self.publish(&queues.setup.exchange, &queues.setup.key, load);
            run_client(&self.one_by_one_client(&queues, place, load.messages), load.messages)
        })
    }

    fn credit(&self, crediting: Crediting, load: Load) -> Run {
        self.servers.with_ledger(crediting.ledger, |place| {
            let exchange = crate::support::unique("bench-events");
            let checks = if crediting.checks { CHECKED_LATER } else { "" };
            let more = format!("[events]\nenabled = {}\nexchange = {exchange:?}\n{checks}", crediting.events);
            let queues = self.setup(place, crediting.queue, &more);
            let _heard = crediting.events.then(|| Heard::new(self, &exchange));
            self.migrate(place, crediting.other);
            self.publish(&queues.setup.exchange, &queues.setup.key, load);
            let start = || queues.start_this_or(crediting.other);
            let daemons: Vec<Daemon> = (0..crediting.daemons).map(|_| start()).collect();
            watch(&daemons, load.messages, |daemon| total(daemon, "pointsd_messages_total{", r#"queue="credit""#))
        })
    }

    fn published(&self, ledger: Ledger, load: Load) -> Run {
        self.servers.with_ledger(ledger, |place| {
            let exchange = crate::support::unique("bench-events");
            let queues =
                self.setup(place, Queue::Quorum, &format!("[events]\nenabled = true\nexchange = {exchange:?}\n"));
            let heard = Heard::new(self, &exchange);
            self.publish(&queues.setup.exchange, &queues.setup.key, load);
            let begun = Instant::now();
            let daemon = [queues.start()];
            wait_for("everything is published", || heard.client.ready(&heard.queue), load.messages);
            Run::of(&daemon, load.messages, begun.elapsed())
        })
    }

    fn compensated(&self, other: bool, load: Load) -> Run {
        self.servers.with_ledger(Ledger::Postgres, |place| {
            self.migrate(place, other);
            place.execute(&payments(load, "paid"));
            let queues = self.setup(place, Queue::Quorum, &format!("[compensation]\nfirst = {FIRST:?}\n{CHECKING}"));
            let daemon = [queues.start_this_or(other)];
            daemon[0].wait_ready();
            // What the broker forwards while it is still being published counts, and so does the time that takes.
            let begun = Instant::now();
            self.publish(&queues.setup.exchange, &queues.setup.key, load);
            watch(&daemon, load.messages, |daemon| {
                let credited = total(daemon, "pointsd_messages_total{", r#"queue="credit""#)?;
                Some(credited.min(total(daemon, "pointsd_messages_total{", r#"queue="check""#)?))
            });
            // The first check waits by itself.
            Run::of(&daemon, load.messages, begun.elapsed().checked_sub(Duration::from_secs(FIRST_SECONDS)).unwrap())
        })
    }

    fn checks(&self, (ledger, other): (Ledger, bool), status: &str, load: Load) -> Run {
        // The payments stand in PostgreSQL whatever the ledger is.
        self.servers.with_ledger(Ledger::Postgres, |source| {
            source.execute(&payments(load, status));
            self.servers.with_ledger(ledger, |place| {
                self.migrate(place, other);
                let insert = Client::Insert { ledger: place.url.clone(), load, batch: BATCH, connections: 1 };
                run_client(&insert, load.messages);
                let more =
                    format!("[compensation]\nfirst = \"1h\"\ndelays = [\"2h\"]\n{CHECKING}url = {:?}\n", source.url);
                let queues = self.setup(place, Queue::Quorum, &more);
                self.publish_checks(&queues.setup.check_queue, other, load);
                let daemon = [queues.start_this_or(other)];
                watch(&daemon, load.messages, |daemon| total(daemon, "pointsd_messages_total{", r#"queue="check""#))
            })
        })
    }

    /// From the first message that is forwarded to the last.
    fn forwarding(&self, load: Load) -> Run {
        self.servers.with_ledger(Ledger::Sqlite, |place| {
            let more = format!("[compensation]\nfirst = {FIRST:?}\n{CHECKING}url = \"postgres://127.0.0.1/nobody\"\n");
            let queues = self.setup(place, Queue::Quorum, &more);
            let client = amqp::Client::connect(&self.servers.rabbit.url());
            self.publish("", &queues.setup.check_delay_queue(FIRST), load);
            let forwarded = || client.ready(&queues.setup.check_queue);
            wait_for("it is forwarded", forwarded, 1);
            let (begun, before) = (Instant::now(), u64::from(forwarded().unwrap()));
            wait_for("everything is forwarded", forwarded, load.messages);
            Run::of(&[], load.messages - before, begun.elapsed())
        })
    }

    fn latency(&self, whose: Latency, load: Load) -> Run {
        self.servers.with_stamped_ledger(|place| {
            let checks = if whose == Latency::WithChecks { CHECKED_LATER } else { "" };
            let queues = self.setup(place, Queue::Quorum, checks);
            let (exchange, key) = (queues.setup.exchange.clone(), queues.setup.key.clone());
            let publish = || {
                let url = self.servers.rabbit.url();
                self.runtime.block_on(load::publish_paced(&url, &exchange, &key, load.bodies(), PACE))
            };
            let (run, sent) = if whose == Latency::OneByOne {
                let client = self.one_by_one_client(&queues, place, load.messages);
                let consuming = std::thread::spawn(move || run_client(&client, load.messages));
                // It must be there before the first message.
                std::thread::sleep(Duration::from_secs(1));
                let sent = publish();
                (consuming.join().unwrap(), sent)
            } else {
                let daemon = [queues.start()];
                daemon[0].wait_ready();
                let sent = publish();
                let credited = |daemon: &Daemon| total(daemon, "pointsd_messages_total{", r#"queue="credit""#);
                (watch(&daemon, load.messages, credited), sent)
            };
            let mut waits: Vec<f64> = sent
                .iter()
                .zip(place.commit_times())
                .map(|(sent, committed)| committed.duration_since(*sent).unwrap_or_default().as_secs_f64())
                .collect();
            waits.sort_by(f64::total_cmp);
            let latency = Some((waits[waits.len() / 2], waits[waits.len() * 99 / 100]));
            Run { rate: f64::from(PACE), latency, ..run }
        })
    }

    fn start(&self, load: Load) -> Run {
        self.servers.with_stamped_ledger(|place| {
            let queues = self.setup(place, Queue::Quorum, "");
            self.publish(&queues.setup.exchange, &queues.setup.key, load);
            let begun = SystemTime::now();
            let daemon = [queues.start()];
            let credited = |daemon: &Daemon| total(daemon, "pointsd_messages_total{", r#"queue="credit""#);
            let run = watch(&daemon, load.messages, credited);
            let first = place.commit_times().into_iter().min().unwrap();
            let took = first.duration_since(begun).unwrap().as_secs_f64();
            Run { latency: Some((took, took)), ..run }
        })
    }
}

/// The first check's delay: longer than it takes to publish, so that forwarding is seen from its beginning.
const FIRST: &str = "10s";
const FIRST_SECONDS: u64 = 10;

/// Waits until a queue has so many messages.
fn wait_for(what: &str, ready: impl Fn() -> Option<u32>, messages: u64) {
    let begun = Instant::now();
    while ready().is_none_or(|ready| u64::from(ready) < messages) {
        assert!(begun.elapsed() < Duration::from_secs(600), "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A queue that hears every event, and goes away with this.
struct Heard {
    client: amqp::Client,
    queue: String,
}

impl Heard {
    fn new(bench: &Bench, exchange: &str) -> Self {
        let client = amqp::Client::connect(&bench.servers.rabbit.url());
        let queue = crate::support::unique("bench-heard");
        client.declare_queue(&queue, &[]);
        client.bind(&queue, exchange, "#");
        Self { client, queue }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.client.delete_queue(&self.queue);
    }
}

/// A payment table in the database of the ledger, or in another one.
const CHECKING: &str = "[pay_status]\nsource = \"sql\"\n[pay_status.sql]\ntable = \"payments\"\nid_column = \"id\"\n\
                        status_column = \"status\"\npaid = [\"paid\"]\npending = [\"pending\"]\nclosed = [\"closed\"]\n";

/// Checks that are scheduled and do not begin while it is measured.
const CHECKED_LATER: &str = "[compensation]\nfirst = \"1h\"\ndelays = [\"2h\"]\n[pay_status]\nsource = \"sql\"\n\
    [pay_status.sql]\ntable = \"payments\"\nid_column = \"id\"\nstatus_column = \"status\"\npaid = [\"paid\"]\n\
    pending = [\"pending\"]\nclosed = [\"closed\"]\n";

/// SQL that makes such a table for the payments of a load.
fn payments(load: Load, status: &str) -> String {
    let (first, last) = (load.payment(0), load.payment(load.messages - 1));
    format!(
        "CREATE TABLE payments (id text PRIMARY KEY, status text NOT NULL);
         INSERT INTO payments SELECT n::text, '{status}' FROM generate_series({first}, {last}) AS n;
         ANALYZE payments"
    )
}

/// The queues of one job, which go away with this.
struct Queues<'a> {
    setup: Setup,
    bench: &'a Bench,
}

impl Queues<'_> {
    fn start_this_or(&self, other: bool) -> Daemon {
        if other { self.start_other() } else { self.start() }
    }

    fn start_other(&self) -> Daemon {
        let other = self.bench.other.as_ref().unwrap();
        self.setup.start_with(|command| {
            let mut instead = Command::new(other);
            instead.args(command.get_args());
            *command = instead;
        })
    }

    fn start(&self) -> Daemon {
        self.setup.start_with(|command| {
            command.envs(self.bench.with.iter().map(|(name, value)| (name, value)));
        })
    }
}

impl Drop for Queues<'_> {
    fn drop(&mut self) {
        let Setup { credit_queue, check_queue, dead_queue, .. } = &self.setup;
        let delays = [FIRST, "1m", "5m", "30m", "1h", "2h", "12h"].map(|delay| self.setup.check_delay_queue(delay));
        let queues = [credit_queue.clone(), check_queue.clone(), dead_queue.clone(), self.setup.never_used()];
        let mut client = amqp::Client::connect(&self.bench.servers.rabbit.url());
        for queue in queues.iter().chain(&delays) {
            // Deleting a queue that is still busy may fail within the broker (internal error), and ends the connection.
            if let Err(error) = client.try_delete_queue(queue) {
                eprintln!("{queue} stays: {error}");
                client = amqp::Client::connect(&self.bench.servers.rabbit.url());
            }
        }
    }
}
