//! The daemon: what is started in which order, what waits for what, and how it stops.

mod clock;
mod consume;
mod endpoints;
pub mod logging;
mod queue_consumer;
mod ready;
mod recovery;
mod relay;
mod session;
pub mod signals;
mod watchdog;
mod worker;

use crate::{
    broker::SourceKind,
    config::Settings,
    database::{DatabaseUrl, WithDeadline},
    domain::{check_outcome::CheckOutcome, component::Component, outcome::Outcome},
    ledger::{self, Access, Ledger, UnverifiedCount, WriterLock, settings::LedgerSettings},
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeats,
        metrics,
        status::Status,
    },
    pay_status,
    pipeline::{
        check::{CheckPipeline, brake::SharedBrake},
        credit::{CheckScheduling, CreditPipeline},
        locked_rows::LockedRows,
        ports::{CheckLedger, CreditLedger},
    },
};
use anyhow::Context as _;
use futures_util::future::join_all;
use queue_consumer::{Pipeline, QueueConsumer};
pub use ready::{NewerSchema, prepare, refuse_unless_current};
use signals::stop_on_signals;
use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the daemon's parts share.
struct App {
    settings: Settings,
    ledger: Arc<WithDeadline<dyn Ledger>>,
    status: Arc<Status>,
    heartbeats: Heartbeats,
    stop: CancellationToken,
    /// Those of the payment service, whichever queue asks it.
    limits: pay_status::Limits,
    /// The rows of the ledger that are known to be locked, whichever queue's messages need them.
    locked: Arc<LockedRows>,
}

/// Runs until a signal stops it. An error is one that waiting cannot cure.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    // Before anything else: without it the signal would end the process.
    let hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let metrics = metrics::install().context("the metrics recorder")?;
    let status = Arc::new(Status::default());
    let listen = settings.http.listen;
    let endpoints = endpoints::Endpoints { metrics, status: Arc::clone(&status) };
    // First of all: from here on a person can see what the daemon waits for.
    let bound = endpoints::serve(listen, endpoints).await.with_context(|| format!("http.listen = \"{listen}\""))?;
    let mut lock = writer_lock(&settings.ledger.url)?;
    let (ledger, checks) = (settings.ledger.url.describe(), settings.pay_status.is_some());
    events::Started { checks, ledger: &ledger, http: &bound.to_string() }.emit();

    let stop = stop_on_signals(|signal| events::Stopping { signal }.emit())?;
    let ledger = open(&settings, settings.ledger.pool_size);
    let heartbeats = Heartbeats::default();
    watchdog::start(heartbeats.clone());
    let shutdown_timeout = settings.shutdown_timeout;
    let limits = pay_status::Limits::default();
    let (status_of_app, locked) = (Arc::clone(&status), Arc::default());
    let app = App { settings, ledger, status: status_of_app, heartbeats, stop: stop.clone(), limits, locked };

    let overdue = async {
        stop.cancelled().await;
        status.stopping();
        tokio::time::sleep(shutdown_timeout).await;
    };
    let in_time = tokio::select! {
        // Checked first: a daemon that has done its work in time is not late.
        biased;
        done = app.work(hangup, &mut lock) => { done?; true }
        () = overdue => false,
    };
    events::Stopped { in_time }.emit();
    if !in_time {
        // Not even closing a database's file, which may hang, holds up the exit.
        std::process::exit(0);
    }
    Ok(())
}

/// A ledger with connections of its own: what goes wrong for one user of them must not cost the others theirs.
fn open(settings: &Settings, pool_size: u32) -> Arc<WithDeadline<dyn Ledger>> {
    let LedgerSettings { url, timeout, .. } = settings.ledger.clone();
    let events = settings.events.exchange.clone();
    let options = ledger::Options { pool_size, timeout, access: Access::Write, events };
    Arc::new(WithDeadline::new(move || -> Arc<dyn Ledger> { ledger::open(&url, &options) }, timeout))
}

/// A SQLite ledger takes one writing program at a time.
pub fn writer_lock(url: &DatabaseUrl) -> anyhow::Result<Option<WriterLock>> {
    match url {
        DatabaseUrl::Sqlite(file) => Ok(Some(WriterLock::take(file)?)),
        DatabaseUrl::Postgres(_) => Ok(None),
    }
}

impl App {
    /// Consumes whenever everything that is needed for it works: credits and checks, each on its own.
    async fn work(&self, hangup: Signal, lock: &mut Option<WriterLock>) -> anyhow::Result<()> {
        let lines = self.lines()?;
        release_on_hangup(hangup, &lines);
        if self.until_stopped(self.ledger_ready(lock)).await.transpose()?.is_none() {
            return Ok(());
        }
        tokio::join!(
            join_all(lines.iter().map(|consumer| self.keep_consuming(consumer))),
            self.until_stopped(self.count_unverified()),
            self.until_stopped(self.watch_clock()),
            self.keep_relaying(),
        );
        Ok(())
    }

    /// Every queue with its pipeline: the credit queue first, then the check queue, then those of the sources.
    fn lines(&self) -> anyhow::Result<Vec<QueueConsumer>> {
        let settings = &self.settings;
        let mut lines =
            vec![QueueConsumer::credits(settings, self.credits(Component::Credits, Arc::clone(&self.ledger)))];
        lines.extend(self.checks(Component::Checks)?.map(|checks| QueueConsumer::checks(settings, checks)));
        for source in &settings.sources {
            let component = Component::source(&source.name);
            match &source.kind {
                SourceKind::Credit => {
                    metrics::begin_source_at_zero(component.label(), &Outcome::LABELS);
                    let credits = self.credits(component, open(settings, settings.ledger.pool_size));
                    lines.push(QueueConsumer::credits(settings, credits));
                }
                SourceKind::Notification(_) => {
                    metrics::begin_source_at_zero(component.label(), &CheckOutcome::LABELS_ON_ARRIVAL);
                    lines.extend(self.checks(component)?.map(|checks| QueueConsumer::checks(settings, checks)));
                }
            }
        }
        Ok(lines)
    }

    fn credits(&self, component: Component, ledger: Arc<WithDeadline<dyn Ledger>>) -> CreditPipeline {
        CreditPipeline {
            component,
            format: self.settings.message.clone(),
            ledger: ledger as Arc<dyn CreditLedger>,
            locked: Arc::clone(&self.locked),
            immediate_attempts: self.settings.retry.immediate_attempts,
            retry: self.settings.retry.policy.clone(),
            checks: self.settings.pay_status.is_some().then(|| CheckScheduling {
                wait: self.settings.compensation.policy.beginning(),
                limits: self.settings.check_limits(),
            }),
        }
    }

    /// With connections of its own to the payment source and the ledger. `None` without a payment source.
    fn checks(&self, component: Component) -> anyhow::Result<Option<Arc<CheckPipeline>>> {
        let Settings { compensation, pay_status, ledger, .. } = &self.settings;
        let source = pay_status::source(pay_status, ledger.timeout, true, &self.limits).context("pay_status")?;
        Ok(source.map(|source| {
            Arc::new(CheckPipeline {
                component,
                format: self.settings.message.clone(),
                sources: self.settings.notifications().cloned().collect(),
                source,
                ledger: open(&self.settings, 1) as Arc<dyn CheckLedger>,
                locked: Arc::clone(&self.locked),
                policy: compensation.policy.clone(),
                limits: self.settings.check_limits(),
                immediate_attempts: self.settings.retry.immediate_attempts,
                retry: self.settings.retry.policy.clone(),
                brake: SharedBrake::new(compensation.brake_after),
                answered: AtomicBool::default(),
                former: Mutex::default(),
            })
        }))
    }

    /// `None` when the daemon is told to stop meanwhile.
    async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(work).await
    }

    /// Counts the credits that no check has found paid. While the ledger is down the metrics keep the last numbers.
    async fn count_unverified(&self) {
        if !self.settings.pay_status.is_some() {
            return;
        }
        let ledger = open(&self.settings, 1);
        let overdue_after = self.settings.compensation.overdue_after();
        let mut turns = tokio::time::interval(COUNTING);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let counted = ledger.call(move |ledger| ledger.count_unverified(overdue_after)).await;
            if let Ok(UnverifiedCount { unverified, overdue }) = counted {
                events::Unverified { unverified, overdue }.emit();
            }
        }
    }
}

/// SIGHUP (`systemctl reload`) releases the brake. Without checks it changes nothing, and ends nothing.
fn release_on_hangup(mut hangup: Signal, lines: &[QueueConsumer]) {
    let pipelines: Vec<Pipeline> = lines.iter().map(|consumer| consumer.pipeline.clone()).collect();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let engaged = pipelines.iter().filter(|pipeline| pipeline.release_brake()).count() > 0;
            events::BrakeReleased { engaged }.emit();
        }
    });
}

/// How often unverified credits are counted.
const COUNTING: Duration = Duration::from_secs(15);

/// What a step may take beyond the deadlines within it before it counts as stuck.
const SLACK: Duration = Duration::from_secs(15);
