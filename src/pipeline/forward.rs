//! Publishing check messages and copies until the broker has confirmed them. A confirmed message is not published
//! again.

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

/// Pause before unconfirmed messages are published again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Number of copies that are published and confirmed together.
const WINDOW: usize = 500;

/// Returns the outage of the broker that a missing confirm indicates.
pub(super) fn broker_outage(reason: &str) -> Outage {
    Outage { dependency: Dependency::Broker, reason: reason.to_owned() }
}

/// Publishes check messages that count only together. If only some are confirmed, the others are published again; an
/// error means that not all of them were confirmed.
pub(super) async fn publish_first_checks<D: Deliveries>(
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
        let none_confirmed_yet = open.len() == checks.len();
        let (rest, reason) = find_unconfirmed(&confirmed);
        let Some(reason) = reason else { return Ok(()) };
        if (none_confirmed_yet && rest.len() == open.len()) || begun.elapsed() > CONFIRMING_TIME || stopped {
            return Err(reason);
        }
        open = rest.into_iter().map(|index| open[index].clone()).collect();
        // While the worker is stopping, the rest gets one more attempt: returning the messages would schedule the
        // confirmed checks twice.
        stopped = !pause_before_retry(context).await;
    }
    Ok(())
}

/// Returns the indices of the unconfirmed messages, and the reason of the first one.
pub(super) fn find_unconfirmed(confirmed: &Confirmed) -> (Vec<usize>, Option<Outage>) {
    let rest: Vec<usize> = (0..confirmed.len()).filter(|index| confirmed[*index].is_err()).collect();
    let reason = confirmed.iter().find_map(|each| each.as_ref().err()).map(|reason| broker_outage(reason));
    (rest, reason)
}

/// Waits before messages are published again. Returns `false` if the worker is stopping.
pub(super) async fn pause_before_retry(context: &BatchContext<'_>) -> bool {
    context.stop.run_until_cancelled(tokio::time::sleep(RETRY_PAUSE)).await.is_some()
}

/// Publishes copies once, in windows, and returns for each copy whether it is confirmed. After a window without any
/// confirm, or after [`CONFIRMING_TIME`], the remaining copies are not sent.
pub(super) async fn publish_copies<D: Deliveries>(
    deliveries: &D,
    copies: &[Forward<'_, D::Message>],
    context: &BatchContext<'_>,
) -> Result<Confirmed, Outage> {
    let mut all = Vec::with_capacity(copies.len());
    let begun = Instant::now();
    for window in copies.chunks(WINDOW) {
        context.heartbeat.beat();
        let confirmed = deliveries.forward(window, context.heartbeat).await?;
        let none = confirmed.iter().all(Result::is_err);
        all.extend(confirmed);
        if none || begun.elapsed() > CONFIRMING_TIME {
            break;
        }
    }
    all.resize_with(copies.len(), || Err("not sent: earlier messages were not confirmed in time".to_owned()));
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
        // These copies are counted with the step of the decision table that asks for them.
        Destination::Check(_) | Destination::CheckQueue => {}
    }
}
