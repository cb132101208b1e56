//! What is shown: each scenario is a job, a figure of it, what that is compared with, and the goal.

use crate::{
    jobs::{Crediting, Job, Latency, Queue, Size},
    load::Kind,
    process::Run,
    servers::Ledger,
};

/// One figure of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    Rate,
    Median,
    NinetyNinth,
    CpuPerMillion,
    Peak,
}

impl Figure {
    pub fn of(self, run: &Run) -> f64 {
        match self {
            Self::Rate => run.rate,
            Self::Median => run.latency.map_or(f64::NAN, |(median, _)| median),
            Self::NinetyNinth => run.latency.map_or(f64::NAN, |(_, ninety_ninth)| ninety_ninth),
            Self::CpuPerMillion => run.cpu_per_million,
            Self::Peak => run.peak_mib,
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Rate => "messages/s",
            Self::Median | Self::NinetyNinth => "seconds",
            Self::CpuPerMillion => "processor seconds for a million messages",
            Self::Peak => "MiB",
        }
    }

    /// As a person reads it.
    pub fn show(self, figure: f64) -> String {
        match self {
            Self::Rate => format!("{figure:.0}/s"),
            Self::Median | Self::NinetyNinth => format!("{:.1} ms", figure * 1000.0),
            Self::CpuPerMillion => format!("{figure:.1} s"),
            Self::Peak => format!("{figure:.1} MiB"),
        }
    }
}

/// What a figure is divided by.
#[derive(Debug, Clone)]
pub enum Against {
    Nothing,
    /// The same figure of another job.
    Job(&'static str, Job),
    /// The machine's limit for the whole job: broker, database and daemon share its cores, so the time for a message is the
    /// sum of the times of both. Of the insertions the fastest counts.
    Limit {
        drain: Job,
        inserts: Vec<Job>,
    },
    /// One job after another on the same cores: the times for a message add up.
    OneAfterTheOther(Job, Job),
}

/// What must be reached.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    None,
    /// Of the ratio.
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// Of the figure itself.
    AtMost(f64),
}

/// A line of the table.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub job: Job,
    pub figure: Figure,
    pub against: Against,
    pub goal: Goal,
}

impl Scenario {
    fn new(name: &'static str, job: Job, figure: Figure, against: Against, goal: Goal) -> Self {
        Self { name, job, figure, against, goal }
    }

    /// Everything that must be run for it.
    pub fn jobs(&self) -> Vec<Job> {
        let mut jobs = match &self.against {
            Against::Nothing => Vec::new(),
            Against::Job(_, job) => vec![*job],
            Against::Limit { drain, inserts } => [*drain].into_iter().chain(inserts.iter().copied()).collect(),
            Against::OneAfterTheOther(first, second) => vec![*first, *second],
        };
        jobs.push(self.job);
        jobs
    }
}

/// Writers that are tried for each limit of a database; SQLite takes one.
const CONNECTIONS: [u32; 3] = [1, 2, 3];

fn limit(queue: Queue, ledger: Ledger, kind: Kind) -> Against {
    let connections: &[u32] = if ledger == Ledger::Sqlite { &CONNECTIONS[..1] } else { &CONNECTIONS };
    let inserts = connections.iter().map(|connections| Job::Insert(ledger, kind, *connections)).collect();
    Against::Limit { drain: Job::Drain(queue), inserts }
}

/// All of them, in the order of the table.
#[expect(clippy::too_many_lines, reason = "a table")]
pub fn all() -> Vec<Scenario> {
    use Against::{Job as Other, Nothing};
    use Figure::{CpuPerMillion, Median, NinetyNinth, Peak, Rate};
    use Goal::{AtMost, RatioAtLeast, RatioAtMost};
    use Ledger::{Grown, Postgres, Sqlite};
    let clean = Crediting::CLEAN;
    let credit = Job::Credit;
    let of_clean = || Other("clean", credit(clean));
    let of_one_by_one = |job| Other("one-by-one", job);
    let on_sqlite = Crediting { ledger: Sqlite, ..clean };
    let classic = Crediting { queue: Queue::Classic, ..clean };
    let grown = Crediting { ledger: Grown, kind: Kind::RandomIds, ..clean };
    let queued = |size| Job::Credit(Crediting { size, ..clean });
    let latency = Job::Latency;
    let on = |kind| credit(Crediting { kind, ..clean });
    let postgres = |queue| limit(queue, Postgres, Kind::Clean);
    let s = Scenario::new;
    vec![
        s("drain: take and ack, quorum", Job::Drain(Queue::Quorum), Rate, Nothing, Goal::None),
        s("drain: take and ack, classic", Job::Drain(Queue::Classic), Rate, Nothing, Goal::None),
        s("insert: PostgreSQL, 1 connection", Job::Insert(Postgres, Kind::Clean, 1), Rate, Nothing, Goal::None),
        s("insert: PostgreSQL, 2 connections", Job::Insert(Postgres, Kind::Clean, 2), Rate, Nothing, Goal::None),
        s("insert: PostgreSQL, 3 connections", Job::Insert(Postgres, Kind::Clean, 3), Rate, Nothing, Goal::None),
        s("insert: SQLite", Job::Insert(Sqlite, Kind::Clean, 1), Rate, Nothing, Goal::None),
        s("one-by-one: PostgreSQL, quorum", Job::OneByOne, Rate, Nothing, Goal::None),
        s("PostgreSQL, quorum, clean", credit(clean), Rate, postgres(Queue::Quorum), RatioAtLeast(0.9)),
        s("PostgreSQL, quorum, clean", credit(clean), Rate, of_one_by_one(Job::OneByOne), RatioAtLeast(30.0)),
        s("PostgreSQL, classic, clean", credit(classic), Rate, postgres(Queue::Classic), RatioAtLeast(0.9)),
        s("PostgreSQL, classic, clean", credit(classic), Rate, of_one_by_one(Job::OneByOne), RatioAtLeast(30.0)),
        s(
            "SQLite, quorum, clean",
            credit(on_sqlite),
            Rate,
            limit(Queue::Quorum, Sqlite, Kind::Clean),
            RatioAtLeast(0.9),
        ),
        s("CPU of the daemon, PostgreSQL", credit(clean), CpuPerMillion, Nothing, AtMost(12.0)),
        s("half duplicates", on(Kind::HalfDuplicates), Rate, of_clean(), RatioAtLeast(0.9)),
        s("one in a hundred malformed", on(Kind::Malformed), Rate, of_clean(), RatioAtLeast(0.8)),
        s(
            "all credits to one user",
            on(Kind::OneUser),
            Rate,
            limit(Queue::Quorum, Postgres, Kind::OneUser),
            RatioAtLeast(0.9),
        ),
        s(
            "many credits present, random ids",
            credit(grown),
            Rate,
            limit(Queue::Quorum, Grown, Kind::RandomIds),
            RatioAtLeast(0.9),
        ),
        s("the same against an empty ledger", credit(grown), Rate, Other("empty", on(Kind::RandomIds)), Goal::None),
        s("two daemons", credit(Crediting { daemons: 2, ..clean }), Rate, of_clean(), Goal::None),
        s("events on, PostgreSQL", credit(Crediting { events: true, ..clean }), Rate, of_clean(), Goal::None),
        s(
            "events on, SQLite",
            credit(Crediting { events: true, ..on_sqlite }),
            Rate,
            Other("clean", credit(on_sqlite)),
            Goal::None,
        ),
        s("events published, PostgreSQL", Job::Published(Postgres), Rate, Nothing, Goal::None),
        s("events published, SQLite", Job::Published(Sqlite), Rate, Nothing, Goal::None),
        s("forwarding by the broker, at least once", Job::Forwarding, Rate, Nothing, Goal::None),
        s(
            "latency at 1000/s, median",
            latency(Latency::Daemon),
            Median,
            of_one_by_one(latency(Latency::OneByOne)),
            RatioAtMost(1.0),
        ),
        s(
            "latency at 1000/s, 99th percentile",
            latency(Latency::Daemon),
            NinetyNinth,
            of_one_by_one(latency(Latency::OneByOne)),
            RatioAtMost(1.0),
        ),
        s("start to first credit", Job::Start, Median, Nothing, AtMost(0.2)),
        s("peak memory, many queued", queued(Size::Many), Peak, Nothing, AtMost(40.0)),
        s(
            "peak memory, many queued",
            queued(Size::Many),
            Peak,
            Other("ten thousand", queued(Size::TenThousand)),
            Goal::None,
        ),
    ]
}

/// The same with checks on.
pub fn with_checks() -> Vec<Scenario> {
    use Against::{Job as Other, Nothing, OneAfterTheOther};
    use Figure::{CpuPerMillion, Median, NinetyNinth, Peak, Rate};
    use Goal::{AtMost, RatioAtLeast, RatioAtMost};
    use Ledger::{Postgres, Sqlite};
    let clean = Crediting::CLEAN;
    let credit = Job::Credit;
    let of_clean = || Other("clean", credit(clean));
    let latency = Job::Latency;
    let checked = Crediting { checks: true, ..clean };
    let compensated = Job::Compensated { other: false };
    let checks = |ledger, status| Job::Checks { ledger, status, other: false };
    let s = Scenario::new;
    vec![
        s("credits with checks on, before they begin", credit(checked), Rate, of_clean(), RatioAtLeast(0.85)),
        s(
            "credited and found paid",
            compensated,
            Rate,
            OneAfterTheOther(credit(clean), checks(Postgres, "paid")),
            RatioAtLeast(0.8),
        ),
        s("CPU of the daemon, credited and found paid", compensated, CpuPerMillion, Nothing, AtMost(15.0)),
        s("checks alone: paid, PostgreSQL", checks(Postgres, "paid"), Rate, Nothing, Goal::None),
        s(
            "checks alone: pending, PostgreSQL",
            checks(Postgres, "pending"),
            Rate,
            Other("paid", checks(Postgres, "paid")),
            RatioAtLeast(0.7),
        ),
        s("checks alone: paid, SQLite", checks(Sqlite, "paid"), Rate, Nothing, Goal::None),
        s(
            "latency at 1000/s with checks on, median",
            latency(Latency::WithChecks),
            Median,
            Other("checks off", latency(Latency::Daemon)),
            RatioAtMost(1.2),
        ),
        s(
            "latency at 1000/s with checks on, 99th percentile",
            latency(Latency::WithChecks),
            NinetyNinth,
            Other("checks off", latency(Latency::Daemon)),
            RatioAtMost(1.2),
        ),
        s(
            "peak memory with checks on, many queued",
            credit(Crediting { size: Size::Many, ..checked }),
            Peak,
            Nothing,
            AtMost(60.0),
        ),
    ]
}

/// What is compared with another program.
pub fn with_the_other() -> Vec<Scenario> {
    let clean = Crediting::CLEAN;
    let compare = |name, crediting, figure| {
        let other = Job::Credit(Crediting { other: true, ..crediting });
        Scenario::new(name, Job::Credit(crediting), figure, Against::Job("other", other), Goal::None)
    };
    let on_sqlite = Crediting { ledger: Ledger::Sqlite, ..clean };
    let checks = |status, other| Job::Checks { ledger: Ledger::Postgres, status, other };
    let checking = |name, status| {
        let other = Against::Job("other", checks(status, true));
        Scenario::new(name, checks(status, false), Figure::Rate, other, Goal::RatioAtLeast(1.0))
    };
    vec![
        Scenario::new(
            "this against other, credited and found paid",
            Job::Compensated { other: false },
            Figure::Rate,
            Against::Job("other", Job::Compensated { other: true }),
            Goal::RatioAtLeast(2.0),
        ),
        checking("this against other, checks alone: paid", "paid"),
        checking("this against other, checks alone: pending", "pending"),
        compare("this against other, PostgreSQL", clean, Figure::Rate),
        compare("this against other, PostgreSQL, CPU", clean, Figure::CpuPerMillion),
        compare("this against other, SQLite", on_sqlite, Figure::Rate),
        compare("this against other, SQLite, CPU", on_sqlite, Figure::CpuPerMillion),
    ]
}
