//! The daemon: what is started in which order, what waits for what, and how it stops.

mod consume;
mod ready;
mod watchdog;

use crate::{
    backoff,
    broker::Sessions,
    config::Settings,
    database::{DatabaseUrl, Guarded},
    http,
    ledger::{self, Access, Ledger, WriterLock},
    observe::{events, metrics, pulse::Pulses, status::Status},
    pipeline::{
        credit::CreditPipeline,
        ports::{CreditLedger, Dependency, Outage},
    },
};
use anyhow::Context as _;
use consume::Ended;
pub use ready::{prepare, refuse_unless_current};
use std::{sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the daemon's parts share.
struct App {
    settings: Settings,
    sessions: Sessions,
    ledger: Arc<Guarded<dyn Ledger>>,
    status: Arc<Status>,
    pulses: Pulses,
    stop: CancellationToken,
}

/// Runs until a signal stops it. An error is one that waiting cannot cure.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let metrics = metrics::install().context("the metrics recorder")?;
    let status = Arc::new(Status::default());
    let listen = settings.http.listen;
    let endpoints = http::Endpoints { metrics, status: Arc::clone(&status) };
    // First of all: from here on a person can see what the daemon waits for.
    let bound = http::serve(listen, endpoints).await.with_context(|| format!("http.listen = \"{listen}\""))?;
    let _lock = writer_lock(&settings.ledger.url)?;
    events::Started { ledger: &settings.ledger.url.describe(), http: &bound.to_string() }.emit();

    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let options = ledger::Options {
        pool_size: settings.ledger.pool_size,
        timeout: settings.ledger.timeout,
        access: Access::Write,
    };
    let url = settings.ledger.url.clone();
    let ledger =
        Arc::new(Guarded::new(move || -> Arc<dyn Ledger> { ledger::open(&url, options) }, settings.ledger.timeout));
    let pulses = Pulses::default();
    watchdog::start(pulses.clone());
    let shutdown_timeout = settings.shutdown_timeout;
    let sessions = Sessions::new(settings.broker.clone(), settings.retry.policy.clone());
    let app = App { settings, sessions, ledger, status: Arc::clone(&status), pulses, stop: stop.clone() };

    let overdue = async {
        stop.cancelled().await;
        status.stopping();
        tokio::time::sleep(shutdown_timeout).await;
    };
    let in_time = tokio::select! {
        // Checked first: a daemon that has done its work in time is not late.
        biased;
        done = app.work() => { done?; true }
        () = overdue => false,
    };
    events::Stopped { in_time }.emit();
    if !in_time {
        // Not even closing a database's file, which may hang, holds up the exit.
        std::process::exit(0);
    }
    Ok(())
}

/// A SQLite ledger takes one writing program at a time.
pub fn writer_lock(url: &DatabaseUrl) -> anyhow::Result<Option<WriterLock>> {
    match url {
        DatabaseUrl::Sqlite(file) => Ok(Some(WriterLock::take(file)?)),
        DatabaseUrl::Postgres(_) => Ok(None),
    }
}

/// The first signal stops in order, the second at once: nothing is lost by that, only done again.
fn stop_on_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if stop.is_cancelled() {
                std::process::exit(1);
            }
            events::Stopping { signal }.emit();
            stop.cancel();
        }
    });
    Ok(())
}

impl App {
    /// Consumes whenever everything that is needed for it works.
    async fn work(&self) -> anyhow::Result<()> {
        let mut pace = backoff::Pace::default();
        if self.until_stopped(self.ledger_ready(&mut pace)).await.transpose()?.is_none() {
            return Ok(());
        }
        let pipeline = Arc::new(CreditPipeline {
            format: self.settings.message.clone(),
            ledger: Arc::clone(&self.ledger) as Arc<dyn CreditLedger>,
            immediate_attempts: self.settings.retry.immediate_attempts,
            retry: self.settings.retry.policy.clone(),
        });
        let mut careful = false;
        while !self.stop.is_cancelled() {
            match self.consume(&pipeline, careful).await {
                Ended::InOrder => careful = false,
                Ended::Outage { outage, lived, unreadable } => {
                    careful = unreadable;
                    // A message that cannot be read is alone now, and is best counted out soon.
                    if unreadable || lived > LONG_SESSION {
                        pace.reset();
                    }
                    if self.until_stopped(self.recovered(outage, &mut pace)).await.is_none() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// `None` when the daemon is told to stop meanwhile.
    async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(work).await
    }

    /// Waits after an outage: a pause, and for the ledger until a probe is committed. The broker is probed by
    /// consuming again.
    async fn recovered(&self, outage: Outage, pace: &mut backoff::Pace) {
        let mut outage = outage;
        loop {
            self.status.pause(&outage);
            self.pause(pace).await;
            match outage.dependency {
                Dependency::Broker => return,
                Dependency::Ledger => {
                    let _pulse = self.pulses.begin("probe", self.settings.ledger.timeout + SLACK);
                    match self.ledger.probe().await {
                        Ok(()) => return self.status.resume(Dependency::Ledger),
                        Err(again) => outage = again,
                    }
                }
            }
        }
    }

    async fn pause(&self, pace: &mut backoff::Pace) {
        let pause = pace.next_pause();
        let _pulse = self.pulses.begin("outage", pause + SLACK);
        tokio::time::sleep(pause).await;
    }
}

/// A session that lived so long was a sound one, and the pauses begin small again after it. A shorter one was not,
/// whatever it has done: something that fails again and again is not asked in a tight circle, because each time
/// deliveries go back, which counts against them.
const LONG_SESSION: Duration = Duration::from_secs(60);

/// What a step may take beyond the deadlines within it before it counts as stuck.
const SLACK: Duration = Duration::from_secs(15);
