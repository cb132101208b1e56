//! Publishing until everything is confirmed: what is confirmed is never published again, only the rest is.

use super::{
    ports::{Confirmed, Deliveries, Dependency, FirstChecks, Forward, Outage},
    stages::Turn,
};
use std::time::{Duration, Instant};

/// How long the rest is tried again when only a part is confirmed.
pub(super) const CONFIRMING_TIME: Duration = Duration::from_secs(180);

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
    turn: &Turn<'_>,
) -> Result<(), Outage> {
    let begun = Instant::now();
    let mut open: Vec<FirstChecks> = checks.to_vec();
    while !open.is_empty() {
        turn.pulse.beat();
        let confirmed = deliveries.schedule(&open, turn.pulse).await?;
        let nothing_yet = open.len() == checks.len();
        let (rest, reason) = unconfirmed(&confirmed);
        let Some(reason) = reason else { return Ok(()) };
        if (nothing_yet && rest.len() == open.len()) || begun.elapsed() > CONFIRMING_TIME {
            return Err(reason);
        }
        open = rest.into_iter().map(|index| open[index].clone()).collect();
        pause(turn).await?;
    }
    Ok(())
}

/// The indices of what is not confirmed, and why the first of them is not.
pub(super) fn unconfirmed(confirmed: &Confirmed) -> (Vec<usize>, Option<Outage>) {
    let rest: Vec<usize> = (0..confirmed.len()).filter(|index| confirmed[*index].is_err()).collect();
    let reason = confirmed.iter().find_map(|each| each.as_ref().err()).map(|reason| outage(reason));
    (rest, reason)
}

/// Waits before another attempt; an error when the worker is told to stop.
pub(super) async fn pause(turn: &Turn<'_>) -> Result<(), Outage> {
    match turn.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await {
        Some(()) => Ok(()),
        None => Err(outage("told to stop while messages were not confirmed")),
    }
}

/// Publishes copies once, in windows. For each whether it is confirmed, or why not.
pub(super) async fn forward<D: Deliveries>(
    deliveries: &D,
    copies: &[Forward<'_, D::Message>],
    turn: &Turn<'_>,
) -> Result<Confirmed, Outage> {
    let mut all = Vec::with_capacity(copies.len());
    for window in copies.chunks(TOGETHER) {
        turn.pulse.beat();
        all.extend(deliveries.forward(window, turn.pulse).await?);
    }
    Ok(all)
}
