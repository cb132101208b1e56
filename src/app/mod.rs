//! The daemon: the order in which its parts start, and how it stops.

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

/// The state that the parts of the daemon share.
struct App {
    settings: Settings,
    ledger: Arc<WithDeadline<dyn Ledger>>,
    status: Arc<Status>,
    heartbeats: Heartbeats,
    stop: CancellationToken,
    /// The limits of the gateway, which all queues share.
    limits: pay_status::Limits,
    /// The locked rows of the ledger, which all queues share.
    locked: Arc<LockedRows>,
}

/// Runs the daemon until a signal stops it. Fails only with errors that waiting cannot resolve.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    // Before anything else: without a handler the signal would end the process.
    let hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let metrics = metrics::install().context("the metrics recorder")?;
    let status = Arc::new(Status::default());
    let listen = settings.http.listen;
    let endpoints = endpoints::Endpoints { metrics, status: Arc::clone(&status) };
    // Before the ledger: from here on the endpoints show what the daemon waits for.
    let bound = endpoints::serve(listen, endpoints).await.with_context(|| format!("http.listen = \"{listen}\""))?;
    let mut lock = writer_lock(&settings.ledger.url)?;
    let (ledger, checks) = (settings.ledger.url.describe(), settings.pay_status.is_some());
    events::Started { checks, ledger: &ledger, http: &bound.to_string() }.emit();

    let stop = stop_on_signals(|signal| events::Stopping { signal }.emit())?;
    let ledger = open_ledger(&settings, settings.ledger.pool_size);
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
        // Polled first: a daemon that finishes in time is not late.
        biased;
        done = app.run_components(hangup, &mut lock) => { done?; true }
        () = overdue => false,
    };
    events::Stopped { in_time }.emit();
    if !in_time {
        // Exit at once: closing the file of a database may hang.
        std::process::exit(0);
    }
    Ok(())
}

/// Opens the ledger with separate connections, so that a failure of one component does not use up those of the others.
fn open_ledger(settings: &Settings, pool_size: u32) -> Arc<WithDeadline<dyn Ledger>> {
    let LedgerSettings { url, timeout, .. } = settings.ledger.clone();
    let events = settings.events.exchange.clone();
    let options = ledger::Options { pool_size, timeout, access: Access::Write, events };
    Arc::new(WithDeadline::new(move || -> Arc<dyn Ledger> { ledger::open(&url, &options) }, timeout))
}

/// Takes the writer lock of a SQLite ledger, which accepts one writing process at a time; `None` for PostgreSQL.
pub fn writer_lock(url: &DatabaseUrl) -> anyhow::Result<Option<WriterLock>> {
    match url {
        DatabaseUrl::Sqlite(file) => Ok(Some(WriterLock::take(file)?)),
        DatabaseUrl::Postgres(_) => Ok(None),
    }
}

impl App {
    /// Waits for the ledger and then runs all components independently until the daemon stops.
    async fn run_components(&self, hangup: Signal, lock: &mut Option<WriterLock>) -> anyhow::Result<()> {
        let consumers = self.queue_consumers()?;
        release_on_hangup(hangup, &consumers);
        if self.until_stopped(self.wait_for_ledger(lock)).await.transpose()?.is_none() {
            return Ok(());
        }
        tokio::join!(
            join_all(consumers.iter().map(|consumer| self.keep_consuming(consumer))),
            self.until_stopped(self.count_unverified()),
            self.until_stopped(self.watch_clock()),
            self.keep_relaying(),
        );
        Ok(())
    }

    /// The consumed queues with their pipelines: the credit queue, the check queue, and the queues of the sources.
    fn queue_consumers(&self) -> anyhow::Result<Vec<QueueConsumer>> {
        let settings = &self.settings;
        let mut consumers =
            vec![QueueConsumer::credits(settings, self.credit_pipeline(Component::Credits, Arc::clone(&self.ledger)))];
        consumers.extend(self.check_pipeline(Component::Checks)?.map(|checks| QueueConsumer::checks(settings, checks)));
        for source in &settings.sources {
            let component = Component::source(&source.name);
            match &source.kind {
                SourceKind::Credit => {
                    metrics::begin_source_at_zero(component.label(), &Outcome::LABELS);
                    let credits = self.credit_pipeline(component, open_ledger(settings, settings.ledger.pool_size));
                    consumers.push(QueueConsumer::credits(settings, credits));
                }
                SourceKind::Notification(_) => {
                    metrics::begin_source_at_zero(component.label(), &CheckOutcome::LABELS_ON_ARRIVAL);
                    consumers
                        .extend(self.check_pipeline(component)?.map(|checks| QueueConsumer::checks(settings, checks)));
                }
            }
        }
        Ok(consumers)
    }

    fn credit_pipeline(&self, component: Component, ledger: Arc<WithDeadline<dyn Ledger>>) -> CreditPipeline {
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

    /// Creates a pipeline of checks with separate connections to the payment source and the ledger; `None` without a
    /// payment source.
    fn check_pipeline(&self, component: Component) -> anyhow::Result<Option<Arc<CheckPipeline>>> {
        let Settings { compensation, pay_status, ledger, .. } = &self.settings;
        let source = pay_status::source(pay_status, ledger.timeout, true, &self.limits).context("pay_status")?;
        Ok(source.map(|source| {
            Arc::new(CheckPipeline {
                component,
                format: self.settings.message.clone(),
                sources: self.settings.notifications().cloned().collect(),
                source,
                ledger: open_ledger(&self.settings, 1) as Arc<dyn CheckLedger>,
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

    /// Runs `work`; `None` if the daemon stops before it is done.
    async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(work).await
    }

    /// Counts the unverified credits at intervals. While the ledger is down, the metrics keep the last numbers.
    async fn count_unverified(&self) {
        if !self.settings.pay_status.is_some() {
            return;
        }
        let ledger = open_ledger(&self.settings, 1);
        let overdue_after = self.settings.compensation.overdue_after();
        let mut ticks = tokio::time::interval(COUNT_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let counted = ledger.call(move |ledger| ledger.count_unverified(overdue_after)).await;
            if let Ok(UnverifiedCount { unverified, overdue }) = counted {
                events::Unverified { unverified, overdue }.emit();
            }
        }
    }
}

/// Releases the brake at SIGHUP (`systemctl reload`). Without checks the signal has no effect.
fn release_on_hangup(mut hangup: Signal, consumers: &[QueueConsumer]) {
    let pipelines: Vec<Pipeline> = consumers.iter().map(|consumer| consumer.pipeline.clone()).collect();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let engaged = pipelines.iter().filter(|pipeline| pipeline.release_brake()).count() > 0;
            events::BrakeReleased { engaged }.emit();
        }
    });
}

/// The interval at which unverified credits are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);

/// How long a step may exceed the deadlines within it before it counts as stalled.
const SLACK: Duration = Duration::from_secs(15);
