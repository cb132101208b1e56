//! What is consumed, and by which pipeline: credits, or checks.

use super::SLACK;
use crate::{
    broker::{CONFIRM_TIMEOUT, Consumer, Delivered, Sessions},
    config::Settings,
    observe::status::Part,
    pipeline::{
        check::CheckPipeline,
        credit::CreditPipeline,
        ports::Outage,
        stages::{Interrupted, Turn},
    },
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// A queue and its pipeline, from which sessions are made one after the other.
pub(super) struct Line {
    pub(super) sessions: Sessions,
    pub(super) pipeline: Pipeline,
    /// Batches that are worked on at a time.
    pub(super) workers: u32,
    /// Most messages in a batch.
    pub(super) batch_max: usize,
    /// Most unacknowledged deliveries.
    pub(super) prefetch: u16,
    /// How long a worker's step may take before it counts as stuck.
    pub(super) step: Duration,
}

/// A batch's way.
#[derive(Clone)]
pub(super) enum Pipeline {
    Credits(Arc<CreditPipeline>),
    Checks(Arc<CheckPipeline>),
}

impl Pipeline {
    pub(super) async fn process(
        &self,
        consumer: &Consumer,
        batch: Vec<Delivered>,
        turn: &Turn<'_>,
    ) -> Result<(), Interrupted<Delivered>> {
        match self {
            Self::Credits(pipeline) => pipeline.process(consumer, batch, turn).await,
            Self::Checks(pipeline) => pipeline.process(consumer, batch, turn).await,
        }
    }

    /// Whether the payment source has answered since this was asked last.
    pub(super) fn source_has_answered(&self) -> bool {
        match self {
            Self::Credits(_) => false,
            Self::Checks(pipeline) => pipeline.answered.swap(false, Ordering::Relaxed),
        }
    }

    /// How long a probe of the payment source may take; `None` without one.
    pub(super) fn longest_probe(&self) -> Option<Duration> {
        match self {
            Self::Credits(_) => None,
            Self::Checks(pipeline) => Some(pipeline.source.longest()),
        }
    }

    /// Whether a brake was engaged, and is released now.
    pub(super) fn release_brake(&self) -> bool {
        match self {
            Self::Credits(_) => false,
            Self::Checks(pipeline) => pipeline.brake.release(),
        }
    }

    /// Whether the payment source works.
    pub(super) async fn probe_source(&self) -> Result<(), Outage> {
        match self {
            Self::Credits(_) => Ok(()),
            Self::Checks(pipeline) => pipeline.probe_source().await,
        }
    }

    /// Whether the ledger works: asked while nothing comes. The credits ask for both.
    pub(super) async fn probe_idle(&self) -> Result<(), Outage> {
        match self {
            Self::Credits(pipeline) => pipeline.ledger.probe().await,
            Self::Checks(_) => Ok(()),
        }
    }
}

impl Line {
    /// Points messages: as many workers as there are ledger writers.
    pub(super) fn credits(settings: &Settings, pipeline: CreditPipeline) -> Self {
        Self {
            sessions: Sessions::new(pipeline.part, settings),
            workers: settings.ledger.pool_size,
            batch_max: settings.ledger.batch_max,
            prefetch: prefetch(settings, pipeline.part),
            pipeline: Pipeline::Credits(Arc::new(pipeline)),
            step: settings.ledger.timeout.max(CONFIRM_TIMEOUT) + SLACK,
        }
    }

    /// Checks, or notifications: one worker, because the brake counts what is done in a row. It holds a batch and the next one,
    /// and no more, because a source may take its time.
    pub(super) fn checks(settings: &Settings, pipeline: Arc<CheckPipeline>) -> Self {
        let batch_max = settings.ledger.batch_max.min(pipeline.source.most()).max(1);
        let two = u16::try_from(2 * batch_max).unwrap_or(u16::MAX);
        let part = pipeline.part;
        let step = settings.ledger.timeout.max(CONFIRM_TIMEOUT).max(pipeline.source.longest()) + SLACK;
        Self {
            sessions: Sessions::new(pipeline.part, settings),
            pipeline: Pipeline::Checks(pipeline),
            workers: 1,
            batch_max,
            prefetch: prefetch(settings, part).min(two),
            step,
        }
    }

    pub(super) fn part(&self) -> Part {
        match &self.pipeline {
            Pipeline::Credits(pipeline) => pipeline.part,
            Pipeline::Checks(pipeline) => pipeline.part,
        }
    }

    /// While the brake is engaged: why, and when it is released.
    pub(super) fn brake(&self) -> Option<(Outage, impl Future<Output = ()>)> {
        match &self.pipeline {
            Pipeline::Credits(_) => None,
            Pipeline::Checks(pipeline) => Some((pipeline.brake.engaged()?, pipeline.brake.until_released())),
        }
    }
}

/// A source's queue may be of another type than ours, and a quorum queue takes no more than this.
fn prefetch(settings: &Settings, part: Part) -> u16 {
    const MOST_OF_QUORUM: u16 = 2000;
    match part {
        Part::Source(_) => settings.broker.prefetch.min(MOST_OF_QUORUM),
        Part::Credits | Part::Checks | Part::Relay => settings.broker.prefetch,
    }
}
