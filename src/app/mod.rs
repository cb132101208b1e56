//! The daemon: what is started in which order, what waits for what, and how it stops.

mod consume;
mod line;
mod ready;
mod relay;
mod watchdog;
mod worker;

use crate::{
    backoff,
    config::{LedgerSettings, Settings, SourceKind},
    database::{DatabaseUrl, Guarded},
    domain::{check::CheckOutcome, credit::Outcome},
    http,
    ledger::{self, Access, Ledger, UnverifiedCount, WriterLock},
    observe::{
        events, metrics,
        pulse::Pulses,
        status::{Part, Status},
    },
    pay_status,
    pipeline::{
        check::{CheckPipeline, brake::SharedBrake},
        credit::{CheckScheduling, CreditPipeline},
        locked::LockedRows,
        ports::{CheckLedger, CreditLedger, Dependency, Outage},
    },
};
use anyhow::Context as _;
use consume::{Ended, Opening};
use futures_util::future::join_all;
use line::{Line, Pipeline};
pub use ready::{prepare, refuse_unless_current};
use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the daemon's parts share.
struct App {
    settings: Settings,
    ledger: Arc<Guarded<dyn Ledger>>,
    status: Arc<Status>,
    pulses: Pulses,
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
    let endpoints = http::Endpoints { metrics, status: Arc::clone(&status) };
    // First of all: from here on a person can see what the daemon waits for.
    let bound = http::serve(listen, endpoints).await.with_context(|| format!("http.listen = \"{listen}\""))?;
    let _lock = writer_lock(&settings.ledger.url)?;
    events::Started { ledger: &settings.ledger.url.describe(), http: &bound.to_string() }.emit();

    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let ledger = open(&settings, settings.ledger.pool_size);
    let pulses = Pulses::default();
    watchdog::start(pulses.clone());
    let shutdown_timeout = settings.shutdown_timeout;
    let limits = pay_status::Limits::default();
    let (status_of_app, locked) = (Arc::clone(&status), Arc::default());
    let app = App { settings, ledger, status: status_of_app, pulses, stop: stop.clone(), limits, locked };

    let overdue = async {
        stop.cancelled().await;
        status.stopping();
        tokio::time::sleep(shutdown_timeout).await;
    };
    let in_time = tokio::select! {
        // Checked first: a daemon that has done its work in time is not late.
        biased;
        done = app.work(hangup) => { done?; true }
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
fn open(settings: &Settings, pool_size: u32) -> Arc<Guarded<dyn Ledger>> {
    let LedgerSettings { url, timeout, .. } = settings.ledger.clone();
    let events = settings.events.exchange.clone();
    let options = ledger::Options { pool_size, timeout, access: Access::Write, events };
    Arc::new(Guarded::new(move || -> Arc<dyn Ledger> { ledger::open(&url, &options) }, timeout))
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
    /// Consumes whenever everything that is needed for it works: credits and checks, each on its own.
    async fn work(&self, hangup: Signal) -> anyhow::Result<()> {
        let lines = self.lines()?;
        release_on_hangup(hangup, &lines);
        let mut pace = backoff::Pace::default();
        if self.until_stopped(self.ledger_ready(&mut pace)).await.transpose()?.is_none() {
            return Ok(());
        }
        tokio::join!(
            join_all(lines.iter().map(|line| self.keep_consuming(line))),
            self.until_stopped(self.count_unverified()),
            self.keep_relaying(),
        );
        Ok(())
    }

    /// Every queue with its pipeline: the credit queue first, then the check queue, then those of the sources.
    fn lines(&self) -> anyhow::Result<Vec<Line>> {
        let settings = &self.settings;
        let mut lines = vec![Line::credits(settings, self.credits(Part::Credits, Arc::clone(&self.ledger)))];
        lines.extend(self.checks(Part::Checks)?.map(|checks| Line::checks(settings, checks)));
        for source in &settings.sources {
            let part = Part::source(&source.name);
            match &source.kind {
                SourceKind::Credit => {
                    metrics::begin_source_at_zero(part.label(), &Outcome::LABELS);
                    let credits = self.credits(part, open(settings, settings.ledger.pool_size));
                    lines.push(Line::credits(settings, credits));
                }
                SourceKind::Notification(_) => {
                    metrics::begin_source_at_zero(part.label(), &CheckOutcome::LABELS_ON_ARRIVAL);
                    lines.extend(self.checks(part)?.map(|checks| Line::checks(settings, checks)));
                }
            }
        }
        Ok(lines)
    }

    fn credits(&self, part: Part, ledger: Arc<Guarded<dyn Ledger>>) -> CreditPipeline {
        CreditPipeline {
            part,
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
    fn checks(&self, part: Part) -> anyhow::Result<Option<Arc<CheckPipeline>>> {
        let Settings { compensation, pay_status, ledger, .. } = &self.settings;
        let source = pay_status::source(pay_status, ledger.timeout, true, &self.limits).context("pay_status")?;
        Ok(source.map(|source| {
            Arc::new(CheckPipeline {
                part,
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

    /// One session after the other, until the daemon is told to stop.
    async fn keep_consuming(&self, line: &Line) {
        let (mut opening, mut slow, mut pace) = (Opening::Full, false, backoff::Pace::default());
        let mut trials = Trials::default();
        while !self.stop.is_cancelled() {
            match self.consume(line, opening).await {
                Ended::InOrder => {
                    slow &= opening != Opening::Slow;
                    opening = if slow { Opening::Slow } else { Opening::Full };
                    trials = Trials::default();
                }
                Ended::HeldTooLong => {
                    events::HeldTooLong { queue: line.sessions.queue() }.emit();
                    slow = true;
                    opening = Opening::Slow;
                }
                Ended::Outage { outage, lived, unreadable } => {
                    // A message that cannot be read is alone now, and is best counted out soon.
                    if unreadable || lived > LONG_SESSION {
                        pace.reset();
                    }
                    // A trial takes its time where nothing is answered.
                    if !matches!(opening, Opening::Trial(_)) && lived > LONG_SESSION {
                        trials = Trials::default();
                    }
                    let recovered = self.recovered(line, outage, &mut pace, &mut trials);
                    let Some(next) = self.until_stopped(recovered).await else { break };
                    opening = match next {
                        Opening::Full if unreadable => Opening::Careful,
                        Opening::Full if slow => Opening::Slow,
                        next => next,
                    };
                }
            }
        }
    }

    /// `None` when the daemon is told to stop meanwhile.
    async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(work).await
    }

    /// Waits after an outage: a pause, and then until a probe is answered. The broker is probed by consuming again, and
    /// a brake waits for a person. Returns how the next session begins.
    async fn recovered(&self, line: &Line, outage: Outage, pace: &mut backoff::Pace, trials: &mut Trials) -> Opening {
        let (part, mut outage) = (line.part(), outage);
        loop {
            if let Some((brake, released)) = line.brake() {
                // It is what is waited for, whatever else has ended the session.
                if outage.dependency != brake.dependency {
                    self.status.resume(part, outage.dependency);
                }
                self.status.pause(part, &brake);
                released.await;
                self.status.resume(part, brake.dependency);
                return Opening::Full;
            }
            self.status.pause(part, &outage);
            self.pause(pace).await;
            let pulse = |step| self.pulses.begin("probe", step + SLACK);
            let probed = match (outage.dependency, line.pipeline.longest_probe()) {
                (Dependency::Ledger, _) => {
                    let _pulse = pulse(self.settings.ledger.timeout);
                    line.pipeline.probe_ledger().await
                }
                (Dependency::PayStatus, Some(longest)) => {
                    let _pulse = pulse(longest);
                    line.pipeline.probe_source().await
                }
                (Dependency::Broker, _) | (Dependency::PayStatus, None) => return Opening::Full,
            };
            match probed {
                Ok(()) => {
                    *trials = Trials::default();
                    self.status.resume(part, outage.dependency);
                    return Opening::Full;
                }
                // What a probe asks for may fail for reasons of its own: others are tried, seldom and few at first, because
                // each time deliveries go back, which counts against them. It stays told as paused until that has gone well.
                Err(again) if again.dependency == Dependency::PayStatus => match trials.next(Instant::now()) {
                    Some(deliveries) => return Opening::Trial(deliveries),
                    None => outage = again,
                },
                Err(again) => {
                    if again.dependency != outage.dependency {
                        self.status.resume(part, outage.dependency);
                    }
                    outage = again;
                }
            }
        }
    }

    async fn pause(&self, pace: &mut backoff::Pace) {
        let pause = pace.next_pause();
        let _pulse = self.pulses.begin("outage", pause + SLACK);
        tokio::time::sleep(pause).await;
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

/// Sessions that are tried although probes of the payment source fail.
#[derive(Debug, Default)]
struct Trials {
    /// When the last one was; at first, when a probe failed first.
    since: Option<Instant>,
    begun: u32,
}

impl Trials {
    /// A probe has failed. Once a minute: with how many deliveries a session is tried, each time twice as many.
    fn next(&mut self, now: Instant) -> Option<u16> {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < BETWEEN_TRIALS {
            return None;
        }
        self.since = Some(now);
        self.begun += 1;
        Some(1_u16.checked_shl(self.begun - 1).filter(|deliveries| *deliveries > 0).unwrap_or(u16::MAX))
    }
}

/// SIGHUP (`systemctl reload`) releases the brake. Without checks it changes nothing, and ends nothing.
fn release_on_hangup(mut hangup: Signal, lines: &[Line]) {
    let pipelines: Vec<Pipeline> = lines.iter().map(|line| line.pipeline.clone()).collect();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let engaged = pipelines.iter().filter(|pipeline| pipeline.release_brake()).count() > 0;
            events::BrakeReleased { engaged }.emit();
        }
    });
}

/// How long probes of the payment source fail before a session is tried all the same, and between two of those.
const BETWEEN_TRIALS: Duration = Duration::from_secs(60);

/// How often unverified credits are counted.
const COUNTING: Duration = Duration::from_secs(15);

/// A session that lived so long was a sound one, and the pauses begin small again after it. A shorter one was not,
/// whatever it has done: something that fails again and again is not asked in a tight circle, because each time
/// deliveries go back, which counts against them.
const LONG_SESSION: Duration = Duration::from_secs(60);

/// What a step may take beyond the deadlines within it before it counts as stuck.
const SLACK: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_whose_probes_fail_is_tried_once_a_minute_with_ever_more_deliveries() {
        let begun = Instant::now();
        let mut trials = Trials::default();
        let tried = |seconds: u64| trials.next(begun + Duration::from_secs(seconds));
        let deliveries: Vec<Option<u16>> = [0, 59, 60, 70, 119, 120, 180, 900].map(tried).to_vec();
        assert_eq!(deliveries, [None, None, Some(1), None, None, Some(2), Some(4), Some(8)]);
        let later: Vec<Option<u16>> =
            (20..40).map(|minutes| trials.next(begun + Duration::from_secs(minutes * 60))).collect();
        assert_eq!(later.last(), Some(&Some(u16::MAX)));
    }
}
