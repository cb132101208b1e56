//! Publishing until everything is confirmed: what is confirmed is never published again, only the rest is.

use super::ports::{CONFIRMING_TIME, Confirmed, Deliveries, FirstChecks, Forward};
use crate::{
    domain::{
        failure::{Dependency, Outage},
        retry::RetryPolicy,
        settlement::Destination,
    },
    observe::events::{self, Event as _},
    pipeline::{ports::Message, work::BatchContext},
};
use std::time::{Duration, Instant};

/// The pause between two attempts at the rest.
const PAUSE: Duration = Duration::from_secs(1);

/// Copies that are published and confirmed together.
const TOGETHER: usize = 500;

/// What a message that is not confirmed means.
pub(super) fn outage(reason: &str) -> Outage {
    Outage { dependency: Dependency::Broker, reason: reason.to_owned() }
}

/// Publishes check messages of which all count or none. Confirmed only in part, the rest is tried again; an error when
/// that does not help.
pub(super) async fn schedule<D: Deliveries>(
    deliveries: &D,
    checks: &[FirstChecks],
    context: &BatchContext<'_>,
) -> Result<(), Outage> {
    let begun = Instant::now();
    let mut open: Vec<FirstChecks> = checks.to_vec();
    let mut stopped = false;
    while !open.is_empty() {
        context.heartbeat.beat();
        let confirmed = deliveries.schedule(&open, context.heartbeat).await?;
        let nothing_yet = open.len() == checks.len();
        let (rest, reason) = unconfirmed(&confirmed);
        let Some(reason) = reason else { return Ok(()) };
        if (nothing_yet && rest.len() == open.len()) || begun.elapsed() > CONFIRMING_TIME || stopped {
            return Err(reason);
        }
        open = rest.into_iter().map(|index| open[index].clone()).collect();
        // Told to stop, the rest has one more attempt: what is confirmed would be scheduled twice.
        stopped = !pause(context).await;
    }
    Ok(())
}

/// The indices of what is not confirmed, and why the first of them is not.
pub(super) fn unconfirmed(confirmed: &Confirmed) -> (Vec<usize>, Option<Outage>) {
    let rest: Vec<usize> = (0..confirmed.len()).filter(|index| confirmed[*index].is_err()).collect();
    let reason = confirmed.iter().find_map(|each| each.as_ref().err()).map(|reason| outage(reason));
    (rest, reason)
}

/// Waits before another attempt. `false`: the worker was told to stop.
pub(super) async fn pause(context: &BatchContext<'_>) -> bool {
    context.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_some()
}

/// Publishes copies once, in windows. For each whether it is confirmed, or why not. After a window of which nothing is
/// confirmed, and when it has taken too long, the rest is not sent.
pub(super) async fn forward<D: Deliveries>(
    deliveries: &D,
    copies: &[Forward<'_, D::Message>],
    context: &BatchContext<'_>,
) -> Result<Confirmed, Outage> {
    let mut all = Vec::with_capacity(copies.len());
    let begun = Instant::now();
    for window in copies.chunks(TOGETHER) {
        context.heartbeat.beat();
        let confirmed = deliveries.forward(window, context.heartbeat).await?;
        let none = confirmed.iter().all(Result::is_err);
        all.extend(confirmed);
        if none || begun.elapsed() > CONFIRMING_TIME {
            break;
        }
    }
    all.resize_with(copies.len(), || Err("it was not sent: others before it were not confirmed in time".to_owned()));
    Ok(all)
}

/// Logs a confirmed copy.
pub(super) fn log_forward<M: Message>(copy: &Forward<'_, M>, retry: &RetryPolicy) {
    let (message, error) = (&copy.message.label(), copy.error.as_deref().unwrap_or_default());
    let payment_id = copy.payment_id;
    match copy.to {
        Destination::Dead(reason) => events::MessageParked { reason, payment_id, message, error }.emit(),
        Destination::Retry(step) => {
            let delay = retry.delays()[step.index()].as_str();
            events::MessageDelayed { attempt: step.attempt(), delay, payment_id, message, error }.emit();
        }
        // Counted with the step that asks for it.
        Destination::Check(_) | Destination::CheckQueue => {}
    }
}
