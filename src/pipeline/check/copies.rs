//! Building the copies of check messages, and the first checks of notifications.

use super::parse::{Batch, CheckRequest, Entry, ParsedDelivery};
use crate::{
    domain::{
        check_message::{About, Limits, Writer},
        check_outcome::CheckOutcome,
        check_schedule::CheckDelay,
        ids::PaymentId,
        settlement::{Destination, Settlement},
    },
    pipeline::{
        check::pipeline::CheckPipeline,
        ports::{CopyBody, FirstChecks, Forward},
    },
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
};

/// A copy of a delivery from the check queue, with some of its entries.
pub(super) struct CheckCopy {
    /// Index of the delivery in the batch.
    pub(super) delivery: usize,
    to: Destination,
    /// Indices of the entries in the batch.
    entries: Vec<usize>,
    payment_id: Option<PaymentId>,
    error: Option<String>,
    body: Body,
}

/// The body of a [`CheckCopy`].
enum Body {
    Original,
    Checks(Vec<u8>),
    Points(Vec<u8>),
}

impl CheckCopy {
    /// Returns the copy in the form in which it is published.
    pub(super) fn forward<'a, M>(&'a self, message: &'a M) -> Forward<'a, M> {
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

/// Builds the copies of those deliveries that may be settled (`concluded`).
pub(super) fn build_copies<M>(pipeline: &CheckPipeline, batch: &Batch<M>, concluded: &[bool]) -> Vec<CheckCopy> {
    let concluded = batch.deliveries.iter().enumerate().filter(|(index, _)| concluded[*index]);
    concluded.flat_map(|(index, delivery)| build_copies_of_delivery(pipeline, index, delivery, batch)).collect()
}

/// Builds the copies of a delivery from the check queue: one for each next delay, each retry step and each parked
/// entry, and one for the end of the check queue with the entries that have no outcome.
fn build_copies_of_delivery<M>(
    pipeline: &CheckPipeline,
    index: usize,
    delivery: &ParsedDelivery<M>,
    batch: &Batch<M>,
) -> Vec<CheckCopy> {
    let mut together: BTreeMap<Destination, Vec<usize>> = BTreeMap::new();
    let mut copies = Vec::new();
    for entry in delivery.entries.clone() {
        let to = match batch.outcomes[entry].as_ref().map(CheckOutcome::settlement) {
            None => Destination::CheckQueue,
            Some(Settlement::Ack) => continue,
            Some(Settlement::Forward(to)) => to,
        };
        match to {
            Destination::Dead(_) => copies.push(build_parked_copy(pipeline, index, delivery, batch, entry, to)),
            _ => together.entry(to).or_default().push(entry),
        }
    }
    for (to, entries) in together {
        copies.extend(build_check_messages(pipeline, index, to, entries, batch));
    }
    copies
}

/// Builds check messages with these entries, as many as the limits require.
fn build_check_messages<M>(
    pipeline: &CheckPipeline,
    delivery: usize,
    to: Destination,
    entries: Vec<usize>,
    batch: &Batch<M>,
) -> Vec<CheckCopy> {
    let mut writer = Writer::new(pipeline.limits);
    let mut copies: Vec<CheckCopy> = Vec::new();
    for entry in entries {
        write_entry(&batch.entries[entry], &mut writer);
        if writer.begun() > copies.len() {
            let payment_id = batch.entries[entry].payment_id().cloned();
            let body = Body::Checks(Vec::new());
            copies.push(CheckCopy { delivery, to, entries: Vec::new(), payment_id, error: None, body });
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

/// Builds the dead letter of one entry: a points message in the format of `[message]` for a check of the credit format,
/// otherwise a check message with that entry.
fn build_parked_copy<M>(
    pipeline: &CheckPipeline,
    index: usize,
    delivery: &ParsedDelivery<M>,
    batch: &Batch<M>,
    entry: usize,
    to: Destination,
) -> CheckCopy {
    let Entry { request, .. } = &batch.entries[entry];
    let body = match request {
        _ if !delivery.is_check_message => Body::Original,
        CheckRequest::Message(_) => Body::Original,
        CheckRequest::Check(check) => match &check.about {
            About::Claim(claim) => Body::Points(pipeline.format.compose(
                check.payment_id.as_str(),
                claim.user_id.as_str(),
                claim.points.get(),
            )),
            About::Notification { .. } | About::Record => {
                Body::Checks(compose_check_message(|writer| writer.push(check)))
            }
        },
        CheckRequest::Bad { json, .. } => Body::Checks(compose_check_message(|writer| writer.push_json(json))),
    };
    CheckCopy {
        delivery: index,
        to,
        entries: vec![entry],
        payment_id: batch.entries[entry].payment_id().cloned(),
        error: batch.outcomes[entry].as_ref().and_then(CheckOutcome::error).map(str::to_owned),
        body,
    }
}

/// Replaces unconfirmed copies with check messages for the end of the check queue that have the same entries.
pub(super) fn replace_with_check_queue_copies<M>(
    pipeline: &CheckPipeline,
    unconfirmed: Vec<CheckCopy>,
    batch: &Batch<M>,
) -> Vec<CheckCopy> {
    let mut by_delivery: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for copy in unconfirmed {
        by_delivery.entry(copy.delivery).or_default().extend(copy.entries);
    }
    let to = Destination::CheckQueue;
    by_delivery
        .into_iter()
        .flat_map(|(delivery, entries)| build_check_messages(pipeline, delivery, to, entries, batch))
        .collect()
}

/// Builds the check messages that start the checks of notifications. Checks with the same delay share messages; equal
/// notifications have one check.
pub(super) fn build_first_checks<M>(pipeline: &CheckPipeline, batch: &Batch<M>) -> Vec<FirstChecks> {
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

fn write_entry(entry: &Entry, writer: &mut Writer) {
    match &entry.request {
        CheckRequest::Check(check) => writer.push(check),
        CheckRequest::Bad { json, .. } => writer.push_json(json),
        // The message is decided as a whole: it is parked or acknowledged.
        CheckRequest::Message(_) => {}
    }
}

/// Composes a check message with one entry.
fn compose_check_message(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::new(Limits { entries: 1, bytes: usize::MAX });
    write(&mut writer);
    writer.finish().into_iter().next().unwrap_or_default()
}
