//! What goes on to other queues: the copies of a check message, and the first checks of notifications.

use super::parse::{Batch, CheckRequest, Entry, Held};
use crate::{
    domain::{
        check_message::{About, Limits, Writer},
        check_outcome::CheckOutcome,
        check_schedule::CheckDelay,
        failure::Outage,
        ids::PaymentId,
        retry::RetryPolicy,
        settlement::{Destination, Settlement},
    },
    pipeline::{
        check::pipeline::CheckPipeline,
        forward,
        ports::{CONFIRMING_TIME, Confirmed, CopyBody, Deliveries, FirstChecks, Forward, Message},
        work::BatchContext,
    },
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    time::Instant,
};

/// A copy of a delivery, with some of its entries.
pub(super) struct Outgoing {
    /// Which delivery, by its index in the batch.
    delivery: usize,
    to: Destination,
    /// Of the batch.
    entries: Vec<usize>,
    payment_id: Option<PaymentId>,
    error: Option<String>,
    body: Body,
}

enum Body {
    Original,
    Checks(Vec<u8>),
    Points(Vec<u8>),
}

impl Outgoing {
    fn forward<'a, M>(&'a self, message: &'a M) -> Forward<'a, M> {
        Forward {
            message,
            payment_id: self.payment_id.as_ref(),
            to: self.to,
            error: self.error.as_deref().map(Cow::Borrowed),
            recorded: None,
            body: match &self.body {
                Body::Original => CopyBody::Original,
                Body::Checks(body) => CopyBody::Checks(body),
                Body::Points(body) => CopyBody::Points(body),
            },
        }
    }
}

/// Which deliveries of a batch are done with.
pub(super) struct Forwarded {
    /// By their index: whether every copy of it is confirmed.
    pub(super) done: Vec<bool>,
    pub(super) outage: Option<Outage>,
}

impl Forwarded {
    /// The deliveries of these copies go back.
    fn undo(&mut self, copies: &[Outgoing]) {
        for copy in copies {
            self.done[copy.delivery] = false;
        }
    }
}

/// The copies that a delivery from the check queue asks for: one for each next wait, each retry step, each parked
/// entry, and one to the end of the check queue with what has no outcome.
fn copies_of<M>(pipeline: &CheckPipeline, index: usize, held: &Held<M>, batch: &Batch<M>) -> Vec<Outgoing> {
    let mut together: BTreeMap<Destination, Vec<usize>> = BTreeMap::new();
    let mut copies = Vec::new();
    for entry in held.entries.clone() {
        let to = match batch.outcomes[entry].as_ref().map(CheckOutcome::settlement) {
            None => Destination::CheckQueue,
            Some(Settlement::Ack) => continue,
            Some(Settlement::Forward(to)) => to,
        };
        match to {
            Destination::Dead(_) => copies.push(parked_copy(pipeline, index, held, batch, entry, to)),
            _ => together.entry(to).or_default().push(entry),
        }
    }
    for (to, entries) in together {
        copies.extend(check_messages(pipeline, index, to, entries, batch));
    }
    copies
}

/// Check messages with these entries, as many as the limits ask for.
fn check_messages<M>(
    pipeline: &CheckPipeline,
    delivery: usize,
    to: Destination,
    entries: Vec<usize>,
    batch: &Batch<M>,
) -> Vec<Outgoing> {
    let mut writer = Writer::new(pipeline.limits);
    let mut copies: Vec<Outgoing> = Vec::new();
    for entry in entries {
        write(&batch.entries[entry], &mut writer);
        if writer.begun() > copies.len() {
            let payment_id = batch.entries[entry].payment_id().cloned();
            let body = Body::Checks(Vec::new());
            copies.push(Outgoing { delivery, to, entries: Vec::new(), payment_id, error: None, body });
        }
        if let Some(copy) = copies.last_mut() {
            copy.entries.push(entry);
            let error = || batch.outcomes[entry].as_ref()?.error().map(str::to_owned);
            copy.error = copy.error.take().or_else(error);
        }
    }
    for (copy, body) in copies.iter_mut().zip(writer.finish()) {
        copy.body = Body::Checks(body);
    }
    copies
}

/// One entry for a person: a points message as `[message]` configures it, otherwise a check message with that entry.
fn parked_copy<M>(
    pipeline: &CheckPipeline,
    delivery: usize,
    held: &Held<M>,
    batch: &Batch<M>,
    entry: usize,
    to: Destination,
) -> Outgoing {
    let Entry { request, .. } = &batch.entries[entry];
    let body = match request {
        _ if !held.is_check_message => Body::Original,
        CheckRequest::Message(_) => Body::Original,
        CheckRequest::Check(check) => match &check.about {
            About::Claim(claim) => Body::Points(pipeline.format.compose(
                check.payment_id.as_str(),
                claim.user_id.as_str(),
                claim.points.get(),
            )),
            About::Notification { .. } | About::Record => Body::Checks(single(|writer| writer.push(check))),
        },
        CheckRequest::Bad { json, .. } => Body::Checks(single(|writer| writer.push_json(json))),
    };
    Outgoing {
        delivery,
        to,
        entries: vec![entry],
        payment_id: batch.entries[entry].payment_id().cloned(),
        error: batch.outcomes[entry].as_ref().and_then(CheckOutcome::error).map(str::to_owned),
        body,
    }
}

/// Publishes the copies of deliveries from the check queue: all of a delivery, or none. What is confirmed only in part
/// is kept and the rest tried again; what is not confirmed then goes to the end of the check queue.
/// `concluded`: whether a delivery may be settled at all.
pub(super) async fn forward_copies<D: Deliveries>(
    pipeline: &CheckPipeline,
    deliveries: &D,
    batch: &Batch<D::Message>,
    concluded: &[bool],
    context: &BatchContext<'_>,
) -> Forwarded {
    let mut forwarded = Forwarded { done: concluded.to_vec(), outage: None };
    let mut open: Vec<Outgoing> = Vec::new();
    for (index, held) in batch.deliveries.iter().enumerate().filter(|(index, _)| concluded[*index]) {
        open.extend(copies_of(pipeline, index, held, batch));
    }
    // Whether a copy of a delivery is confirmed.
    let mut begun_with = vec![false; batch.deliveries.len()];
    let begun = Instant::now();
    let mut has_put_off = false;
    while !open.is_empty() {
        let copies: Vec<_> = open.iter().map(|copy| copy.forward(&batch.deliveries[copy.delivery].message)).collect();
        let confirmed = match forward::forward(deliveries, &copies, context).await {
            Ok(confirmed) => confirmed,
            Err(outage) => {
                // Which of them stand there is not known: those of a delivery whose copies are open go back whole.
                forwarded.undo(&open);
                forwarded.outage = Some(outage);
                break;
            }
        };
        log_confirmed(&copies, &confirmed, &pipeline.retry);
        for (copy, _) in open.iter().zip(&confirmed).filter(|(_, confirmed)| confirmed.is_ok()) {
            begun_with[copy.delivery] = true;
        }
        let (rest, reason) = forward::unconfirmed(&confirmed);
        let Some(reason) = reason else { break };
        // Of what nothing is confirmed nothing is doubled when it goes back.
        let (partly, none): (Vec<_>, Vec<_>) =
            rest_of(open, &rest).into_iter().partition(|copy| begun_with[copy.delivery]);
        open = partly;
        if !none.is_empty() {
            forwarded.undo(&none);
            forwarded.outage.get_or_insert_with(|| reason.clone());
        }
        if open.is_empty() {
            break;
        }
        let in_time = begun.elapsed() < CONFIRMING_TIME && forward::pause(context).await;
        if !in_time && has_put_off {
            forwarded.undo(&open);
            forwarded.outage.get_or_insert(reason);
            break;
        }
        if !in_time {
            // Also when it is told to stop: parked a second time, a message would be two for a person.
            has_put_off = true;
            open = put_off(pipeline, open, batch);
        }
    }
    forwarded
}

/// The entries of these copies, to the end of the check queue.
fn put_off<M>(pipeline: &CheckPipeline, open: Vec<Outgoing>, batch: &Batch<M>) -> Vec<Outgoing> {
    let mut by_delivery: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for copy in open {
        by_delivery.entry(copy.delivery).or_default().extend(copy.entries);
    }
    let to = Destination::CheckQueue;
    by_delivery
        .into_iter()
        .flat_map(|(delivery, entries)| check_messages(pipeline, delivery, to, entries, batch))
        .collect()
}

/// The check messages that begin the checks of notifications: those of one wait together, and of several notifications
/// that say the same once.
pub(super) fn first_checks<M>(pipeline: &CheckPipeline, batch: &Batch<M>) -> Vec<FirstChecks> {
    let mut writers: BTreeMap<CheckDelay, Writer> = BTreeMap::new();
    let mut begun = HashSet::new();
    for (entry, outcome) in batch.entries.iter().zip(&batch.outcomes) {
        let settlement = outcome.as_ref().map(CheckOutcome::settlement);
        let (Some(Settlement::Forward(Destination::Check(wait))), Some(check)) = (settlement, entry.check()) else {
            continue;
        };
        if begun.insert((wait, &check.payment_id, entry.kind())) {
            writers.entry(wait).or_insert_with(|| Writer::new(pipeline.limits)).push(check);
        }
    }
    let bodies = writers
        .into_iter()
        .flat_map(|(wait, writer)| writer.finish().into_iter().map(move |body| FirstChecks { wait, body }));
    bodies.collect()
}

/// Publishes the check messages and the copies of notifications.
pub(super) async fn forward_arrivals<D: Deliveries>(
    pipeline: &CheckPipeline,
    deliveries: &D,
    batch: &Batch<D::Message>,
    context: &BatchContext<'_>,
) -> Forwarded {
    let mut forwarded = Forwarded { done: batch.outcomes.iter().map(Option::is_some).collect(), outage: None };
    let to = |index: usize| match batch.outcomes[index].as_ref().map(CheckOutcome::settlement) {
        Some(Settlement::Forward(to)) => Some(to),
        Some(Settlement::Ack) | None => None,
    };
    if let Err(outage) = forward::schedule(deliveries, &first_checks(pipeline, batch), context).await {
        let scheduled = |index: &usize| matches!(to(*index), Some(Destination::Check(_)));
        for index in (0..batch.outcomes.len()).filter(scheduled) {
            forwarded.done[index] = false;
        }
        forwarded.outage = Some(outage);
    }
    // Each delivery has one entry.
    let mut copies: Vec<(usize, Forward<'_, D::Message>)> = Vec::new();
    for (index, held) in batch.deliveries.iter().enumerate() {
        let (Some(to @ (Destination::Dead(_) | Destination::Retry(_))), Some(outcome)) =
            (to(index), &batch.outcomes[index])
        else {
            continue;
        };
        copies.push((
            index,
            Forward {
                message: &held.message,
                payment_id: batch.entries[index].payment_id(),
                to,
                error: outcome.error().map(Cow::Borrowed),
                recorded: None,
                body: CopyBody::Original,
            },
        ));
    }
    let (indices, copies): (Vec<usize>, Vec<_>) = copies.into_iter().unzip();
    match forward::forward(deliveries, &copies, context).await {
        Err(outage) => {
            for index in indices {
                forwarded.done[index] = false;
            }
            forwarded.outage.get_or_insert(outage);
        }
        Ok(confirmed) => {
            for (index, confirmed) in indices.iter().zip(&confirmed) {
                if let Err(reason) = confirmed {
                    forwarded.done[*index] = false;
                    forwarded.outage.get_or_insert_with(|| forward::outage(reason));
                }
            }
            log_confirmed(&copies, &confirmed, &pipeline.retry);
        }
    }
    forwarded
}

fn write(entry: &Entry, writer: &mut Writer) {
    match &entry.request {
        CheckRequest::Check(check) => writer.push(check),
        CheckRequest::Bad { json, .. } => writer.push_json(json),
        // Decided as a whole: it is parked, or done with.
        CheckRequest::Message(_) => {}
    }
}

/// A check message with one entry.
fn single(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::new(Limits { entries: 1, bytes: usize::MAX });
    write(&mut writer);
    writer.finish().into_iter().next().unwrap_or_default()
}

fn rest_of(open: Vec<Outgoing>, rest: &[usize]) -> Vec<Outgoing> {
    let mut rest = rest.iter().peekable();
    let is_open = |index: usize, rest: &mut std::iter::Peekable<std::slice::Iter<'_, usize>>| {
        rest.next_if(|next| **next == index).is_some()
    };
    open.into_iter().enumerate().filter(|(index, _)| is_open(*index, &mut rest)).map(|(_, copy)| copy).collect()
}

fn log_confirmed<M: Message>(copies: &[Forward<'_, M>], confirmed: &Confirmed, retry: &RetryPolicy) {
    for (copy, _) in copies.iter().zip(confirmed).filter(|(_, confirmed)| confirmed.is_ok()) {
        forward::log_forward(copy, retry);
    }
}
